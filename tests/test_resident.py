"""Growth of the resident set, of memory that is asked for and touched."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from densenet_deploy.resident import peak_growth

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak never starts anew")


@linux
@pytest.mark.parametrize("size", [64, 200])
def test_memory_that_is_freed_again_counts(size: int) -> None:
    result, growth = peak_growth(lambda: len(np.ones(size * MIB, np.uint8)))
    assert result == size * MIB
    assert 0.95 * size < growth / MIB < 1.2 * size + 8


@linux
def test_an_earlier_peak_does_not_count() -> None:
    np.ones(200 * MIB, np.uint8)
    _, growth = peak_growth(lambda: np.ones(8 * MIB, np.uint8).sum())
    assert growth < 100 * MIB


def test_nothing_grows_nothing() -> None:
    assert peak_growth(lambda: None)[1] < 4 * MIB
