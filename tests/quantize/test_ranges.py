"""Ranges against the samples themselves, brute force and ONNX Runtime's calibrator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector
from scipy.optimize import minimize_scalar
from scipy.stats import entropy

from densenet_deploy.quantize.calibrate import BINS, Observation, observe
from densenet_deploy.quantize.ranges import channel_ranges, tensor_range
from densenet_deploy.recipe import CalibrationMethod
from tests.graphs import graph

Samples = NDArray[np.float32]
METHODS: tuple[CalibrationMethod, ...] = ("minmax", "percentile", "mse", "entropy")
DRAWN: dict[str, Callable[[np.random.Generator, int], NDArray[Any]]] = {
    "normal": lambda rng, size: rng.normal(0, 2, size),
    "laplace": lambda rng, size: rng.laplace(0, 1, size),
    "skewed": lambda rng, size: rng.gamma(2, 1, size) - 1,
    "uniform": lambda rng, size: rng.uniform(-0.5, 1, size),
}


def drawn(kind: str, size: int = 20_000, seed: int = 0) -> Samples:
    return DRAWN[kind](np.random.default_rng(seed), size).astype(np.float32)


def observed(*channels: NDArray[Any]) -> Observation:
    """An observation, with histograms, of samples (C, n)."""
    rows = np.stack(channels).astype(np.float32)
    model = graph("y = Relu(x)", {}, f"float[N, {len(rows)}, 1, M] x", "float[N, K, P, Q] y")
    return observe(model, ["x"], rows[None, :, None], histograms=True)["x"]


def ends(
    seen: Observation, method: CalibrationMethod, percentile: float = 99.9
) -> tuple[float, float]:
    low, high = channel_ranges(seen, method, percentile)
    return float(low[0]), float(high[0])


def error(samples: Samples, factor: float) -> float:
    """Mean square error of samples on 256 levels over their shrunken range."""
    low, high = float(samples.min()) * factor, float(samples.max()) * factor
    step = (high - low) / 255
    restored = low + np.rint((samples.clip(low, high) - low) / step) * step
    return float(np.square(samples - restored).mean())


def test_minmax_covers_everything() -> None:
    seen = observed(drawn("normal"), drawn("skewed"))
    low, high = channel_ranges(seen, "minmax", 99)
    np.testing.assert_array_equal(low, seen.low)
    np.testing.assert_array_equal(high, seen.high)


@settings(max_examples=40, derandomize=True)
@given(
    st.sampled_from(list(DRAWN)),
    st.floats(50.1, 99.99),
    st.sampled_from([10, 997, 5003]),
    st.integers(0, 2**32 - 1),
)
def test_percentiles_are_quantiles(kind: str, percentile: float, size: int, seed: int) -> None:
    samples = drawn(kind, size, seed)
    low, high = ends(observed(samples), "percentile", percentile)
    bins = 1.001 * float(samples.max() - samples.min()) / BINS
    share = percentile / 100
    top = np.quantile(samples, share, method="inverted_cdf")
    bottom = -np.quantile(-samples, share, method="inverted_cdf")
    slack = 1e-5 * np.abs(samples).max()
    assert top - slack <= high <= top + bins + slack
    assert bottom - bins - slack <= low <= bottom + slack


@pytest.mark.parametrize("kind", DRAWN)
def test_mse_against_brute_force(kind: str) -> None:
    samples = drawn(kind)
    low, high = ends(observed(samples), "mse")
    factor = high / samples.max()
    assert low / samples.min() == pytest.approx(factor)
    least = min(error(samples, candidate) for candidate in np.linspace(0.25, 1, 151))
    best = minimize_scalar(lambda f: error(samples, f), bounds=(0.25, 1), method="bounded")
    assert error(samples, factor) <= 1.05 * min(least, best.fun)


def divergence(samples: Samples, factor: float) -> float:
    """KL divergence as in the talk, by numpy's split and scipy's entropy."""
    low, high = float(samples.min()), float(samples.max())
    counts, edges = np.histogram(samples, BINS, (low, high))
    centers = (edges[1:] + edges[:-1]) / 2
    inside = np.flatnonzero((centers >= low * factor) & (centers <= high * factor))
    kept = counts[inside].astype(np.float64)
    clipped = kept.copy()
    clipped[[0, -1]] += counts[: inside[0]].sum(), counts[inside[-1] + 1 :].sum()
    levels = []
    for part in np.array_split(np.arange(len(kept)), 256):
        occupied = clipped[part] > 0
        levels.append(occupied * kept[part].sum() / max(occupied.sum(), 1))
    return float(entropy(clipped, np.maximum(np.concatenate(levels), 1e-12 * kept.sum())))


@pytest.mark.parametrize("kind", DRAWN)
def test_entropy_against_scipy(kind: str) -> None:
    samples = drawn(kind, 200_000)
    _, high = ends(observed(samples), "entropy")
    candidates = [divergence(samples, factor) for factor in np.linspace(0.25, 1, 61)]
    assert divergence(samples, high / samples.max()) <= 1.2 * min(candidates) + 1e-3


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_entropy_against_onnxruntime(kind: str) -> None:
    samples = drawn(kind, 200_000)
    reach = np.abs(samples).max()
    counts, edges = np.histogram(samples, BINS, (-reach, reach))
    collector = object.__new__(HistogramCollector)
    histogram = (counts, edges, samples.min(), samples.max(), reach)
    _, expected = HistogramCollector.get_entropy_threshold(collector, histogram, 256)
    found = ends(observed(samples), "entropy")[1]
    assert found == pytest.approx(float(expected), abs=0.15 * float(reach))


@pytest.mark.parametrize("atom", [0.0, -0.6])
@pytest.mark.parametrize("method", METHODS)
def test_an_atom_does_not_shrink_a_range(method: CalibrationMethod, atom: float) -> None:
    """A ReLU's zeros and an image's background lie on a level, whatever the range."""
    samples = drawn("normal", 100_000)
    samples[0] = -samples[1:].max()
    with_atom = samples.copy()
    with_atom[2::2] = atom
    rectified = np.maximum(samples, 0)
    for values in (with_atom, rectified):
        _, high = ends(observed(values), method)
        assert high >= 0.75 * np.quantile(samples, 0.9999), "as without the atom"


@settings(max_examples=25, derandomize=True)
@given(
    st.lists(st.sampled_from(list(DRAWN)), min_size=1, max_size=3),
    st.sampled_from(METHODS),
    st.integers(-6, 6),
    st.integers(0, 2**32 - 1),
)
def test_inside_what_was_observed_and_in_its_unit(
    kinds: list[str], method: CalibrationMethod, exponent: int, seed: int
) -> None:
    rows = [drawn(kind, 500, seed + index) for index, kind in enumerate(kinds)]
    seen = observed(*rows)
    low, high = channel_ranges(seen, method, 99)
    slack = 1e-9 * (seen.high - seen.low)
    assert (seen.low - slack <= low).all() and (high <= seen.high + slack).all()
    assert (low < high).all()
    scaled = channel_ranges(observed(*(row * 2.0**exponent for row in rows)), method, 99)
    np.testing.assert_allclose(scaled, (low * 2.0**exponent, high * 2.0**exponent), rtol=1e-6)
    whole = channel_ranges(seen.merged(), method, 99)
    assert tensor_range(seen, method, 99) == (whole[0][0], whole[1][0])


def test_a_higher_percentile_covers_more() -> None:
    seen = observed(drawn("laplace"))
    found = [ends(seen, "percentile", percentile) for percentile in (51, 75, 90, 99, 99.9, 100)]
    lows, highs = zip(*found, strict=True)
    assert sorted(lows, reverse=True) == list(lows) and sorted(highs) == list(highs)
    assert found[-1] == pytest.approx((seen.low[0], seen.high[0]))


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_channel(method: CalibrationMethod, value: float) -> None:
    low, high = ends(observed(np.full(100, value)), method)
    assert np.isfinite([low, high]).all() and low <= high and abs(high) <= abs(value) + 1e-6
