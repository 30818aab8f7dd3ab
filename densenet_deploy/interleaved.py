"""Times several graphs against each other: each in a process of its own, taking turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from densenet_deploy.bench import rotate, warm_up
from densenet_deploy.progress import Track, silent
from densenet_deploy.runtime import open_graph
from densenet_deploy.runtime.runner import Array, Infer
from densenet_deploy.turns import in_worker, take_turns
from densenet_deploy.worker import serve

_SAMPLE_SECONDS = 0.05
_LEAST_REQUESTS = 3  # a median of fewer is a mean
METHOD = (
    "A sample is the median host wall time of consecutive requests, normalised images in to logits "
    "out, after one that is not timed: at least 3 requests and about 50 ms. Each side runs in a "
    "process of its own, warmed up until its median settles or for 2 s. In every round each side "
    "gives one sample, one at a time, in an order that is reversed every second round; all are "
    "started anew after each block of rounds. A speed-up is the median over the rounds of baseline "
    "/ candidate, with its 95 % percentile bootstrap interval over blocks. No sample is dropped."
)


@dataclass(frozen=True)
class Entrant:
    """A graph to be timed.

    Attributes:
        name: For error messages.
        graph: ONNX file.
        backend: What runs it.
    """

    name: str
    graph: Path
    backend: str


@dataclass(frozen=True)
class Samples:
    """What one side gave.

    Attributes:
        load_seconds: From loading the graph to the first answer, median of all launches.
        steady: Whether its median latency had settled before it was timed, in every launch.
        requests: Timed requests of each sample, at least.
        seconds: Median latency of each round.
        logits: (N, classes), of the images in order.
    """

    load_seconds: float
    steady: bool
    requests: int
    seconds: tuple[float, ...]
    logits: Array


def interleave(
    entrants: Sequence[Entrant],
    images: Array,
    batch: int,
    threads: int,
    rounds: int,
    block: int,
    track: Track = silent,
    title: str = "Timing",
) -> list[Samples]:
    """Times every entrant once in each round.

    Args:
        entrants: Who takes part.
        images: Normalised images (N, C, H, W) to rotate through.
        batch: Images per request.
        threads: CPU threads of each; 0 for all cores.
        rounds: Samples of each; a multiple of `block`.
        block: Rounds after which all are started anew.
        track: Progress reporter.
        title: What it shows.

    Raises:
        BackendError: A backend cannot run here or refuses a graph, or a process died.
    """
    launches = [
        partial(
            in_worker,
            __name__,
            entrant.name,
            (entrant.graph.absolute(), entrant.backend, threads, images, batch),
        )
        for entrant in entrants
    ]
    return [
        _samples(side.opened, side.seconds)
        for side in take_turns(launches, rounds, block, track, title)
    ]


def _samples(opened: Sequence[Any], seconds: tuple[float, ...]) -> Samples:
    load_seconds, steady, requests, logits = zip(*opened, strict=True)
    return Samples(statistics.median(load_seconds), all(steady), min(requests), seconds, logits[0])


def _answers(requests: Iterator[Any]) -> Iterator[Any]:
    """One side's process: opens what the first request names, then times once per request."""
    for path, backend, threads, images, batch in requests:
        began = time.perf_counter()
        infer = open_graph(path, backend, threads)
        batches = rotate(images, batch)
        parts = [infer(next(batches))]
        load_seconds = time.perf_counter() - began
        parts += [infer(next(batches)) for _ in range(math.ceil(len(images) / batch) - 1)]
        steady, latency = warm_up(infer, batches)
        count = max(_LEAST_REQUESTS, math.ceil(_SAMPLE_SECONDS / latency))
        yield load_seconds, steady, count, np.concatenate(parts)[: len(images)]
        for _ in requests:
            yield sample(infer, batches, count)


def sample(infer: Infer, batches: Iterator[Array], count: int) -> float:
    """Median seconds of `count` requests, after one that wakes threads and caches up."""
    infer(next(batches))
    seconds = []
    for _ in range(count):
        request = next(batches)
        began = time.perf_counter()
        infer(request)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    serve(_answers)
