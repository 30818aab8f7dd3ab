"""Statistics of paired samples: speed ratios of interleaved timings, and accuracy drops.

Both are differences of two things seen under the same conditions: two sides timed in the same
round, two graphs asked about the same image. What disturbs both at once cancels out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Verdict = Literal["pass", "fail", "not decided"]

LEAST_PAIRS = 20  # fewer decide nothing
LEAST_BLOCKS = 5  # fewer do not show how much blocks differ
_RESAMPLES = 10_000
_SEED = 0
_Z = 1.6448536269514722  # 95 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Ratio:
    """How many times longer one side takes than the other.

    Attributes:
        median: Of the ratios of all pairs.
        low: Lower end of its two-sided 95 % interval.
        high: Upper end.
        pairs: Number of pairs.
    """

    median: float
    low: float
    high: float
    pairs: int

    def verdict(self, floor: float) -> Verdict:
        """Whether the ratio reaches `floor`.

        A floor above 1 claims a gain: it passes where the whole interval reaches it, fails where
        none of the interval does, and is not decided between. A floor of 1 or less claims no loss:
        it fails only where the interval shows a loss, and passes otherwise. Fewer than 20 pairs
        decide nothing.
        """
        if self.pairs < LEAST_PAIRS:
            return "not decided"
        if self.high < floor:
            return "fail"
        return "pass" if floor <= 1 or self.low >= floor else "not decided"

    def summary(self) -> str:
        """One line for people."""
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def ratio(a_seconds: Sequence[float], b_seconds: Sequence[float], block: int = 1) -> Ratio:
    """Median of a / b over all pairs, with its 95 % percentile bootstrap interval.

    The pairs are resampled, 10,000 times with a fixed seed (Efron, Annals of Statistics 7, 1979).

    Args:
        a_seconds: Seconds of one side, round by round.
        b_seconds: Seconds of the other, in the same rounds; a / b says how many times faster it is.
        block: Consecutive pairs that share what may differ from block to block, such as the
            launch of a process; they are resampled together.

    Raises:
        ValueError: Not the same number of samples, none, or one that is not positive.
    """
    a, b = np.asarray(a_seconds, np.float64), np.asarray(b_seconds, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"samples of shapes {a.shape} and {b.shape} are no pairs")
    if not (np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)).all():
        raise ValueError("every sample must be a positive number of seconds")
    if a.size % block:
        raise ValueError(f"{a.size} pairs are no blocks of {block}")
    ratios: NDArray[np.float64] = a / b
    blocks = ratios.reshape(-1, block)
    rows = np.random.default_rng(_SEED).integers(len(blocks), size=(_RESAMPLES, len(blocks)))
    medians = np.median(blocks[rows].reshape(_RESAMPLES, -1), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


def block_size(pairs: int, most: int) -> int:
    """Pairs to a block: as many as leave five blocks and no rest, up to `most`; otherwise one."""
    sizes = range(min(most, pairs // LEAST_BLOCKS), 0, -1)
    return next((size for size in sizes if pairs % size == 0), 1)


def check_rounds(pairs: int, block: int) -> None:
    """Refuses rounds that decide nothing.

    Raises:
        ValueError: Too few pairs or blocks, or a last block that is not complete.
    """
    if pairs < LEAST_PAIRS or block < 1 or pairs % block or pairs // block < LEAST_BLOCKS:
        raise ValueError(
            f"pairs must be at least {LEAST_PAIRS}, and a multiple of block, "
            f"{LEAST_BLOCKS} times at least"
        )


@dataclass(frozen=True)
class AccuracyDrop:
    """What a candidate loses in accuracy against a reference on the same images.

    Attributes:
        points: Accuracy of the reference minus that of the candidate, in percentage points.
        upper: Upper 95 % bound of `points`, one-sided.
        images: Their number.
        lost: Images that only the reference gets right.
        gained: Images that only the candidate gets right.
    """

    points: float
    upper: float
    images: int
    lost: int
    gained: int

    def summary(self) -> str:
        """One line for people."""
        return (
            f"drop {self.points:.2f} points, at most {self.upper:.2f} with 95 % confidence "
            f"({self.lost} lost, {self.gained} gained of {self.images} images)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def accuracy_drop(reference_correct: ArrayLike, candidate_correct: ArrayLike) -> AccuracyDrop:
    """Paired difference of two accuracies with its one-sided upper 95 % bound.

    The bound is the end of Tango's score interval (Statistics in Medicine 17, 1998): the largest
    difference that a score test of level 5 % does not reject. It exists for any counts: where the
    two never differ it is z^2 / (N + z^2), and 1.0 where the candidate loses everything.

    Args:
        reference_correct: Truth values (N,): whether the reference is right about each image.
        candidate_correct: Likewise, of the same images in the same order.

    Raises:
        ValueError: Not the same number of images, or none.
    """
    reference = np.asarray(reference_correct, np.bool_)
    candidate = np.asarray(candidate_correct, np.bool_)
    if reference.shape != candidate.shape or reference.ndim != 1 or not reference.size:
        raise ValueError(f"answers of shapes {reference.shape} and {candidate.shape} are no pairs")
    lost = int((reference & ~candidate).sum())
    gained = int((~reference & candidate).sum())
    images = len(reference)
    upper = _tango_upper(lost, gained, images)
    return AccuracyDrop(100 * (lost - gained) / images, 100 * upper, images, lost, gained)


def _tango_upper(lost: int, gained: int, images: int) -> float:
    """Root of the score statistic at -z, which falls with the difference: by bisection."""
    low, high = (lost - gained) / images, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(middle, lost, gained, images) > -_Z:
            low = middle
        else:
            high = middle
    return high


def _score(difference: float, lost: int, gained: int, images: int) -> float:
    """Tango's statistic of the hypothesis P(lost) - P(gained) = `difference`, above the estimate.

    P(gained) in its variance is the maximum-likelihood one under the hypothesis: the larger root
    of a quadratic.
    """
    a = 2 * images
    b = -lost - gained + (2 * images - lost + gained) * difference
    c = -gained * difference * (1 - difference)
    p_gained = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = images * (2 * p_gained + difference * (1 - difference))
    excess = lost - gained - images * difference
    if variance <= 0:
        return 0.0 if excess >= 0 else -math.inf
    return excess / math.sqrt(variance)
