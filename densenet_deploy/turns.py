"""Sides that are measured against each other: each in a process of its own, taking turns.

One at a time runs, the others wait on a pipe. In each round every side gives one sample, and every
second round goes through them backwards: what the machine does meanwhile meets all sides alike, and
ratios of one round can be trusted where times of two runs cannot. Launches of the same program
differ too, so after each block of rounds all are started anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from densenet_deploy.progress import Track, silent
from densenet_deploy.worker import Worker


@dataclass(frozen=True)
class Turns:
    """What one side gave.

    Attributes:
        opened: Its answer to what it is to do, one of each launch.
        seconds: Its sample of each round.
    """

    opened: tuple[Any, ...]
    seconds: tuple[float, ...]


def take_turns(
    module: str,
    sides: Sequence[tuple[str, Any]],
    rounds: int,
    block: int,
    track: Track = silent,
    title: str = "Timing",
) -> list[Turns]:
    """Asks every side for one sample in each round.

    Args:
        module: What the processes run; it answers the first request, which says what it is to do,
            with anything, and each further one with seconds.
        sides: Name, for error messages, and first request of each.
        rounds: Samples of each; a multiple of `block`.
        block: Rounds after which all are started anew.
        track: Progress reporter.
        title: What it shows.

    Raises:
        BackendError: A process died.
        DeployError: What a process raised.
    """
    opened: list[list[Any]] = [[] for _ in sides]
    seconds: list[list[float]] = [[] for _ in sides]
    order = range(len(sides))
    launches = range(rounds // block)
    for launch in track(launches, title, len(launches)):
        with contextlib.ExitStack() as stack:
            workers: dict[int, Worker] = {}
            for index in order[:: -1 if launch % 2 else 1]:
                name, job = sides[index]
                workers[index] = stack.enter_context(Worker(module, name))
                opened[index].append(workers[index].ask(job))
            for number in range(block):
                for index in order[:: -1 if number % 2 else 1]:
                    seconds[index].append(workers[index].ask(None))
    return [Turns(tuple(o), tuple(s)) for o, s in zip(opened, seconds, strict=True)]
