"""The only door to CUDA: devices, streams, events, memory and graphs over cuda-python.

Opened when first used. Every status is checked: a failure is a `BackendError` with CUDA's own name
and text. Handles and addresses are integers; whoever makes an object closes it.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.errors import BackendError

_RUNTIME = "cuda.bindings.runtime"


def why_no_device() -> str:
    """Why nothing can run on a GPU here, as a clause; empty if something can. Never raises.

    cuda-python is asked where it is installed, since it alone notices a driver older than the
    CUDA runtime it brings; elsewhere the driver itself.
    """
    try:
        runtime = importlib.import_module(_RUNTIME)
    except ImportError:
        return _why_no_driver()
    try:
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError:  # how 12.8 says that there is no driver
        return _why_no_driver()
    if status == runtime.cudaError_t.cudaErrorInsufficientDriver:  # too old, or none at all
        return _why_no_driver() or f"no CUDA device ({_describe(runtime, status)})"
    if status != runtime.cudaError_t.cudaSuccess:
        return f"no CUDA device ({_describe(runtime, status)})"
    return "" if count else "no CUDA device"


def _why_no_driver() -> str:
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no CUDA device (no NVIDIA driver)"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"no CUDA device (driver error {status})"
    return "" if count.value else "no CUDA device"


def use_device(index: int) -> None:
    """Makes a device the current one of the calling thread, which every use below needs.

    Raises:
        BackendError: There is no such device.
    """
    _call("cudaSetDevice", index)


def current_device() -> int:
    """The device that the calling thread uses: the first, if it never chose one."""
    return int(_call("cudaGetDevice"))


@contextmanager
def on_device(index: int) -> Iterator[None]:
    """Makes a device the current one for a block; other libraries find theirs again after it.

    Raises:
        BackendError: There is no such device.
    """
    before = current_device()
    use_device(index)
    try:
        yield
    finally:
        if before != index:
            use_device(before)


def device_name(index: int) -> str:
    """The device's own name for itself, such as `NVIDIA L4`."""
    return str(_call("cudaGetDeviceProperties", index).name.decode())


def compute_capability(index: int) -> str:
    """Compute capability of a device, such as `8.9`."""
    attributes = _runtime().cudaDeviceAttr
    kinds = (
        attributes.cudaDevAttrComputeCapabilityMajor,
        attributes.cudaDevAttrComputeCapabilityMinor,
    )
    return ".".join(str(_call("cudaDeviceGetAttribute", kind, index)) for kind in kinds)


def device_of(address: int) -> int | None:
    """Index of the device that memory belongs to; None for memory of the host alone."""
    found = _call("cudaPointerGetAttributes", address)
    kinds = _runtime().cudaMemoryType
    on_device = (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged)
    return int(found.device) if found.type in on_device else None


def driver_version() -> str:
    """Latest CUDA version the driver supports, such as `13.0`; `0.0` without a driver."""
    version = _call("cudaDriverGetVersion")
    return f"{version // 1000}.{version % 1000 // 10}"


class _Closing:
    """A context manager that frees one handle once; closing again does nothing."""

    _handle: int | None
    _free: str

    def __init__(self, handle: Any) -> None:
        self._handle = int(handle)

    @property
    def handle(self) -> int:
        """The open handle or address."""
        assert self._handle is not None, f"a closed {type(self).__name__} is used"
        return self._handle

    def close(self) -> None:
        """Frees it; what CUDA calls an error then is often that of earlier, asynchronous work."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _call(self._free, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Event(_Closing):
    """A point in the work of a stream.

    Args:
        timing: Keep the time as well, for `since`.
    """

    _free = "cudaEventDestroy"

    def __init__(self, timing: bool = False) -> None:
        runtime = _runtime()
        flag = runtime.cudaEventDefault if timing else runtime.cudaEventDisableTiming
        super().__init__(_call("cudaEventCreateWithFlags", flag))

    def record(self, stream: int) -> None:
        """Marks the end of what has been given to a stream so far."""
        _call("cudaEventRecord", self.handle, stream)

    def since(self, start: Event) -> float:
        """Milliseconds from one recorded event to this one, once this one has happened."""
        _call("cudaEventSynchronize", self.handle)
        return float(_call("cudaEventElapsedTime", start.handle, self.handle))


class Stream(_Closing):
    """Work in order. It does not wait for the default stream, and is never that one."""

    _free = "cudaStreamDestroy"

    def __init__(self) -> None:
        super().__init__(_call("cudaStreamCreateWithFlags", _runtime().cudaStreamNonBlocking))

    def synchronize(self) -> None:
        """Waits until all work is done; errors of that work are raised here."""
        _call("cudaStreamSynchronize", self.handle)


class Graph(_Closing):
    """Captured work that is launched in one call, on the addresses it was captured with."""

    _free = "cudaGraphExecDestroy"

    def launch(self, stream: Stream) -> None:
        """Adds the work to a stream."""
        _call("cudaGraphLaunch", self.handle, stream.handle)


class _Recording(_Closing):
    _free = "cudaGraphDestroy"


def capture(stream: Stream, work: Callable[[], None]) -> Graph:
    """Records what `work` gives to a stream, which does not do it, for launching it later.

    Only this thread is watched for calls that a capture does not allow.

    Raises:
        BackendError: Something in it cannot be captured.
    """
    mode = _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    _call("cudaStreamBeginCapture", stream.handle, mode)
    try:
        work()
    except BaseException:
        _abandon_capture(stream)
        raise
    with ExitStack() as made:
        with _Recording(_call("cudaStreamEndCapture", stream.handle)) as recording:
            graph = made.enter_context(Graph(_call("cudaGraphInstantiate", recording.handle, 0)))
        made.pop_all()
    return graph


def _abandon_capture(stream: Stream) -> None:
    """Ends a capture that failed: the first error is the one to tell, whatever this says."""
    with suppress(BackendError):
        _Recording(_call("cudaStreamEndCapture", stream.handle)).close()


class DeviceBuffer(_Closing):
    """Memory of the current device; `handle` is its address, aligned to 256 bytes."""

    _free = "cudaFree"

    def __init__(self, size: int) -> None:
        super().__init__(_call("cudaMalloc", max(size, 1)))
        self.size = size


class PinnedBuffer(_Closing):
    """Page-locked memory of the host, which copies without a detour.

    Args:
        shape: Of its array.
    """

    _free = "cudaFreeHost"

    def __init__(self, shape: tuple[int, ...]) -> None:
        count = int(np.prod(shape))
        super().__init__(_call("cudaMallocHost", 4 * count))
        memory = (ctypes.c_float * count).from_address(self.handle)
        self.array: NDArray[np.float32] = np.ctypeslib.as_array(memory).reshape(shape)


def copy_to_device(target: int, source: NDArray[np.float32], stream: Stream) -> None:
    """Copies page-locked memory to a device address, in the order of a stream."""
    kind = _runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
    _call("cudaMemcpyAsync", target, source.ctypes.data, source.nbytes, kind, stream.handle)


def copy_to_host(target: NDArray[np.float32], source: int, stream: Stream) -> None:
    """Copies a device address to page-locked memory, in the order of a stream."""
    kind = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
    _call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, kind, stream.handle)


def copy_on_device(target: int, source: int, size: int, stream: Stream) -> None:
    """Copies bytes from one device address to another, in the order of a stream."""
    kind = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToDevice
    _call("cudaMemcpyAsync", target, source, size, kind, stream.handle)


def wait_for(stream: int, event: Event) -> None:
    """Lets all later work of a stream wait for an event."""
    _call("cudaStreamWaitEvent", stream, event.handle, 0)


def dlpack_view(array: Any, stream: int) -> Any:
    """cuda.core's `StridedMemoryView` of an object that speaks DLPack.

    Args:
        array: Has `__dlpack__`.
        stream: Handle of the stream in whose order it will be used.

    Raises:
        BackendError: cuda.core is not installed, or the object does not give its memory away.
    """
    try:
        utils = importlib.import_module("cuda.core.utils")
    except ImportError:
        raise BackendError(
            f"{type(array).__name__} offers DLPack, which needs cuda-core",
            remedy="pip install cuda-core, or give an object with __cuda_array_interface__",
        ) from None
    try:
        return utils.StridedMemoryView.from_dlpack(array, stream_ptr=stream)
    except Exception as error:  # whatever the exporting library raises
        raise BackendError(f"{type(array).__name__} gives no DLPack view: {error}") from error


def _runtime() -> ModuleType:
    try:
        return importlib.import_module(_RUNTIME)
    except ImportError as error:
        raise BackendError(
            f"{_RUNTIME} cannot be imported ({error})",
            expected="cuda-python 12.8 or newer",
            remedy="pip install cuda-python",
        ) from None


def _call(name: str, *arguments: Any) -> Any:
    """Calls a function of CUDA's runtime: its value, or an error if its status is one."""
    runtime = _runtime()
    status, *values = getattr(runtime, name)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        raise BackendError(f"{name} failed: {_describe(runtime, status)}")
    return values[0] if values else None


def _describe(runtime: ModuleType, status: Any) -> str:
    """`cudaErrorNoDevice, no CUDA-capable device is detected`."""
    texts = (runtime.cudaGetErrorName(status)[1], runtime.cudaGetErrorString(status)[1])
    return ", ".join(text.decode() for text in texts)
