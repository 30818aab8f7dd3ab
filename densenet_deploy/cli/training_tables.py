"""How the measured training suites look on a terminal."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import typer

from densenet_deploy.cli import show
from densenet_deploy.paired import LEAST_PAIRS
from densenet_deploy.results import milliseconds

if TYPE_CHECKING:
    from densenet_deploy.training_memory import Saved, TrainingMemory
    from densenet_deploy.training_speed import Judged, TrainingSpeed

_SAVED = (
    *("model", "batch", "naive MB", "held MB", "ratio", "limit", "verdict", "goal", "verdict"),
    *("peak ratio", "step ratio", "95 % interval", "limit", "verdict"),
)
_SWEPT = (
    *("model", "batch", "naive MB", "held MB", "ratio", "naive peak MB", "peak MB"),
    *("naive ms", "ms", "step ratio"),
)
_SPEED = (
    *("model", "batch", "precision", "candidate", "ms", "over", "ms", "speed-up"),
    *("95 % interval", "floor", "verdict", "goal", "verdict"),
)


def memory(found: TrainingMemory) -> None:
    """Prints a row for each claim, then networks of rising depth."""
    title = f"{found.suite.description or found.suite.name}; {found.pairs} pairs, "
    show.table(_SAVED, map(_saved, found.saved), f"{title}{found.threads} threads")
    if found.swept:
        typer.echo()
        show.table(_SWEPT, map(_swept, found.swept), "Depth")
    _trial(found.pairs)


def _saved(one: Saved) -> tuple[str, ...]:
    limit, seconds = one.limit, one.seconds
    return (
        limit.model,
        str(limit.batch),
        _megabytes(one.naive.held_bytes),
        _megabytes(one.efficient.held_bytes),
        f"{one.held:.3f}",
        _limit(limit.held),
        one.verdict or "-",
        _limit(limit.goal),
        one.goal_verdict or "-",
        _limit(one.peak),
        f"{seconds.median:.2f}",
        f"[{seconds.low:.2f}, {seconds.high:.2f}]",
        _limit(limit.seconds),
        one.seconds_verdict or "-",
    )


def _swept(one: Saved) -> tuple[str, ...]:
    sizes = (one.naive.peak_rss_bytes, one.efficient.peak_rss_bytes)
    medians = map(statistics.median, (one.naive_seconds, one.efficient_seconds))
    return (
        one.limit.model,
        str(one.limit.batch),
        _megabytes(one.naive.held_bytes),
        _megabytes(one.efficient.held_bytes),
        f"{one.held:.3f}",
        *map(_megabytes, sizes),
        *map(milliseconds, medians),
        f"{one.seconds.median:.2f}",
    )


def speed(found: TrainingSpeed) -> None:
    """Prints a row for each claim."""
    title = f"{found.suite.description or found.suite.name}; {found.pairs} pairs, "
    show.table(_SPEED, map(_judged, found.judged), f"{title}{found.threads} threads")
    _trial(found.pairs)


def _judged(one: Judged) -> tuple[str, ...]:
    claim, speedup = one.claim, one.speedup
    return (
        claim.model,
        str(one.candidate.task.batch),
        one.candidate.task.precision,
        claim.candidate,
        milliseconds(one.candidate.median_seconds),
        claim.baseline,
        milliseconds(one.baseline.median_seconds),
        f"{speedup.median:.2f}",
        f"[{speedup.low:.2f}, {speedup.high:.2f}]",
        _limit(claim.floor),
        one.verdict or "-",
        _limit(claim.goal),
        one.goal_verdict or "-",
    )


def _trial(pairs: int) -> None:
    if pairs < LEAST_PAIRS:
        typer.echo(f"a trial: fewer than {LEAST_PAIRS} pairs decide nothing about time")


def _limit(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"
