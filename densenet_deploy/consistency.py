"""The self-consistency gate: does a runner agree with itself? Needs no labels and no reference.

A row of a batch has one answer, whatever is beside it, however often and from however many threads
it is asked. Engines have broken each of these rules in the field: wrong at batch 2 while right at
batch 1; four answers to four equal rows; wrong at batch 1 in a profile tuned for 16.

Differences are judged against the spread of the logits (their standard deviation over rows and
classes), because sound kernels round differently. As a share of the spread, on the shipped net and
on DenseNet-121 with seeded weights:

- one CPU backend with itself: 0 on ONNX Runtime and OpenVINO, 1.5e-6 on PyTorch;
- two sound implementations of one graph (ONNX Runtime with and without its optimizations, and
  OpenVINO): 1e-5 in fp32, 0.065 (shipped) and 0.19 (DenseNet-121) in int8, where a rounding that
  flips moves a value by a whole step;
- every activation rounded to half (PyTorch, shipped net): 6.2e-3 from fp32.

An engine may use other kernels for another profile, so `TOLERANCE` leaves head room over the
second and third; what a broken rule does is of the order of the spread itself.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from densenet_deploy.bundle import Bundle
from densenet_deploy.consistency_rules import (
    RULES,
    THREADS,
    NotApplicableError,
    Probe,
    answers,
    difference,
)
from densenet_deploy.data import ImageSet
from densenet_deploy.engine.options import TITLES
from densenet_deploy.errors import BackendError, DataError
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime import DEFAULT_RUN, open_runner, runs
from densenet_deploy.runtime.fallback import Opener
from densenet_deploy.runtime.runner import Array, Runner

TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.25}
# TF32 keeps as many bits of a factor as half does.
_TF32 = TOLERANCE["fp16"]
# Rows count as told apart where their answers differ by this many bounds.
_APART = 2
_ROWS = 8
_CANDIDATES = 16


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    Attributes:
        rule: Its name.
        worst: Largest difference of a logit that should be none; infinite for NaN.
        bound: What rounding may cause.
        skipped: Why the rule does not apply; empty if it does.
        error: What the runner refused with; empty if it answered.
    """

    rule: str
    worst: float
    bound: float
    skipped: str = ""
    error: str = ""

    def __bool__(self) -> bool:
        return bool(self.skipped) or (not self.error and self.worst <= self.bound)

    def summary(self) -> str:
        """A clause for people."""
        if self.skipped or self.error:
            return f"{self.rule}: {self.skipped or self.error}"
        return f"{self.rule}: differ by {self.worst:.3g}, allowed {self.bound:.3g}"


@dataclass(frozen=True)
class Consistency:
    """The verdict over all rules for one runner.

    Attributes:
        precision: Of the graph.
        backend: That ran it.
        rows: Different images it was asked about.
        apart: Those of them whose answers differ enough to notice a mix-up.
        spread: Standard deviation of the logits.
        findings: One for each rule.
        seconds: What the check took.
    """

    precision: Precision
    backend: str
    rows: int
    apart: int
    spread: float
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def failures(self) -> tuple[str, ...]:
        """Every rule that does not hold, and whether the check proves anything at all."""
        broken = [finding.summary() for finding in self.findings if not finding]
        if self.apart < 2:
            broken.append(f"proves nothing: {self.rows} images have {self.apart} answers")
        return tuple(broken)

    def __bool__(self) -> bool:
        return not self.failures

    def summary(self) -> str:
        """One line for people."""
        done = [finding for finding in self.findings if not finding.skipped]
        left = [finding.rule for finding in self.findings if finding.skipped]
        worst = max((finding.worst for finding in done), default=math.nan)
        without = f" (does not apply: {', '.join(left)})" if left else ""
        verdict = "pass" if self else "FAIL: " + "; ".join(self.failures)
        return (
            f"{self.precision} on {self.backend}: {len(done)} consistency rules{without}, "
            f"max |d logit| {worst:.3g}, {self.seconds:.1f} s: {verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: None stands for it."""
        table = dataclasses.asdict(self) | {"failures": self.failures, "passed": bool(self)}
        for item in (table, *table["findings"]):
            item |= {k: None for k, v in item.items() if v != v or v in (math.inf, -math.inf)}
        return table


def check(
    runner: Runner, images: Array, plain: Runner | None = None, track: Track = silent
) -> Consistency:
    """Asks a runner about the same images in every way its rules name.

    Args:
        runner: What to check.
        images: Normalised (N, C, H, W), at least two; 16 different ones are plenty.
        plain: The same engine without CUDA graphs, for a runner that has them.
        track: Progress reporter.

    Raises:
        DataError: Fewer than two images.
        BackendError: The runner cannot answer about one image.
    """
    started = time.perf_counter()
    if len(images) < 2:
        raise DataError(f"{len(images)} images", expected="at least 2 that differ")
    images = images[:_CANDIDATES]
    alone = np.concatenate([_alone(runner, image) for image in images])
    spread = float(alone.std())
    bound = tolerance(runner) * spread
    apart = _told_apart(alone, _APART * bound)
    rows = apart[:_ROWS] if len(apart) > 1 else list(range(len(images)))[:_ROWS]
    probe = Probe(runner, plain, images[rows], alone[rows])
    title = f"Checking {runner.backend} {runner.precision}"
    findings = [_apply(name, probe, bound) for name in track(list(RULES), title)]
    return Consistency(
        precision=runner.precision,
        backend=runner.backend,
        rows=len(rows),
        apart=len(apart),
        spread=spread,
        findings=tuple(findings),
        seconds=time.perf_counter() - started,
    )


def check_bundle(
    bundle: Bundle,
    images: ImageSet,
    backends: Sequence[str],
    precisions: Sequence[Precision] = (),
    track: Track = silent,
    opener: Opener = open_runner,
) -> list[Consistency]:
    """Checks every precision on every backend; an engine with two contexts.

    Args:
        bundle: What to check.
        images: Of which the first 16 are used; labels are not.
        backends: Available backends.
        precisions: Some of the bundle's; all by default.
        track: Progress reporter.
        opener: Opens a runner, as `open_runner` does.

    Raises:
        BackendError: A backend cannot run here, or not even one image.
    """
    inputs = bundle.manifest.preprocessing.normalise(images.pixels[:_CANDIDATES])
    results = []
    for backend in backends:
        contexts = THREADS if backend in TITLES else 1
        config = dataclasses.replace(DEFAULT_RUN, contexts=contexts)
        without_graph = dataclasses.replace(config, cuda_graph=False)
        for precision in precisions or bundle.precisions:
            if not runs(backend, precision):
                continue
            with ExitStack() as stack:
                runner = stack.enter_context(opener(bundle, backend, precision, 0, config))
                plain = None
                if runner.cuda_graph:
                    other = opener(bundle, backend, precision, 0, without_graph)
                    plain = stack.enter_context(other)
                results.append(check(runner, inputs, plain, track))
    return results


def tolerance(runner: Runner) -> float:
    """What rounding may cost, as a share of the spread of the logits."""
    build = runner.manifest.recipe.get("build", {})
    if runner.backend.startswith("tensorrt") and build.get("tf32"):
        return max(TOLERANCE[runner.precision], _TF32)
    return TOLERANCE[runner.precision]


def _alone(runner: Runner, image: Array) -> Array:
    """The answer (1, classes) to one image, repeated where the runner takes no single ones."""
    least = min(least for least, _, _ in runner.profiles)
    return answers(runner, np.repeat(image[None], least, axis=0))[:1]


def _told_apart(alone: Array, least: float) -> list[int]:
    """Rows whose answers differ from each other's by more than `least`."""
    apart: list[int] = []
    for row, answer in enumerate(alone):
        if all(difference(answer, alone[other]) > least for other in apart):
            apart.append(row)
    return apart


def _apply(name: str, probe: Probe, bound: float) -> Finding:
    try:
        return Finding(name, max(RULES[name](probe)), bound)
    except NotApplicableError as reason:
        return Finding(name, 0.0, bound, skipped=str(reason))
    except BackendError as error:
        return Finding(name, math.inf, bound, error=str(error))
