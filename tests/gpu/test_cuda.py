"""The door to CUDA on a device: skipped elsewhere, with the reason."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from densenet_deploy import _cuda
from densenet_deploy.errors import BackendError

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
REASON = _cuda.why_no_device()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(REASON), reason=f"CUDA has nothing to run on here: {REASON}"),
]
SHAPE = (1 << 10, 3)


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    _cuda.use_device(0)
    yield


def test_the_device_is_described() -> None:
    """Against nvidia-smi, which asks the driver by another way."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no nvidia-smi: {error}")
    told = {tuple(line.split(", ")) for line in done.stdout.splitlines()}
    assert (_cuda.device_name(0), _cuda.compute_capability(0)) in told
    assert tuple(map(int, _cuda.driver_version().split("."))) >= (12, 0)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(BackendError, match="cudaSetDevice failed: cudaErrorInvalidDevice"):
        _cuda.use_device(63)
    _cuda.use_device(0)
    with _cuda.DeviceBuffer(4) as buffer:  # the error before is not told again
        assert buffer.handle % 256 == 0


def test_a_graph_copies_there_and_back_each_time_it_is_launched() -> None:
    with ExitStack() as made:
        stream, start, end = (
            made.enter_context(one)
            for one in (_cuda.Stream(), _cuda.Event(timing=True), _cuda.Event(timing=True))
        )
        source, target = (made.enter_context(_cuda.PinnedBuffer(SHAPE)) for _ in range(2))
        buffer = made.enter_context(_cuda.DeviceBuffer(source.array.nbytes))

        def work() -> None:
            _cuda.copy_to_device(buffer.handle, source.array, stream)
            _cuda.copy_to_host(target.array, buffer.handle, stream)

        target.array[:] = -1
        graph = made.enter_context(_cuda.capture(stream, work))
        stream.synchronize()
        assert (target.array == -1).all(), "a capture does not compute"
        for turn in range(3):
            source.array[:] = np.arange(source.array.size).reshape(SHAPE) + turn
            start.record(stream.handle)
            graph.launch(stream)
            end.record(stream.handle)
            assert 0 < end.since(start) < 10_000
            np.testing.assert_array_equal(target.array, source.array)


def test_streams_wait_for_events() -> None:
    """The second stream reads what the first writes last."""
    with ExitStack() as made:
        first, second = (made.enter_context(_cuda.Stream()) for _ in range(2))
        event = made.enter_context(_cuda.Event())
        source, target = (made.enter_context(_cuda.PinnedBuffer((1 << 22,))) for _ in range(2))
        buffer = made.enter_context(_cuda.DeviceBuffer(source.array.nbytes))
        for turn in range(20):
            source.array[:] = turn
            _cuda.copy_to_device(buffer.handle, source.array, first)
            event.record(first.handle)
            _cuda.wait_for(second.handle, event)
            _cuda.copy_to_host(target.array, buffer.handle, second)
            second.synchronize()
            assert (target.array == turn).all()


def test_whose_memory_it_is() -> None:
    with _cuda.DeviceBuffer(64) as buffer, _cuda.PinnedBuffer((4,)) as pinned:
        assert _cuda.device_of(buffer.handle) == 0
        assert _cuda.device_of(pinned.handle) is None
    assert _cuda.device_of(np.zeros(4, np.float32).ctypes.data) is None
    status, managed = runtime.cudaMallocManaged(64, runtime.cudaMemAttachGlobal)
    assert status == runtime.cudaError_t.cudaSuccess
    assert _cuda.device_of(int(managed)) == 0
    runtime.cudaFree(managed)


def test_what_cannot_be_captured_is_said_and_the_stream_works_on() -> None:
    with _cuda.Stream() as stream:
        with pytest.raises(BackendError, match="cudaErrorStreamCapture"):
            _cuda.capture(stream, stream.synchronize)
        stream.synchronize()
        _cuda.capture(stream, lambda: None).close()
