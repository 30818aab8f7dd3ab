"""Bound buffers, for real on the CPU provider: the code is written over a device's name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.binding import BoundSession
from densenet_deploy.runtime.one_thread import OneThread
from densenet_deploy.runtime.runner import Array, Runner


def session(bundle: Bundle) -> ort.InferenceSession:
    path = str(bundle.model("fp32", "onnxruntime"))
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture
def opened(bundle: Bundle) -> list[int]:
    """Batch sizes that a session was asked for."""
    return []


@pytest.fixture
def runner(bundle: Bundle, opened: list[int]) -> Iterator[Runner]:
    """As on a GPU, but for where the buffers are; four batch sizes stay."""
    plain = session(bundle)

    def session_for(batch: int) -> ort.InferenceSession:
        opened.append(batch)
        return plain

    alone = OneThread(BoundSession(session_for, "cpu", kept=4))
    with Runner(bundle, "onnxruntime", "fp32", alone, alone.close) as made:
        yield made


@pytest.fixture
def images(bundle: Bundle) -> Array:
    return bundle.manifest.preprocessing.normalise(bundle.sample_pixels())


@pytest.fixture
def expected(bundle: Bundle, images: Array) -> Array:
    """Of the same session without any binding."""
    logits: Array = session(bundle).run(None, {"images": images})[0]
    return logits


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_golden_logits(runner: Runner, bundle: Bundle) -> None:
    inputs, golden = bundle.golden()
    np.testing.assert_allclose(runner.logits(inputs), golden, atol=1e-4)


def test_batch_sizes_change_and_are_bound_once(
    runner: Runner, images: Array, expected: Array, opened: list[int]
) -> None:
    for size in (1, 16, 3, 1, 16, 3, 3):
        close(runner.logits(images[:size]), expected[:size])
    assert opened == [1, 16, 3]


def test_the_batch_size_unused_for_longest_makes_room(
    runner: Runner, images: Array, expected: Array, opened: list[int]
) -> None:
    for size in (1, 2, 3, 4, 1, 5, 1, 2):
        close(runner.logits(images[:size]), expected[:size])
    assert opened == [1, 2, 3, 4, 5, 2]


def test_results_are_not_overwritten(runner: Runner, images: Array, expected: Array) -> None:
    first = runner.logits(images[:4])
    second = runner.logits(images[4:8])
    close(first, expected[:4])
    close(second, expected[4:8])
    first[:] = 0
    close(runner.logits(images[:4]), expected[:4])


def test_several_threads_at_once(runner: Runner, images: Array, expected: Array) -> None:
    def ask(start: int) -> bool:
        size = 1 + start % 5
        rows = np.arange(start, start + size) % len(images)
        close(runner.logits(images[rows]), expected[rows])
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(40)))


def test_everything_runs_on_one_thread_of_its_own() -> None:
    seen = set()

    def infer(images: Array) -> Array:
        seen.add(threading.get_ident())
        return images

    alone = OneThread(infer)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(alone, [np.zeros((1, 1, 2, 2), np.float32)] * 9))
    assert len(seen) == 1 and threading.get_ident() not in seen
    alone.close()
    alone.close()
    with pytest.raises(RuntimeError):
        alone(np.zeros((1, 1, 2, 2), np.float32))


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 28, 28, 1), np.float32), np.zeros((2, 1, 28, 28))],
    ids=["as many numbers", "float64"],
)
def test_bytes_that_would_fit_are_refused(bundle: Bundle, images: Array) -> None:
    """ONNX Runtime copies bytes into the buffer, whatever they are."""
    plain = session(bundle)
    with pytest.raises(BackendError, match=r"expected float32 \(2, 1, 28, 28\)"):
        BoundSession(lambda batch: plain, "cpu")(images)


def test_a_graph_that_leaves_more_open_is_refused() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20]> g (float[N, 1, H, 8] images) => '
        "(float[N, K] logits) { logits = Flatten <axis = 1> (images) }"
    )
    content = onnx.parser.parse_model(text).SerializeToString()
    plain = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="only its first dimension open"):
        BoundSession(lambda batch: plain, "cpu")(np.zeros((1, 1, 8, 8), np.float32))


def test_no_two_buffers_share_the_number_of_a_graph(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph replays the addresses it was captured with; what is captured is bounded too."""
    monkeypatch.setattr("densenet_deploy.runtime.binding._MOST_GRAPHS", 4)
    plain = session(bundle)
    bound = BoundSession(lambda batch: plain, "cpu", kept=2)
    numbers = []
    for size in (1, 2, 3, 1, 2, 3):
        bound(np.zeros((size, 1, 28, 28), np.float32))
        options = bound._bound(size)._options
        numbers.append(int(options.get_run_config_entry("gpu_graph_id")))
    assert numbers == [1, 2, 3, 4, -1, -1]
