"""What `_cuda.py` gives to CUDA's runtime is taken by the real bindings, for want of a device.

Without one every function answers with an error status, once it has read its arguments: a wrong
name, number or type of them is another exception.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest

from densenet_deploy import _cuda
from densenet_deploy.errors import BackendError

pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
Closing = TypeVar("Closing", bound=_cuda._Closing)


@pytest.fixture(autouse=True)
def no_device() -> None:
    """With a device the invented handles below would reach it."""
    if not _cuda.why_no_device():
        pytest.skip("there is a device here: tests/gpu uses it")


def invented(kind: type[Closing], handle: int = 4096) -> Closing:
    """An object around a handle that nobody made."""
    thing = object.__new__(kind)
    thing._handle = handle
    return thing


def uses() -> dict[str, Callable[[], Any]]:
    """Each function of CUDA's, as `_cuda` calls it; what only follows a success is called here."""
    event, stream = invented(_cuda.Event), invented(_cuda.Stream)
    graph, recording = invented(_cuda.Graph), invented(_cuda._Recording)
    array = np.zeros(3, np.float32)
    return {
        "cudaSetDevice": lambda: _cuda.use_device(0),
        "cudaGetDevice": _cuda.current_device,
        "cudaGetDeviceProperties": lambda: _cuda.device_name(0),
        "cudaDeviceGetAttribute": lambda: _cuda.compute_capability(0),
        "cudaPointerGetAttributes": lambda: _cuda.device_of(4096),
        "cudaEventCreateWithFlags": lambda: _cuda.Event(timing=True),
        "cudaEventRecord": lambda: event.record(4096),
        "cudaEventSynchronize": lambda: event.since(event),
        "cudaEventElapsedTime": lambda: _cuda._call("cudaEventElapsedTime", 4096, 4096),
        "cudaEventDestroy": invented(_cuda.Event).close,
        "cudaStreamCreateWithFlags": _cuda.Stream,
        "cudaStreamSynchronize": stream.synchronize,
        "cudaStreamWaitEvent": lambda: _cuda.wait_for(4096, event),
        "cudaStreamDestroy": invented(_cuda.Stream).close,
        "cudaStreamBeginCapture": lambda: _cuda.capture(stream, lambda: None),
        "cudaStreamEndCapture": lambda: _cuda._call("cudaStreamEndCapture", 4096),
        "cudaGraphInstantiate": lambda: _cuda._call("cudaGraphInstantiate", 4096, 0),
        "cudaGraphLaunch": lambda: graph.launch(stream),
        "cudaGraphExecDestroy": graph.close,
        "cudaGraphDestroy": recording.close,
        "cudaMalloc": lambda: _cuda.DeviceBuffer(16),
        "cudaFree": invented(_cuda.DeviceBuffer).close,
        "cudaMallocHost": lambda: _cuda.PinnedBuffer((2, 3)),
        "cudaFreeHost": invented(_cuda.PinnedBuffer).close,
        "cudaMemcpyAsync": lambda: _cuda.copy_to_device(4096, array, stream),
    }


@pytest.mark.parametrize("name", uses())
def test_the_real_function_takes_our_arguments(name: str) -> None:
    with pytest.raises(BackendError, match=rf"^{name} failed: cudaError\w+, \w+"):
        uses()[name]()


def test_copies_go_both_ways() -> None:
    with pytest.raises(BackendError, match="cudaMemcpyAsync failed"):
        _cuda.copy_to_host(np.zeros(3, np.float32), 4096, invented(_cuda.Stream))


def test_copies_stay_on_the_device() -> None:
    with pytest.raises(BackendError, match="cudaMemcpyAsync failed"):
        _cuda.copy_on_device(4096, 8192, 12, invented(_cuda.Stream))


def test_the_driver_version_needs_no_driver() -> None:
    assert _cuda.driver_version() == "0.0"


def test_no_call_is_forgotten_here() -> None:
    """By the texts in the source that are names of functions."""
    called = set()
    for node in ast.walk(ast.parse(inspect.getsource(_cuda))):
        match node:
            case ast.Call(func=ast.Name(id="_call"), args=[ast.Constant(value=name), *_]):
                called.add(name)
            case ast.Assign(targets=[ast.Name(id="_free")], value=ast.Constant(value=name)):
                called.add(name)
    assert called - {"cudaDriverGetVersion"} == set(uses())
