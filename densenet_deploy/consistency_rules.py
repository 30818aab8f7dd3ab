"""The rules of self-consistency: each asks a runner twice in different ways, and compares.

A rule yields the differences it saw; the caller judges them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.runner import Array, Runner

THREADS = 2
_REPEATS = 3
# Zeros, and the largest numbers that fp16 holds: what a net makes of them stays in their own rows.
_FILLS = (0.0, 65504.0, -65504.0)


class NotApplicableError(Exception):
    """Why a rule says nothing about a runner."""


@dataclass(frozen=True)
class Probe:
    """A runner, rows to ask it about and its answers to each of them alone.

    Attributes:
        runner: What is checked.
        plain: The same engine without CUDA graphs, where there is one.
        images: Normalised (rows, C, H, W).
        alone: Answers (rows, classes) of the smallest batches.
    """

    runner: Runner
    plain: Runner | None
    images: Array
    alone: Array

    def ask(self, rows: NDArray[np.intp]) -> Array:
        """Answers to a batch of these rows."""
        return answers(self.runner, self.images[rows])

    def batch(self, size: int) -> NDArray[np.intp]:
        """Rows of a batch: all different, then in an order without a period."""
        first = np.arange(min(size, len(self.images)))
        more = np.random.default_rng(0).integers(0, len(self.images), size - len(first))
        return np.concatenate([first, more])

    @property
    def typical(self) -> int:
        """The largest batch size that a profile is tuned for."""
        return max(best for _, best, _ in self.runner.profiles)

    @property
    def several(self) -> tuple[int, ...]:
        """Sizes that make a batch: the first few above one row, and the ones profiles prefer.

        Raises:
            NotApplicableError: The runner takes single rows only.
        """
        low = min(least for least, _, _ in self.runner.profiles)
        high = max(most for *_, most in self.runner.profiles)
        sizes = {low, low + 1, low + 2, low + 3, self.typical}
        found = tuple(sorted(size for size in sizes if 2 <= size <= high))
        if not found:
            raise NotApplicableError("its batches hold one row")
        return found


def equal_rows(probe: Probe) -> Iterator[float]:
    """The same image in every row of a batch has the same answer in every row."""
    for size in probe.several:
        logits = probe.ask(np.zeros(size, np.intp))
        yield difference(logits, np.broadcast_to(logits[:1], logits.shape))


def permuted_batch(probe: Probe) -> Iterator[float]:
    """Rows in another order have the same answers in that order."""
    rows = probe.batch(probe.several[-1])
    order = np.roll(np.arange(len(rows)), 1)
    yield difference(probe.ask(rows[order]), probe.ask(rows)[order])


def batch_sizes(probe: Probe) -> Iterator[float]:
    """A batch of N has the answers of N batches of one."""
    for size in probe.several:
        rows = probe.batch(size)
        yield difference(probe.ask(rows), probe.alone[rows])


def padding(probe: Probe) -> Iterator[float]:
    """What fills the rest of a batch, however extreme, does not leak into the rows before it."""
    size = probe.several[-1]
    rows = probe.batch(size)
    kept = (size + 1) // 2
    for fill in _FILLS:
        images = probe.images[rows].copy()
        images[kept:] = fill
        yield difference(answers(probe.runner, images)[:kept], probe.alone[rows[:kept]])


def repeats(probe: Probe) -> Iterator[float]:
    """The same batch again has the same answers."""
    rows = probe.batch(probe.typical)
    first = probe.ask(rows)
    for _ in range(_REPEATS):
        yield difference(probe.ask(rows), first)


def concurrent(probe: Probe) -> Iterator[float]:
    """Threads that ask at once get the answers they get alone."""
    rows = probe.batch(probe.typical)
    batches = [(rows + shift) % len(probe.images) for shift in range(THREADS)]
    start = threading.Barrier(THREADS)

    def ask(batch: NDArray[np.intp]) -> list[Array]:
        start.wait()
        return [probe.ask(batch) for _ in range(_REPEATS)]

    with ThreadPoolExecutor(THREADS) as pool:
        for batch, answers in zip(batches, pool.map(ask, batches), strict=True):
            yield from (difference(found, probe.alone[batch]) for found in answers)


def cuda_graph(probe: Probe) -> Iterator[float]:
    """Replaying a captured graph answers what running its kernels one by one does.

    Sizes go up and down again: a graph that was captured for one must not serve another.
    """
    if not probe.runner.cuda_graph:
        raise NotApplicableError("it runs without CUDA graphs")
    if probe.plain is None:
        raise NotApplicableError("no second runner without CUDA graphs was given")
    sizes = sorted({size for _, *larger in probe.runner.profiles for size in larger})
    for size in (*sizes, *reversed(sizes)):
        rows = probe.batch(size)
        yield difference(probe.ask(rows), answers(probe.plain, probe.images[rows]))


def profiles(probe: Probe) -> Iterator[float]:
    """Every optimization profile answers at its least, its preferred and its largest batch.

    So does the largest batch the bundle promises, which a runner may have to split.
    """
    promised = probe.runner.manifest.batch[2]
    for size in sorted({promised, *(size for each in probe.runner.profiles for size in each)}):
        rows = probe.batch(size)
        yield difference(probe.ask(rows), probe.alone[rows])


Rule = Callable[[Probe], Iterator[float]]
RULES: dict[str, Rule] = {
    "equal rows": equal_rows,
    "permuted batch": permuted_batch,
    "batch sizes": batch_sizes,
    "padding": padding,
    "repeats": repeats,
    "concurrent": concurrent,
    "CUDA graph": cuda_graph,
    "profiles": profiles,
}


def answers(runner: Runner, images: Array) -> Array:
    """Logits of a batch.

    Raises:
        BackendError: The runner refuses it, or does not answer once for each image.
    """
    logits = runner.logits(images)
    if len(logits) != len(images):
        raise BackendError(f"{len(logits)} answers to {len(images)} images")
    return logits


def difference(found: Array, expected: Array) -> float:
    """Largest difference of a logit; infinite where one is NaN or infinite."""
    if not (np.isfinite(found) & np.isfinite(expected)).all():
        return math.inf
    return float(np.abs(found.astype(np.float64) - expected).max())
