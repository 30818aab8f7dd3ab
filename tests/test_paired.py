"""Paired statistics against scipy, a published closed form, a printed example and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from densenet_deploy import paired
from densenet_deploy.paired import (
    LEAST_BLOCKS,
    AccuracyDrop,
    Ratio,
    accuracy_drop,
    block_size,
    ratio,
)


def timings(rounds: int, speedup: float, seed: int, noise: float = 0.03) -> tuple[Any, Any]:
    """Two sides on a machine whose speed wanders: what disturbs a round disturbs both."""
    generator = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(generator.normal(0, 0.1, rounds)))
    a = 0.02 * drift * np.exp(generator.normal(0, noise, rounds))
    b = 0.02 / speedup * drift * np.exp(generator.normal(0, noise, rounds))
    return a, b


def drop_of(lost: int, gained: int, images: int) -> AccuracyDrop:
    """Answers with so many discordant images."""
    reference, candidate = np.ones(images, bool), np.ones(images, bool)
    candidate[:lost] = False
    reference[lost : lost + gained] = False
    return accuracy_drop(reference, candidate)


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    found = ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])
    assert (found.median, found.pairs) == (3.0, 3)
    assert 2.0 <= found.low <= 3.0 <= found.high <= 4.0
    assert found.to_dict().keys() == {"median", "low", "high", "pairs"}
    assert Ratio(1.234, 1.1, 1.456, 24).summary() == "1.23 [1.10, 1.46]"


def test_the_same_samples_give_the_same_interval() -> None:
    a, b = timings(24, 1.7, 0)
    assert ratio(a, b) == ratio(list(a), list(b))


def test_what_disturbs_both_sides_of_a_round_cancels_out() -> None:
    drift = np.geomspace(1, 50, 24)
    found = ratio(0.03 * drift, 0.02 * drift)
    assert found.low == pytest.approx(1.5) == found.high


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_is_scipys_percentile_bootstrap(seed: int) -> None:
    a, b = timings(24, 1.7, seed)
    expected = stats.bootstrap(
        (a / b,), np.median, method="percentile", n_resamples=20_000, rng=seed + 100
    ).confidence_interval
    found = ratio(a, b)
    # Resampled medians are few distinct numbers, half a gap between neighbours apart.
    gap = np.diff(np.sort(a / b)).max()
    assert found.low == pytest.approx(expected.low, abs=gap / 2)
    assert found.high == pytest.approx(expected.high, abs=gap / 2)


def test_the_interval_covers_the_truth_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paired, "_RESAMPLES", 1000)
    found = [ratio(*timings(24, 1.7, seed)) for seed in range(400)]
    covered = sum(f.low <= 1.7 <= f.high for f in found) / len(found)
    assert 0.91 <= covered <= 0.98  # 95 % +- the noise of 400 trials and of a bootstrap from 24


@pytest.mark.parametrize(
    "a, b", [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]]), ([0.0], [1.0]), ([1.0], [math.nan])]
)
def test_what_is_no_pair_is_refused(a: Any, b: Any) -> None:
    with pytest.raises(ValueError):
        ratio(a, b)


@pytest.mark.parametrize(
    "low, high, floor, verdict",
    [
        (1.71, 1.80, 1.7, "pass"),
        (1.70, 1.80, 1.7, "pass"),
        (1.69, 1.80, 1.7, "not decided"),
        (1.60, 1.69, 1.7, "fail"),
        (0.97, 1.02, 1.0, "pass"),  # no slower: not shown to be
        (0.97, 1.00, 1.0, "pass"),
        (0.97, 0.99, 1.0, "fail"),
        (0.97, 1.02, 1.1, "fail"),
        (1.05, 1.15, 1.1, "not decided"),
    ],
)
def test_verdicts(low: float, high: float, floor: float, verdict: str) -> None:
    assert Ratio((low + high) / 2, low, high, 20).verdict(floor) == verdict
    assert Ratio((low + high) / 2, low, high, 19).verdict(floor) == "not decided"


def test_accuracy_counts_the_discordant_images() -> None:
    found = accuracy_drop([1, 1, 1, 0, 0], [1, 0, 0, 1, 0])
    assert (found.lost, found.gained, found.images) == (2, 1, 5)
    assert found.points == pytest.approx(20)
    assert found.upper > found.points
    assert found.to_dict()["lost"] == 2
    line = drop_of(30, 21, 10_000).summary()
    assert line.startswith("drop 0.09 points, at most 0.2") and "30 lost, 21 gained" in line


@given(st.integers(1, 30_000), st.data())
def test_the_bound_lies_between_the_drop_and_everything(images: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, images))
    gained = data.draw(st.integers(0, images - lost))
    upper = paired._tango_upper(lost, gained, images)
    assert (lost - gained) / images <= upper <= 1


@pytest.mark.parametrize("images", [1, 20, 1000, 10_000])
def test_graphs_that_never_differ_still_have_a_bound(images: int) -> None:
    z = stats.norm.ppf(0.95)
    found = drop_of(0, 0, images)
    assert (found.points, found.lost, found.gained) == (0, 0, 0)
    assert found.upper == pytest.approx(100 * z**2 / (images + z**2))
    # The exact bound of a loss that was never seen, the rule of three.
    assert found.upper == pytest.approx(100 * (1 - 0.05 ** (1 / images)), rel=0.25)


def test_extremes() -> None:
    assert drop_of(7, 0, 7).upper == pytest.approx(100)
    assert -100 < drop_of(0, 7, 7).upper < 0


COUNTS = [(1, 7, 21), (40, 20, 160), (9, 9, 1000), (3, 0, 1000), (60, 45, 10_000), (0, 12, 10_000)]


@pytest.mark.parametrize("lost, gained, images", COUNTS)
def test_the_bound_is_the_closed_form_of_tangos_interval(
    lost: int, gained: int, images: int
) -> None:
    """Yang, Sun and Hardin (Statistics in Medicine 32, 2013): its ends are roots of a quartic."""
    g, n, d, s = stats.norm.ppf(0.95) ** 2, images, lost - gained, lost + gained
    quartic = (
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
        n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    )
    roots = np.roots(quartic)
    expected = max(root.real for root in roots if abs(root.imag) < 1e-7)
    assert drop_of(lost, gained, images).upper == pytest.approx(100 * expected, rel=1e-5)


@pytest.mark.parametrize("lost, gained, images", COUNTS)
def test_the_bound_is_where_a_score_test_begins_to_reject(
    lost: int, gained: int, images: int
) -> None:
    """The same with the likelihood maximised and the root found by scipy."""

    def statistic(difference: float) -> float:
        def loss(p_gained: float) -> float:
            p_lost = p_gained + difference
            rest = images - lost - gained
            return -float(
                log_likelihood(lost, p_lost)
                + log_likelihood(gained, p_gained)
                + log_likelihood(rest, 1 - p_lost - p_gained)
            )

        least, most = max(0.0, -difference), (1 - difference) / 2
        best = optimize.minimize_scalar(
            loss, bounds=(least, most), method="bounded", options={"xatol": 1e-12}
        )
        variance = 2 * best.x + difference - difference**2
        return (lost - gained - images * difference) / math.sqrt(images * variance)

    estimate = (lost - gained) / images
    expected = optimize.brentq(lambda d: statistic(d) + stats.norm.ppf(0.95), estimate + 1e-9, 0.99)
    assert drop_of(lost, gained, images).upper == pytest.approx(100 * expected, rel=1e-3)


def log_likelihood(count: int, probability: float) -> float:
    """count * log(probability), 0 for 0 * log(0)."""
    if count == 0:
        return 0.0
    return count * math.log(probability) if probability > 0 else -math.inf


def test_a_printed_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airway reactivity, two-sided, in Fagerland et al. (Statistics in Medicine 33, 2014)."""
    monkeypatch.setattr(paired, "_Z", stats.norm.ppf(0.975))
    assert drop_of(1, 7, 21).upper / 100 == pytest.approx(-0.026, abs=5e-4)
    assert -drop_of(7, 1, 21).upper / 100 == pytest.approx(-0.517, abs=5e-4)


@pytest.mark.parametrize("p_lost, p_gained", [(0.006, 0.006), (0.008, 0.005), (0.002, 0.0)])
def test_the_bound_holds_as_often_as_it_says(p_lost: float, p_gained: float) -> None:
    """10,000 images, as the project's test set has; by simulation."""
    draws = np.random.default_rng(0).multinomial(
        10_000, [p_lost, p_gained, 1 - p_lost - p_gained], size=20_000
    )
    counts, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    holds = np.array(
        [paired._tango_upper(*map(int, c), 10_000) >= p_lost - p_gained for c in counts]
    )
    assert (times * holds).sum() / times.sum() == pytest.approx(
        0.95, abs=0.015
    )  # counts are discrete


@pytest.mark.parametrize("a, b", [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_answers_that_are_no_pairs_are_refused(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        accuracy_drop(a, b)


def test_blocks_are_resampled_together() -> None:
    """Four processes a side, each with a speed of its own: the pairs alone would not show it."""
    block = [[0.9] * 6, [0.95] * 6, [1.05] * 6, [1.1] * 6]
    ratios = [value for one in block for value in one]
    ones = [1.0] * 24
    apart, together = ratio(ratios, ones), ratio(ratios, ones, block=6)
    assert apart.median == together.median == pytest.approx(1.0)
    assert together.low == pytest.approx(0.9) and together.high == pytest.approx(1.1)
    assert apart.low > together.low and apart.high < together.high
    with pytest.raises(ValueError, match="24 pairs are no blocks of 5"):
        ratio(ratios, ones, block=5)


@given(st.integers(1, 200), st.integers(1, 40))
def test_blocks_leave_no_rest_and_are_five_where_they_can_be(pairs: int, most: int) -> None:
    size = block_size(pairs, most)
    possible = [n for n in range(1, most + 1) if pairs % n == 0 and pairs // n >= LEAST_BLOCKS]
    assert size == max(possible, default=1)


def test_a_few_blocks() -> None:
    assert [block_size(pairs, 4) for pairs in (24, 20, 10, 8, 2)] == [4, 4, 2, 1, 1]
