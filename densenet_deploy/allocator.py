"""How this process's C library hands out memory: large blocks are kept when they are freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = -1  # malloc.h takes it as the largest size


def keep_freed_memory() -> bool:
    """Stops glibc from returning each large block to the kernel when it is freed.

    A training step on a CPU frees and asks for the same blocks again and again, and a new one costs
    a page fault for each 4 KiB. The process then never shrinks below its peak.

    Returns:
        Whether this C library has such settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def release_freed_memory() -> None:
    """Gives what is free back to the kernel, whatever `keep_freed_memory` says; with glibc."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
