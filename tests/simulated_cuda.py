"""A GPU in host memory: what `_cuda` needs of CUDA's runtime, by the real names.

Work waits in its stream and is done when something waits for it, on the memory its addresses then
point to; a captured graph keeps them. What a GPU answers with wrong numbers or a crash is an
AssertionError here. Every call is noted, and any one can be made to fail.
"""

from __future__ import annotations

import functools
import itertools
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
from cuda.bindings import runtime as real

DEVICE, HOST = real.cudaMemoryType.cudaMemoryTypeDevice, real.cudaMemoryType.cudaMemoryTypeHost
# These are done although their status says that something, often earlier work, went wrong.
DONE_ANYWAY = ("Free", "Destroy", "Synchronize", "EndCapture")
NEEDS_NO_DEVICE = ("cudaGetDevice", "cudaSetDevice", "cudaDeviceGet", "cudaDriverGet")


class Cuda(ModuleType):
    """`cuda.bindings.runtime` and its one device; functions it lacks and enums are the real ones.

    `calls` is every call of CUDA and TensorRT so far; the one numbered `failing` fails. `live` has
    what was made and not freed, by handle or address; `results` how many values each function gave.
    """

    def __init__(self):
        super().__init__("cuda.bindings.runtime")
        self.calls, self.failing, self.live, self.results = [], -1, {}, {}
        self._streams, self._captures, self._graves = {1: []}, {}, []
        self._lock, self._here = threading.RLock(), threading.local()
        self._numbers = itertools.count(1001)

    def __getattr__(self, name):
        if hasattr(Functions, name):
            return functools.partial(self._call, name)
        return getattr(real, name)

    def _call(self, name, *arguments):
        with self._lock:
            assert name.startswith(NEEDS_NO_DEVICE) or hasattr(self._here, "device"), (
                f"{name}: no device"
            )
            fails = self.fails(name, *arguments)
            if fails and not any(part in name for part in DONE_ANYWAY):
                return real.cudaError_t.cudaErrorMemoryAllocation, None
            value = getattr(Functions, name)(self, *arguments)
            if fails:
                self.live.pop(value, None)
                return real.cudaError_t.cudaErrorLaunchFailure, None
            values = [] if value is None else [value]
            self.results[name] = len(values)
            return real.cudaError_t.cudaSuccess, *values

    def fails(self, name, *arguments):
        self.calls.append((name, arguments))
        return len(self.calls) - 1 == self.failing

    def make(self, thing):
        number = next(self._numbers)
        self.live[number] = thing
        return number

    def block(self, address):
        """(base, array, kind) of the memory an address is in."""
        for base, thing in self.live.items():
            if isinstance(thing, tuple) and base <= address < base + thing[0].nbytes:
                return base, *thing
        return 0, None, None

    def floats(self, address, count, kind=DEVICE):
        """Memory of the device or page-locked memory of the host, as an array."""
        base, array, found = self.block(address)
        assert found == kind, f"{kind} at {address:#x}, found {found}"
        view = array[(address - base) // 4 :][:count]
        assert len(view) == count, "out of bounds"
        return view

    def add(self, stream, work):
        assert stream in self._streams, f"no stream {stream}"
        self._captures.get(stream, self._streams[stream]).append(work)

    def drain(self, stream):
        while self._streams[stream]:
            self._streams[stream].pop(0)()


def answers(failure):
    """A method of TensorRT's, noted among the calls; what it answers when it is to fail."""

    def wrap(method):
        @functools.wraps(method)
        def noted(self, *arguments, **keywords):
            with self._cuda._lock:
                if self._cuda.fails(method.__name__, *arguments):
                    return failure
                return method(self, *arguments, **keywords)

        return noted

    return wrap


class Functions:
    """CUDA's functions on a device; what they return follows the status."""

    def cudaGetDeviceCount(self):
        return 1

    def cudaSetDevice(self, index):
        self._here.device = index

    def cudaGetDevice(self):
        return getattr(self._here, "device", 0)

    def cudaDriverGetVersion(self):
        return 12080

    def cudaGetDeviceProperties(self, index):
        return SimpleNamespace(name=b"Simulated")

    def cudaDeviceGetAttribute(self, kind, index):
        return {"Major": 8, "Minor": 9}[kind.name[-5:]]

    def cudaPointerGetAttributes(self, address):
        kind = self.block(address)[2] or real.cudaMemoryType.cudaMemoryTypeUnregistered
        return SimpleNamespace(type=kind, device=0)

    def cudaMalloc(self, size, kind=DEVICE):
        count = -(-size // 4)
        array = np.full(count + 63, np.nan, np.float32)
        array = array[-array.ctypes.data % 256 // 4 :][:count]  # aligned as CUDA aligns
        self.live[array.ctypes.data] = (array, kind)
        return array.ctypes.data

    def cudaMallocHost(self, size):
        return Functions.cudaMalloc(self, size, HOST)

    def cudaFree(self, address, kind=DEVICE):
        array, found = self.live.pop(address)
        assert found == kind, f"{found} freed as {kind}"
        array[:] = np.nan
        self._graves.append(array)  # so that late readers meet NaN, not new memory

    def cudaFreeHost(self, address):
        Functions.cudaFree(self, address, HOST)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        names = {"Host": HOST, "Device": DEVICE}
        start, end = kind.name.removeprefix("cudaMemcpy").split("To")
        kinds = names[end], names[start]

        def copy():
            ends = zip((target, source), kinds, strict=True)
            to, origin = (self.floats(address, size // 4, kind) for address, kind in ends)
            to[:] = origin

        self.add(stream, copy)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == real.cudaStreamNonBlocking
        stream = self.make("stream")
        self._streams[stream] = []
        return stream

    def cudaStreamDestroy(self, stream):
        self.drain(stream)
        del self.live[stream], self._streams[stream]

    def cudaStreamSynchronize(self, stream):
        assert stream not in self._captures, "a capture does not allow it"
        self.drain(stream)

    def cudaEventCreateWithFlags(self, flags):
        return self.make(["event", None, flags])

    def cudaEventRecord(self, event, stream):
        point = [stream, False]
        self.live[event][1] = point
        self.add(stream, lambda: point.__setitem__(1, True))

    def cudaEventSynchronize(self, event):
        self.drain(self.live[event][1][0])

    def cudaEventElapsedTime(self, start, end):
        for _, point, flags in (self.live[start], self.live[end]):
            assert point[1] and flags == real.cudaEventDefault
        return 1.5

    def cudaStreamWaitEvent(self, stream, event, flags):
        point = self.live[event][1]
        self.add(stream, lambda: point[1] or self.drain(point[0]))

    def cudaEventDestroy(self, event):
        del self.live[event]

    def cudaStreamBeginCapture(self, stream, mode):
        assert stream != 1 and mode.name == "cudaStreamCaptureModeThreadLocal"
        self._captures[stream] = []

    def cudaStreamEndCapture(self, stream):
        return self.make(self._captures.pop(stream))

    def cudaGraphInstantiate(self, graph, flags):
        return self.make(list(self.live[graph]))

    def cudaGraphLaunch(self, graph, stream):
        for work in self.live[graph]:
            self.add(stream, work)

    cudaGraphDestroy = cudaGraphExecDestroy = cudaEventDestroy
