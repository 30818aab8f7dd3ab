"""The only door to CUDA: is there a device to run on? Asks the driver itself, without bindings."""

from __future__ import annotations

import ctypes
import sys


def why_no_device() -> str:
    """Why nothing can run on a GPU here, as a clause; empty if something can. Never raises."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no CUDA device (no NVIDIA driver)"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"no CUDA device (driver error {status})"
    return "" if count.value else "no CUDA device"
