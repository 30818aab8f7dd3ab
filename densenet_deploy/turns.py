"""Sides that are measured against each other: each in a process of its own, taking turns.

One at a time runs, the others wait on a pipe. In each round every side gives one sample, and every
second round goes through them backwards: what the machine does meanwhile meets all sides alike, and
ratios of one round can be trusted where times of two runs cannot. Launches of the same program
differ too, so after each block of rounds all are started anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from densenet_deploy.progress import Track, silent
from densenet_deploy.worker import Worker


class Side(Protocol):
    """A running process.

    Attributes:
        opened: What it said when it was ready.
    """

    opened: Any

    def seconds(self) -> float:
        """One sample."""
        ...


Launch = Callable[[], contextlib.AbstractContextManager[Side]]


@dataclass(frozen=True)
class Turns:
    """What one side gave.

    Attributes:
        opened: What it said when it was ready, in each launch.
        seconds: Its sample of each round.
    """

    opened: tuple[Any, ...]
    seconds: tuple[float, ...]


def take_turns(
    launches: Sequence[Launch],
    rounds: int,
    block: int,
    track: Track = silent,
    title: str = "Timing",
) -> list[Turns]:
    """Asks every side for one sample in each round.

    Args:
        launches: Start each side.
        rounds: Samples of each; a multiple of `block`.
        block: Rounds after which all are started anew.
        track: Progress reporter.
        title: What it shows.

    Raises:
        BackendError: A process does not start, or died.
        DeployError: What a process raised.
    """
    opened: list[list[Any]] = [[] for _ in launches]
    seconds: list[list[float]] = [[] for _ in launches]
    sides: dict[int, Side] = {}
    with contextlib.ExitStack() as stack:
        for number in track(range(rounds), title, rounds):
            if number % block == 0:
                stack.close()
                for index in _order(launches, number // block):
                    sides[index] = stack.enter_context(launches[index]())
                    opened[index].append(sides[index].opened)
            for index in _order(launches, number):
                seconds[index].append(sides[index].seconds())
    return [Turns(tuple(o), tuple(s)) for o, s in zip(opened, seconds, strict=True)]


def _order(launches: Sequence[Launch], number: int) -> range:
    """Forwards, and every second time backwards."""
    return range(len(launches))[:: -1 if number % 2 else 1]


@contextlib.contextmanager
def in_worker(module: str, name: str, job: Any) -> Iterator[Side]:
    """A side that is a worker.

    Args:
        module: What it runs; it answers `job` when it is ready, and each None with seconds.
        name: For error messages.
        job: What it is to do.
    """
    with Worker(module, name) as worker:
        yield _InWorker(worker, job)


class _InWorker:
    def __init__(self, worker: Worker, job: Any) -> None:
        self._worker, self.opened = worker, worker.ask(job)

    def seconds(self) -> float:
        seconds: float = self._worker.ask(None)
        return seconds
