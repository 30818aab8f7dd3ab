"""What is timed and what is kept: on a clock of our own, then on real backends in processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import densenet_deploy
from densenet_deploy import bench as benching
from densenet_deploy.bench import bench, measure, measure_bundle
from densenet_deploy.bundle import Bundle, open_bundle, write_manifest
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import BenchConfig
from densenet_deploy.runtime import open_runner
from densenet_deploy.runtime.runner import Array, Runner

QUICK = BenchConfig(batch_sizes=(1,), seconds=0.02, threads=1)


class Backend:
    """A backend that takes a prescribed time on a clock which only it moves."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now, self.seconds = 100.0, seconds
        self.batches: list[list[int]] = []

    def perf_counter(self) -> float:
        return self.now

    def infer(self, images: Array) -> Array:
        self.now += self.seconds(len(self.batches))
        self.batches.append(images[:, 0, 0, 0].astype(int).tolist())
        return np.zeros((len(images), 10), np.float32)


@pytest.fixture
def timed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Measures a `Backend` on its own clock."""

    def run(backend: Backend, images: int = 16, batch: int = 1, seconds: float = 0.5) -> Any:
        clock = types.SimpleNamespace(perf_counter=backend.perf_counter)
        monkeypatch.setattr(benching, "time", clock)
        numbered = np.zeros((images, 1, 28, 28), np.float32)
        numbered += np.arange(images, dtype=np.float32)[:, None, None, None]
        runner = Runner(bundle, "onnxruntime", "fp16", backend.infer)
        return measure(runner, numbered, batch, seconds, threads=1, load_seconds=0.25)

    return run


def test_steady_requests(timed: Callable[..., Any]) -> None:
    record = timed(Backend(lambda call: 0.0078125))  # exact in binary: 64 of them are 0.5 s
    assert record.latencies == (0.0078125,) * 64
    assert record.steady
    assert 0.3 <= record.warmup_seconds <= 0.5
    assert (record.precision, record.backend, record.batch) == ("fp16", "onnxruntime", 1)
    assert (record.threads, record.load_seconds) == (1, 0.25)


def test_at_least_ten_requests_are_timed(timed: Callable[..., Any]) -> None:
    record = timed(Backend(lambda call: 1.0))
    assert record.latencies == (1.0,) * 10


def test_a_slow_start_is_not_timed(timed: Callable[..., Any]) -> None:
    # 0.2 s, 0.1 s, 0.05 s, ...: no three medians are alike before it stays at 2 ms
    record = timed(Backend(lambda call: max(0.2 / 2**call, 0.002)))
    assert record.steady
    assert record.warmup_seconds > 0.5
    assert max(record.latencies) == pytest.approx(0.002)


def test_what_never_settles_is_timed_and_says_so(timed: Callable[..., Any]) -> None:
    record = timed(Backend(lambda call: 0.005 * 1.01**call))
    assert not record.steady
    assert 2.0 <= record.warmup_seconds < 3.0
    assert len(record.latencies) >= 10


def test_no_latency_is_dropped(timed: Callable[..., Any]) -> None:
    backend = Backend(lambda call: 0.7 if call == 50 else 0.01)  # warm-up takes 30 to 40 calls
    record = timed(backend)
    assert max(record.latencies) == pytest.approx(0.7)
    assert record.latencies.index(max(record.latencies)) == 50 - (
        len(backend.batches) - len(record.latencies)
    )


@pytest.mark.parametrize("images, batch", [(16, 1), (5, 3), (5, 5), (3, 8), (1, 2)])
def test_requests_rotate_through_all_images(
    timed: Callable[..., Any], images: int, batch: int
) -> None:
    backend = Backend(lambda call: 0.01)
    timed(backend, images=images, batch=batch)
    assert all(len(request) == batch for request in backend.batches)
    order = [image for request in backend.batches for image in request]
    assert order == [position % images for position in range(len(order))]
    if images > batch:
        successive = zip(backend.batches, backend.batches[1:], strict=False)
        assert all(one != next_one for one, next_one in successive)


def test_a_request_is_contiguous_before_the_clock_starts(bundle: Bundle) -> None:
    seen: list[bool] = []

    def infer(images: Array) -> Array:
        seen.append(images.flags.c_contiguous and images.dtype == np.float32)
        time.sleep(0.01)
        return np.zeros((len(images), 10), np.float32)

    turned = np.zeros((28, 28, 1, 7), np.float32).transpose(3, 2, 0, 1)
    measure(Runner(bundle, "onnxruntime", "fp32", infer), turned, 2, 0.01, 1)
    assert seen and all(seen)


def test_real_latencies_fit_the_wall_clock(bundle: Bundle) -> None:
    images = bundle.manifest.preprocessing.normalise(bundle.sample_pixels())
    with open_runner(bundle, "onnxruntime", "int8", 1) as runner:
        began = time.perf_counter()
        record = measure(runner, images, 2, 0.1, 1)
        wall = time.perf_counter() - began
    assert min(record.latencies) > 1e-5
    assert sum(record.latencies) > 0.05  # the rest of the 0.1 s prepares requests
    assert record.warmup_seconds + sum(record.latencies) <= wall


def test_one_graph_at_every_batch_size(bundle: Bundle) -> None:
    config = BenchConfig(batch_sizes=(4, 1), seconds=0.02, threads=0)
    records = measure_bundle(bundle.path, "openvino", "fp16", config)
    assert [record.batch for record in records] == [4, 1]
    assert {(r.backend, r.precision, r.threads) for r in records} == {
        ("openvino", "fp16", usable_cores())
    }
    assert all(record.load_seconds > 0 for record in records)


@pytest.mark.parametrize("sizes, wrong", [((1, 65), 65), ((0,), 0), ((128, 1), 128)])
def test_batch_outside_the_bounds_starts_nothing(
    bundle: Bundle, sizes: tuple[int, ...], wrong: int
) -> None:
    config = replace(QUICK)
    object.__setattr__(config, "batch_sizes", sizes)  # BenchConfig itself refuses 0
    began = time.perf_counter()
    with pytest.raises(BackendError, match=f"batch size {wrong}; expected 1 to 64. Choose --batch"):
        bench(bundle, ["onnxruntime"], ["fp32"], config)
    assert time.perf_counter() - began < 0.5


def test_a_process_that_dies_is_an_error_here(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as by an out-of-memory killer, while it measures."""
    children: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def spy(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        children.append(real(*arguments, **options))
        killer = threading.Timer(1.0, children[0].send_signal, [signal.SIGKILL])
        killer.start()
        return children[0]

    monkeypatch.setattr(subprocess, "Popen", spy)
    with pytest.raises(BackendError, match="the process running fp32 on onnxruntime died"):
        bench(bundle, ["onnxruntime"], ["fp32"], replace(QUICK, seconds=200))
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_a_script_without_a_main_guard_may_call_it(bundle: Bundle, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "from densenet_deploy import open_bundle\n"
        "from densenet_deploy.bench import bench\n"
        "from densenet_deploy.recipe import BenchConfig\n"
        f"opened = open_bundle({str(bundle.path)!r})\n"
        "config = BenchConfig(batch_sizes=(1, 3), seconds=0.02, threads=1)\n"
        "records = bench(opened, ['pytorch', 'onnxruntime'], ['int8'], config)\n"
        "print([(r.backend, r.precision, r.batch) for r in records])\n"
        "import sys; print({'onnxruntime', 'torch'} & set(sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(densenet_deploy.__file__).parents[1])}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    # PyTorch is fp32 alone, so int8 leaves ONNX Runtime, which this process has not loaded
    assert done.stdout.splitlines() == [
        "once",
        "[('onnxruntime', 'int8', 1), ('onnxruntime', 'int8', 3)]",
        "set()",
    ]


def test_an_error_in_the_process_arrives_as_it_was(damaged: Path) -> None:
    manifest = open_bundle(damaged).manifest
    (damaged / "onnxruntime" / "fp32.onnx").write_bytes(b"not a graph")
    opened = write_manifest(damaged, manifest)
    with pytest.raises(BackendError, match=r"^onnxruntime refuses fp32\.onnx: .*[^.]\.$"):
        bench(opened, ["onnxruntime"], ["fp32"], QUICK)


def test_one_job_for_each_backend_and_precision(bundle: Bundle) -> None:
    announced: list[Any] = []

    def track(items: Any, description: str, total: int | None = None, start: int = 0) -> Any:
        announced.extend(items)
        assert (description, total) == ("Benchmarking", len(announced))
        return iter(())  # none is run

    backends = ["pytorch", "onnxruntime", "openvino"]
    assert bench(bundle, backends, ["fp32", "int8"], QUICK, track) == []
    assert announced == [
        ("pytorch", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
    ]
