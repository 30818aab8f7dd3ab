"""Runs a training-memory suite: what recomputation saves, and what it costs in time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from densenet_deploy import environment, held_memory, training_step
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import RecipeError
from densenet_deploy.held_memory import Held
from densenet_deploy.paired import LEAST_PAIRS, Ratio, Verdict, block_size, ratio
from densenet_deploy.progress import Track, silent
from densenet_deploy.spec import DenseNetSpec, variant
from densenet_deploy.training_step import time_steps
from densenet_deploy.training_suite import (
    DepthSweep,
    MemoryLimit,
    Mode,
    StepTask,
    TrainingMemorySuite,
)

SCHEMA_VERSION = 2
_MODES: tuple[Mode, ...] = ("naive", "memory-efficient")
_BATCH = 8  # of a network that is not the suite's


@dataclass(frozen=True)
class Saved:
    """One network's training, naive and memory-efficient; its truth value is that no limit fails.

    Attributes:
        limit: The claim.
        naive: What a naive step takes.
        efficient: What a memory-efficient one takes.
        naive_seconds: One sample of each round; none where only memory was measured.
        efficient_seconds: Likewise.
        block: Rounds of one launch.
    """

    limit: MemoryLimit
    naive: Held
    efficient: Held
    naive_seconds: tuple[float, ...]
    efficient_seconds: tuple[float, ...]
    block: int

    @property
    def held(self) -> float:
        """Held bytes, memory-efficient / naive."""
        return self.efficient.held_bytes / self.naive.held_bytes

    @property
    def peak(self) -> float | None:
        """Growth of the resident set, memory-efficient / naive; None where naive's did not grow."""
        naive = self.naive.peak_rss_bytes
        return self.efficient.peak_rss_bytes / naive if naive else None

    @property
    def seconds(self) -> Ratio:
        """Seconds of a step, memory-efficient / naive."""
        return ratio(self.efficient_seconds, self.naive_seconds, self.block)

    @property
    def verdict(self) -> Verdict | None:
        """On the held bytes; None where there is no limit."""
        return _exact(self.held, self.limit.held)

    @property
    def goal_verdict(self) -> Verdict | None:
        """On the goal for them; None where there is none."""
        return _exact(self.held, self.limit.goal)

    @property
    def seconds_verdict(self) -> Verdict | None:
        """On the seconds; None where there is no limit."""
        most = self.limit.seconds
        return None if most is None else at_most(self.seconds, most)

    def __bool__(self) -> bool:
        return "fail" not in (self.verdict, self.seconds_verdict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, raw samples among them."""
        return {
            "model": self.limit.model,
            "batch": self.limit.batch,
            "held_ratio": self.held,
            "peak_rss_ratio": self.peak,
            "limit": self.limit.held,
            "verdict": self.verdict,
            "goal": self.limit.goal,
            "goal_verdict": self.goal_verdict,
            "seconds_ratio": self.seconds.to_dict(),
            "seconds_limit": self.limit.seconds,
            "seconds_verdict": self.seconds_verdict,
            "naive_median_seconds": statistics.median(self.naive_seconds),
            "efficient_median_seconds": statistics.median(self.efficient_seconds),
            "naive_seconds": [round(value, 6) for value in self.naive_seconds],
            "efficient_seconds": [round(value, 6) for value in self.efficient_seconds],
            "block": self.block,
        }


@dataclass(frozen=True)
class TrainingMemory:
    """Everything one run of a suite found; its truth value is that no limit fails.

    Attributes:
        suite: What was run.
        threads: CPU threads.
        pairs: Rounds.
        saved: Every claim.
        swept: Networks of rising depth, of which nothing is claimed.
    """

    suite: TrainingMemorySuite
    threads: int
    pairs: int
    saved: tuple[Saved, ...]
    swept: tuple[Saved, ...]

    def __bool__(self) -> bool:
        return all(self.saved)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite.to_dict(),
            "threads": self.threads,
            "pairs": self.pairs,
            "passed": bool(self),
            "method": f"{held_memory.METHOD} {training_step.METHOD}",
            "environment": environment.describe(),
            "comparisons": [record.to_dict() for record in self.saved],
            "sweep": [record.to_dict() for record in self.swept],
            "points": [point for one in (*self.swept, *self.saved) for point in _points(one)],
        }


def at_most(found: Ratio, limit: float) -> Verdict:
    """Whether a ratio stays within a limit: all of its interval, or not decided where some of it.

    Fewer than 20 pairs decide nothing.
    """
    if found.pairs < LEAST_PAIRS or found.low <= limit < found.high:
        return "not decided"
    return "pass" if found.high <= limit else "fail"


def measure_memory(
    suite: TrainingMemorySuite,
    models: Sequence[str] = (),
    pairs: int = 0,
    track: Track = silent,
) -> TrainingMemory:
    """Runs a suite.

    Args:
        suite: What to measure.
        models: Only these, without the sweep; of others than the suite's own it
            claims nothing.
        pairs: Rounds instead of the suite's; fewer than 20 decide nothing.
        track: Progress reporter.

    Raises:
        DeployError: A model is unknown, or a process died.
    """
    threads, rounds = suite.threads or usable_cores(), pairs or suite.pairs
    claims = {limit.model: limit for limit in suite.limits}
    limits = [claims.get(name, MemoryLimit(name, _BATCH)) for name in models or claims]
    _refuse(suite, limits, only_limits=bool(models))
    saved = tuple(_compare(limit, threads, rounds, suite.block, track) for limit in limits)
    if models:
        return TrainingMemory(suite, threads, rounds, saved, ())
    swept = _sweep(suite.sweep, threads, suite.block, track) if suite.sweep else ()
    return TrainingMemory(suite, threads, rounds, saved, swept)


def _refuse(suite: TrainingMemorySuite, limits: Sequence[MemoryLimit], only_limits: bool) -> None:
    """Raises for what cannot be measured, before anything is."""
    for limit in limits:
        _densenet(limit.model)
    if suite.sweep and not only_limits:
        for depth in suite.sweep.depths:
            _densenet(suite.sweep.model(depth))


def _compare(limit: MemoryLimit, threads: int, rounds: int, block: int, track: Track) -> Saved:
    tasks = [StepTask(limit.model, mode, limit.batch) for mode in _MODES]
    block = block_size(rounds, block)
    title = f"{limit.model}, "
    found = [held_memory.measure(t, threads) for t in track(tasks, f"{title}memory", len(tasks))]
    seconds = time_steps(tasks, rounds, block, threads, track, f"{title}step time")
    return Saved(limit, found[0], found[1], seconds[0], seconds[1], block)


def _sweep(sweep: DepthSweep, threads: int, block: int, track: Track) -> tuple[Saved, ...]:
    limits = [MemoryLimit(sweep.model(depth), sweep.batch) for depth in sweep.depths]
    return tuple(_compare(limit, threads, sweep.pairs, block, track) for limit in limits)


def _points(one: Saved) -> list[dict[str, Any]]:
    """A network in either mode, with what a figure over depth needs."""
    spec = _densenet(one.limit.model)
    kind = ("b" if spec.bottleneck else "") + ("c" if spec.compression < 1 else "")
    architecture = {
        "variant": kind or "plain",
        "depth": spec.depth,
        "growth_rate": spec.growth_rate,
        "input_shape": spec.input_shape,
    }
    modes = ((one.naive, one.naive_seconds), (one.efficient, one.efficient_seconds))
    return [
        held.to_dict() | {"step_seconds": statistics.median(seconds)} | architecture
        for held, seconds in modes
    ]


def _densenet(name: str) -> DenseNetSpec:
    spec = variant(name)
    if not isinstance(spec, DenseNetSpec):
        raise RecipeError(f"{name} recomputes nothing in training", expected="a DenseNet")
    return spec


def _exact(found: float, most: float | None) -> Verdict | None:
    if most is None:
        return None
    return "pass" if found <= most else "fail"
