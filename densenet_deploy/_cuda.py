"""The only door to the CUDA bindings: is there a device to run on?"""

from __future__ import annotations

from ctypes.util import find_library


def device_count() -> int:
    """Number of CUDA devices; 0 without a driver or without cuda-python."""
    return _probe()[0]


def why_no_device() -> str:
    """Why nothing can run on a GPU here, as a clause; empty if something can. Never raises."""
    count, reason = _probe()
    return "" if count else reason


def _probe() -> tuple[int, str]:
    if find_library("cuda") is None and find_library("nvcuda") is None:
        return 0, "no CUDA device (no NVIDIA driver)"
    try:
        from cuda.bindings import runtime
    except ImportError:
        return 0, "cuda-python is not installed"
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess:  # such as 35, without a driver; count is None
        return 0, f"no CUDA device ({status.name})"
    return count, "no CUDA device"
