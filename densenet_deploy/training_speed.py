"""Runs a training-speed suite: training steps of two modes against each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from densenet_deploy import environment, training_step
from densenet_deploy.environment import package_version, usable_cores
from densenet_deploy.errors import RecipeError
from densenet_deploy.paired import Ratio, Verdict, block_size, ratio
from densenet_deploy.progress import Track, silent
from densenet_deploy.spec import variant
from densenet_deploy.torchvision_models import in_torchvision
from densenet_deploy.training_step import time_steps
from densenet_deploy.training_suite import Mode, StepComparison, StepTask, TrainingSpeedSuite

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Timed:
    """One side at one batch size and precision.

    Attributes:
        task: What was timed.
        seconds: One sample of each round.
    """

    task: StepTask
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """Median of all samples."""
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, raw samples among them."""
        return asdict(self.task) | {
            "median_seconds": self.median_seconds,
            "images_per_second": self.task.batch / self.median_seconds,
            "seconds": [round(value, 6) for value in self.seconds],
        }


@dataclass(frozen=True)
class Judged:
    """One claim at one batch size and precision; its truth value is that its floor does not fail.

    Attributes:
        claim: What was to be shown.
        candidate: Its side, as timed.
        baseline: Likewise.
        speedup: What was found.
    """

    claim: StepComparison
    candidate: Timed
    baseline: Timed
    speedup: Ratio

    @property
    def verdict(self) -> Verdict | None:
        """On the floor; None where there is none."""
        return None if self.claim.floor is None else self.speedup.verdict(self.claim.floor)

    @property
    def goal_verdict(self) -> Verdict | None:
        """On the goal; None where there is none."""
        return None if self.claim.goal is None else self.speedup.verdict(self.claim.goal)

    def __bool__(self) -> bool:
        return self.verdict != "fail"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **_where(self.candidate.task),
            "candidate": self.claim.candidate,
            "baseline": self.claim.baseline,
            "candidate_seconds": self.candidate.median_seconds,
            "baseline_seconds": self.baseline.median_seconds,
            "speedup": self.speedup.to_dict(),
            "floor": self.claim.floor,
            "verdict": self.verdict,
            "goal": self.claim.goal,
            "goal_verdict": self.goal_verdict,
        }


@dataclass(frozen=True)
class TrainingSpeed:
    """Everything one run of a suite found; its truth value is that no floor fails.

    Attributes:
        suite: What was run.
        threads: CPU threads of each side.
        pairs: Rounds.
        block: Rounds after which all sides are started anew.
        timed: Every side.
        judged: Every claim.
    """

    suite: TrainingSpeedSuite
    threads: int
    pairs: int
    block: int
    timed: tuple[Timed, ...]
    judged: tuple[Judged, ...]

    def __bool__(self) -> bool:
        return all(self.judged)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        versions = {"torchvision": package_version("torchvision")}
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite.to_dict(),
            "threads": self.threads,
            "pairs": self.pairs,
            "block": self.block,
            "passed": bool(self),
            "method": training_step.METHOD,
            "environment": environment.describe() | versions,
            "comparisons": [record.to_dict() for record in self.judged],
            "steps": [record.to_dict() for record in self.timed],
        }


def measure_speed(
    suite: TrainingSpeedSuite,
    models: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    pairs: int = 0,
    track: Track = silent,
) -> TrainingSpeed:
    """Runs a suite, one model, batch size and precision after another.

    Args:
        suite: What to time.
        models: Only these; of others than its own it claims nothing, and compares those that
            torchvision lacks with none of its.
        batch_sizes: Likewise.
        pairs: Rounds instead of the suite's; fewer than 20 decide nothing.
        track: Progress reporter.

    Raises:
        DeployError: A model is unknown or has nothing to be compared with, or a process died.
    """
    threads, rounds = suite.threads or usable_cores(), pairs or suite.pairs
    block = block_size(rounds, suite.block)
    timed: list[Timed] = []
    judged: list[Judged] = []
    for claims in _together(_chosen(suite, models, batch_sizes)):
        tasks = dict.fromkeys(_side(c, mode) for c in claims for mode in (c.candidate, c.baseline))
        title = f"{claims[0].model}, batch {claims[0].batch_sizes[0]}, {claims[0].precisions[0]}"
        series = time_steps(tuple(tasks), rounds, block, threads, track, title)
        sides = {task: Timed(task, seconds) for task, seconds in zip(tasks, series, strict=True)}
        timed += sides.values()
        for claim in claims:
            ours, theirs = (sides[_side(claim, mode)] for mode in (claim.candidate, claim.baseline))
            found = ratio(theirs.seconds, ours.seconds, block)
            judged.append(Judged(claim, ours, theirs, found))
    return TrainingSpeed(suite, threads, rounds, block, tuple(timed), tuple(judged))


def _chosen(
    suite: TrainingSpeedSuite, models: Sequence[str], batch_sizes: Sequence[int]
) -> list[StepComparison]:
    """The claims that are asked for; without floor and goal where the suite makes none."""
    own = list(suite.comparisons)
    known = {claim.model for claim in own}
    pairs = dict.fromkeys((claim.candidate, claim.baseline) for claim in own)
    sizes = tuple(batch_sizes) or own[0].batch_sizes
    for name in dict.fromkeys(models):
        variant(name)
        if name not in known:
            own += [
                StepComparison(name, *pair, batch_sizes=sizes) for pair in _possible(name, pairs)
            ]
    asked = [claim for claim in own if not models or claim.model in models]
    if not batch_sizes:
        return asked
    return [
        replace(claim, batch_sizes=(size,))
        if size in claim.batch_sizes
        else replace(claim, batch_sizes=(size,), floor=None, goal=None)
        for claim in asked
        for size in batch_sizes
    ]


def _possible(name: str, pairs: Iterable[tuple[Mode, Mode]]) -> list[tuple[Mode, Mode]]:
    """Without torchvision's side where it has no such model."""
    theirs = in_torchvision(name)
    found = [pair for pair in pairs if theirs or "torchvision" not in pair]
    if not found:
        raise RecipeError(
            f"torchvision has no model {name!r}, and the suite compares with nothing else",
            remedy="name a model of torchvision's, or a suite with candidate and baseline of ours",
        )
    return found


def _together(claims: Sequence[StepComparison]) -> list[list[StepComparison]]:
    """Claims of one batch size and precision each; those about the same network lie together."""
    groups: dict[tuple[Any, ...], list[StepComparison]] = {}
    for claim in claims:
        for size in claim.batch_sizes:
            for precision in claim.precisions:
                place = (claim.model, claim.input_shape, size, precision)
                one = replace(claim, batch_sizes=(size,), precisions=(precision,))
                groups.setdefault(place, []).append(one)
    return list(groups.values())


def _side(claim: StepComparison, mode: Mode) -> StepTask:
    return StepTask(claim.model, mode, claim.batch_sizes[0], claim.input_shape, claim.precisions[0])


def _where(task: StepTask) -> dict[str, Any]:
    """What both sides of a comparison share."""
    return {key: value for key, value in asdict(task).items() if key != "mode"}
