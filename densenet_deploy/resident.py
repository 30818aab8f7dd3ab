"""How far the resident memory of this process grows while it does something."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_STATUS = Path("/proc/self/status")


def peak_growth(action: Callable[[], T]) -> tuple[T, int]:
    """What `action` returns, and by how many bytes the resident set's peak in it exceeds the start.

    Memory that the process has freed but not given back is not seen to be used again: ask in a
    process that has done little before. Linux forgets the peak so far; elsewhere growth counts
    from the highest earlier peak.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = resident()
    result = action()
    return result, max(0, _status("VmHWM") - before)


def resident() -> int:
    """Bytes of this process in memory; where that is not known, the most there were so far."""
    return _status("VmRSS")


def _status(field: str) -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    from resource import RUSAGE_SELF, getrusage  # not on Windows

    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
