"""Benchmarks on a device: skipped elsewhere, with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_deploy import _cuda, environment
from densenet_deploy.bench import bench
from densenet_deploy.bundle import Bundle
from densenet_deploy.recipe import BenchConfig
from densenet_deploy.runtime import GPU_BACKENDS, runs, why_unavailable

REASON = _cuda.why_no_device()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(REASON), reason=f"nothing can be measured on a GPU here: {REASON}"),
]


def available() -> list[str]:
    names = [name for name in GPU_BACKENDS if not why_unavailable(name)]
    if not names:
        pytest.skip("a GPU, and no backend that runs on it")
    return names


def test_every_backend_is_measured_in_a_process_of_its_own(bundle: Bundle) -> None:
    config = BenchConfig(batch_sizes=(1, 64), seconds=0.2)
    backends = [name for name in available() if not name.startswith("tensorrt")]
    if not backends:
        pytest.skip("only TensorRT runs here, and it needs engines")
    records = bench(bundle, backends, ["fp16"], config)
    assert [(record.backend, record.batch) for record in records] == [
        (name, batch) for name in backends if runs(name, "fp16") for batch in (1, 64)
    ]
    for small, large in zip(records[::2], records[1::2], strict=True):
        assert large.images_per_second > small.images_per_second


def test_a_request_includes_the_wait_for_the_device(bundle: Bundle) -> None:
    """Work grows 64-fold; a request that only gave it to the device would stay as short."""
    backend = available()[0]
    if backend.startswith("tensorrt"):
        pytest.skip("only TensorRT runs here, and it needs engines")
    config = BenchConfig(batch_sizes=(1, 64), seconds=0.2)
    small, large = bench(bundle, [backend], ["fp32"], config)
    assert large.mean > 1.2 * small.mean


def test_the_gpu_is_described() -> None:
    gpus = environment.describe()["gpus"]
    if not gpus:
        pytest.skip("neither nvidia-ml-py nor cuda-python is installed")
    assert gpus[0]["name"] and float(gpus[0]["compute_capability"]) >= 5
    if "driver" in gpus[0]:  # from NVML: against nvidia-smi
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        name, driver = done.stdout.splitlines()[0].split(", ")
        assert (gpus[0]["name"], gpus[0]["driver"]) == (name, driver)


def test_bench_gpu_writes_records_of_this_device(fashion_bundle: Path, tmp_path: Path) -> None:
    available()
    command = [sys.executable, "-m", "densenet_deploy.cli.app", "bench", str(fashion_bundle)]
    options = ["--gpu", "--rebuild", "--batch", "1", "--seconds", "0.1", "-q"]
    out = ["--out", str(tmp_path / "{device}" / "fashion-mnist-gpu.json")]
    done = subprocess.run([*command, *options, *out], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("*.json")
    assert path.parent.name == environment.device_slug()
    records = json.loads(path.read_text())
    measured = {item["backend"] for item in records["measurements"]}
    told = {item["backend"] for item in records["skipped"]}
    assert measured <= set(GPU_BACKENDS) and measured | told == set(GPU_BACKENDS)
