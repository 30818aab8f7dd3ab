"""Scales as each target takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.quantize.dialect import DIALECTS, Dialect, Scale, activation_scale, rounded
from densenet_deploy.recipe import Target

MAGNITUDES = st.floats(0, 1e4) | st.floats(0, 1e-6)


def test_every_target_has_one() -> None:
    assert set(DIALECTS) == set(get_args(Target))
    for target, dialect in DIALECTS.items():
        tensorrt = target.startswith("tensorrt")
        assert (dialect.signed, dialect.half, dialect.integers) == (
            tensorrt,
            tensorrt,
            not tensorrt,
        )


@settings(max_examples=200, derandomize=True)
@given(st.sampled_from(list(DIALECTS.values())), MAGNITUDES, MAGNITUDES)
def test_a_range_is_covered_and_zero_is_exact(dialect: Dialect, below: float, above: float) -> None:
    found = activation_scale(-below, above, dialect)
    scale, zero = float(found.scale), int(found.zero_point)
    first, last = found.levels
    assert scale > 0 and first <= zero <= last
    if dialect.signed:
        assert found.zero_point.dtype == np.int8 and zero == 0 and (first, last) == (-127, 127)
    else:
        assert found.zero_point.dtype == np.uint8 and (first, last) == (0, 255)
    # Half rounds a scale by at most one part in 2048, the zero-point is half a step off.
    reach = (0.5 + 127 / 2048 * dialect.half) * scale + 1e-5 * (below + above)
    assert (first - zero) * scale <= -below + reach
    assert (last - zero) * scale >= above - reach
    needed = max(below, above) / 127 if dialect.signed else (below + above) / 255
    tiny = np.finfo(np.float16 if dialect.half else np.float32).tiny
    assert scale <= max(needed * (1 + 1 / 1024), tiny), "and not wider than it has to be"


@pytest.mark.parametrize("low, high", [(2.0, 6.0), (-6.0, -2.0)])
@pytest.mark.parametrize("target", DIALECTS)
def test_a_range_on_one_side_of_zero(target: Target, low: float, high: float) -> None:
    wider = activation_scale(min(low, 0), max(high, 0), DIALECTS[target])
    assert activation_scale(low, high, DIALECTS[target]) == wider


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.floats(0, 6e4), min_size=1, max_size=4), st.booleans())
def test_rounded(scales: list[float], half: bool) -> None:
    kind = np.float16 if half else np.float32
    found = rounded(scales, replace(DIALECTS["tensorrt"], half=half))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.astype(kind).astype(np.float32), found)
    assert (found >= np.finfo(kind).tiny).all(), "neither zero nor subnormal"
    normal = np.array(scales) >= np.finfo(kind).tiny
    np.testing.assert_allclose(found[normal], np.array(scales)[normal], rtol=2.0**-11)


def test_scales_compare_by_value() -> None:
    assert Scale(np.float32(0.5), np.uint8(3)) == Scale(np.float32(0.5), np.uint8(3))
    assert Scale(np.float32(0.5), np.uint8(3)) != Scale(np.float32(0.5), np.uint8(4))
