"""Observations against numpy over the tensors themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from densenet_deploy.errors import GraphError, MissingDependencyError
from densenet_deploy.quantize.calibrate import BINS, Observation, observe
from tests.graphs import graph, normal, serialized, tensors

BODY = """
    c = Conv(x, w) r = Relu(c) k = Concat <axis = 1>(r, x)
    p = GlobalAveragePool(k) f = Flatten(p) y = Conv(k, v)
"""
WEIGHTS = {"w": normal(3, 4, 1, 1), "v": normal(2, 7, 1, 1)}
COMPUTED = ["c", "r", "k", "f", "y"]


def by_channel(values: NDArray[Any]) -> NDArray[Any]:
    """(C, N * H * W) of (N, C, H, W)."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float64)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_extremes_means_and_histograms(batch_size: int) -> None:
    model, images = graph(BODY, WEIGHTS), normal(7, 4, 8, 8)
    images[6, 3, 7, 7] = -9  # alone in its batch, where that holds 1 or 3 images
    found = observe(model, ["x", *COMPUTED], images, batch_size, histograms=True)
    expected = {"x": images} | tensors(model, COMPUTED, images)
    assert list(found) == ["x", *COMPUTED]
    for name, seen in found.items():
        rows = by_channel(expected[name])
        np.testing.assert_allclose(seen.low, rows.min(1), rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(seen.high, rows.max(1), rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(seen.mean, rows.mean(1), rtol=1e-4, atol=1e-5, err_msg=name)
        assert seen.counts is not None and seen.counts.dtype == np.int64
        ends = zip(rows, seen.low, seen.high, seen.counts, strict=True)
        for row, low, high, counts in ends:
            assert counts.sum() == row.size
            reference, _ = np.histogram(row.clip(low, high), BINS, (low, high))
            moved = np.abs(np.cumsum(counts) - np.cumsum(reference)).max()
            assert moved <= 2, "a value on an edge of two bins may fall into either"
    assert found["x"].low[3] == -9


def test_histograms_only_where_asked_for() -> None:
    images = normal(2, 4, 8, 8)
    seen = observe(graph(BODY, WEIGHTS), ["r"], images)["r"]
    assert seen.counts is None and seen.merged().counts is None
    assert seen.merged().high == seen.high.max()


@settings(max_examples=30, derandomize=True)
@given(st.integers(1, 4), st.floats(-3, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_merged_is_the_tensor_as_one_channel(
    channels: int, spread: float, constant: bool, seed: int
) -> None:
    values = normal(2, channels, 9, 9, seed=seed)
    values *= np.exp(spread * normal(channels, seed=seed + 1)).reshape(-1, 1, 1)
    if constant:
        values[:, 0] = 0.25
    model = graph("y = Relu(x)", {}, f"float[N, {channels}, 9, 9] x")
    seen = observe(model, ["x"], values, histograms=True)["x"]
    merged = seen.merged()
    assert merged.low == values.min() and merged.high == values.max()
    assert merged.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-4, abs=1e-5)
    assert merged.counts is not None and merged.counts.sum() == values.size
    # A value moves by half a bin of its channel and half a bin of the tensor at most.
    reach = 1.01 * (merged.high - merged.low)[0] / BINS
    placed = np.repeat(merged.centers()[0], merged.counts[0])
    assert np.abs(placed - np.sort(values.ravel())).max() <= reach


def test_centers() -> None:
    seen = Observation(np.array([-1.0, 5.0]), np.array([1.0, 5.0]), np.zeros(2))
    edges = np.linspace(-1, 1, BINS + 1)
    np.testing.assert_allclose(seen.centers()[0], (edges[1:] + edges[:-1]) / 2)
    np.testing.assert_array_equal(seen.centers()[1], 5)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("index", [(0, 0, 0, 0), (1, 3, 7, 7)])
def test_what_is_not_finite_is_refused(value: float, index: tuple[int, ...]) -> None:
    images = normal(2, 4, 8, 8)
    images[index] = value
    with pytest.raises(GraphError, match="activation x is not finite during calibration"):
        observe(graph("y = Relu(x)", {}), ["x"], images)


def test_the_model_is_not_changed_and_repeated_names_are_observed_once() -> None:
    model = graph(BODY, WEIGHTS)
    before = serialized(model)
    found = observe(model, ["r", "x", "r"], normal(2, 4, 8, 8), histograms=True)
    assert list(found) == ["r", "x"] and serialized(model) == before


def test_progress_is_counted_in_batches() -> None:
    seen: list[Any] = []

    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        seen.append((description, total))
        for item in items:
            seen.append(item)
            yield item

    observe(graph(BODY, WEIGHTS), ["r"], normal(7, 4, 8, 8), 3, True, track)
    first, second = "Calibrating int8 (batches)", "Calibrating int8, histograms (batches)"
    assert seen == [(first, 3), 0, 3, 6, (second, 3), 0, 3, 6]


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="INT8 calibration needs onnxruntime"):
        observe(graph(BODY, WEIGHTS), ["r"], normal(2, 4, 8, 8))
