"""Growth of the resident set, of memory that is asked for and touched."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from densenet_deploy.resident import peak_growth

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak never starts anew")


@linux
@pytest.mark.parametrize("size", [64, 200])
def test_memory_that_is_freed_again_counts(size: int) -> None:
    # Not in this process: its allocator may have as much to hand out again.
    program = (
        "import sys, numpy as np; from densenet_deploy.resident import peak_growth\n"
        "size = int(sys.argv[1])\n"
        "print(*peak_growth(lambda: len(np.ones(size, np.uint8))))"
    )
    command = [sys.executable, "-c", program, str(size * MIB)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result, growth = map(int, done.stdout.split())
    assert result == size * MIB
    assert 0.95 * size < growth / MIB < 1.2 * size + 8


@linux
def test_an_earlier_peak_does_not_count() -> None:
    np.ones(200 * MIB, np.uint8)
    _, growth = peak_growth(lambda: np.ones(8 * MIB, np.uint8).sum())
    assert growth < 100 * MIB


def test_nothing_grows_nothing() -> None:
    assert peak_growth(lambda: None)[1] < 4 * MIB
