"""From what calibration observed to the range that 8 bits shall cover.

`minmax` covers everything; `percentile` leaves the rarest values outside; `mse` minimises the
expected square of rounding plus saturation; `entropy` minimises the KL divergence between the
histogram and its 8-bit version (Migacz, "8-bit inference with TensorRT", GTC 2017). The last two
shrink the observed range towards zero by one factor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.quantize.calibrate import BINS, Observation
from densenet_deploy.recipe import CalibrationMethod

Array = NDArray[np.float64]
_SHRINK = np.linspace(1.0, 0.25, 61)
_LEVELS = 256


def channel_ranges(
    observation: Observation, method: CalibrationMethod, percentile: float
) -> tuple[Array, Array]:
    """(low, high), each (C,), of every channel.

    Args:
        observation: With histograms, unless the method is `minmax`.
        method: How much of the observed values to cover.
        percentile: For the method of that name: the share of values, in percent, below the upper
            end and above the lower end.
    """
    if method == "minmax":
        return observation.low, observation.high
    assert observation.counts is not None
    if method == "percentile":
        return _percentiles(observation, percentile / 100)
    cost = _square_errors if method == "mse" else _divergences
    zero = np.clip(0.0, observation.low, observation.high)  # or the end that is nearest to it
    low, high = observation.low - zero, observation.high - zero
    costs = [cost(observation, zero + low * f, zero + high * f) for f in _SHRINK]
    factors = _SHRINK[np.argmin(costs, axis=0)]
    return zero + low * factors, zero + high * factors


def tensor_range(
    observation: Observation, method: CalibrationMethod, percentile: float
) -> tuple[float, float]:
    """(low, high) of the tensor as a whole."""
    low, high = channel_ranges(observation.merged(), method, percentile)
    return float(low[0]), float(high[0])


def _percentiles(observation: Observation, share: float) -> tuple[Array, Array]:
    assert observation.counts is not None
    below = np.cumsum(observation.counts, axis=1) / observation.counts.sum(axis=1, keepdims=True)
    step = (observation.high - observation.low) / BINS
    first = (below <= 1 - share).sum(axis=1)
    last = (below < share).sum(axis=1) + 1
    return observation.low + first * step, observation.low + last * step


def _square_errors(seen: Observation, low: Array, high: Array) -> Array:
    """(C,) sum over all values of the square of rounding or saturation."""
    centers, counts = seen.centers(), seen.counts
    clipped = np.clip(centers, low[:, None], high[:, None])
    rounding = ((high - low) / (_LEVELS - 1)) ** 2 / 12
    inside = clipped == centers
    errors: Array = (counts * np.where(inside, rounding[:, None], (centers - clipped) ** 2)).sum(1)
    return errors


def _divergences(seen: Observation, low: Array, high: Array) -> Array:
    assert seen.counts is not None
    channels = zip(seen.counts, seen.centers(), low, high, strict=True)
    return np.array([_divergence(*channel) for channel in channels])


def _divergence(counts: NDArray[np.int64], centers: Array, low: float, high: float) -> float:
    """KL divergence of the clipped histogram from its version on 256 levels.

    An atom, such as the zeros of a ReLU, is on a level or half a step from one. Spread over the
    bins of its level it would outweigh everything else, so a bin counts no more than its larger
    neighbour.
    """
    padded = np.pad(counts, 1)
    counts = np.minimum(counts, np.maximum(padded[:-2], padded[2:]))
    inside = np.flatnonzero((centers >= low) & (centers <= high))
    if len(inside) == 0 or not counts.any():
        return np.inf
    kept = counts[inside].astype(np.float64)
    clipped = kept.copy()  # what lies outside is counted at the ends
    clipped[0] += counts[: inside[0]].sum()
    clipped[-1] += counts[inside[-1] + 1 :].sum()
    level = np.arange(len(kept)) * _LEVELS // len(kept)
    occupied = clipped > 0
    sums = np.bincount(level, kept, _LEVELS)
    bins = np.bincount(level, occupied, _LEVELS)
    spread = np.where(occupied, (sums / np.maximum(bins, 1))[level], 0.0)
    p = clipped / clipped.sum()
    q = np.maximum(spread / max(spread.sum(), 1.0), 1e-12)
    return float((p[occupied] * np.log(p[occupied] / q[occupied])).sum())
