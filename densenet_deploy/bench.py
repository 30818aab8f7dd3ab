"""Latency and throughput of a bundle: each backend in a process of its own, on real images.

What is timed is one request on the host: normalised images in, logits out, on a GPU with both
copies and the wait for it; decoding and normalisation are not. Warm-up ends when the median
settles, and no latency is dropped.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densenet_deploy.bundle import Bundle, open_bundle
from densenet_deploy.engine.options import TITLES
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import BackendError, DeployError
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import BenchConfig, Precision
from densenet_deploy.results import Measurement, Skipped
from densenet_deploy.runtime import DEFAULT_RUN, runs
from densenet_deploy.runtime.fallback import REBUILD, open_with_fallback
from densenet_deploy.runtime.runner import Array, Infer, Runner
from densenet_deploy.worker import Worker, serve

_WINDOW_SECONDS = 0.1
_WARMUP_SECONDS = (0.3, 2.0)  # least and most
_STEADY = 0.02  # medians of three windows within 2 %
_LEAST_REQUESTS = 10
# Lazily it would be timed on the kernels it uses until the right ones are compiled.
_RUN = {"tensorrt-rtx": RunConfig(dynamic_shapes="eager")}
_ALL_HERE: Mapping[str, str] = {}


def bench(
    bundle: Bundle,
    backends: Sequence[str],
    precisions: Sequence[Precision],
    config: BenchConfig,
    track: Track = silent,
    pythons: Mapping[str, str] = _ALL_HERE,
    refused: Callable[[Skipped], None] | None = None,
    rebuild: bool = False,
) -> list[Measurement]:
    """Measures every precision on every backend at every batch size, one after another.

    Args:
        bundle: What to run.
        backends: Available backends.
        precisions: Some of the bundle's.
        config: Batch sizes, seconds, threads.
        track: Progress reporter.
        pythons: Interpreters of backends that run in an environment of their own.
        refused: Told of a precision that a backend refuses, and the others are still measured; by
            default that is an error.
        rebuild: Compile an engine for this device where the bundle has none that fits.

    Raises:
        BackendError: A batch size is outside the bundle's bounds, a backend refuses a precision, or
            its process died.
    """
    low, _, high = bundle.manifest.batch
    outside = [size for size in config.batch_sizes if not low <= size <= high]
    if outside:
        raise BackendError(
            f"batch size {outside[0]}",
            expected=f"{low} to {high}",
            remedy="choose --batch within the bounds, or export again with wider ones",
        )
    jobs = [
        (backend, precision)
        for backend in backends
        for precision in precisions
        if runs(backend, precision)
    ]
    results: list[Measurement] = []
    for backend, precision in track(jobs, "Benchmarking", len(jobs)):
        try:
            with Worker(__name__, f"{precision} on {backend}", pythons.get(backend, "")) as worker:
                # Pythons do not read each other's pickled paths.
                path = str(bundle.path.absolute())
                results += worker.ask((path, backend, precision, config, rebuild))
        except DeployError as error:
            if refused is None:
                raise
            refused(Skipped(backend, f"{precision}: {error}"))
    return results


def _answers(requests: Iterator[Any]) -> Iterator[list[Measurement]]:
    """The measured process."""
    for path, *job in requests:
        yield measure_bundle(Path(path), *job)


def measure_bundle(
    path: Path, backend: str, precision: Precision, config: BenchConfig, rebuild: bool = False
) -> list[Measurement]:
    """Opens one graph in this process and measures it at every batch size."""
    bundle = open_bundle(path)
    images = bundle.manifest.preprocessing.normalise(bundle.sample_pixels())
    threads = config.threads or usable_cores()
    began = time.perf_counter()
    how = _RUN.get(backend, DEFAULT_RUN)
    ways = (REBUILD,) if rebuild and backend in TITLES else ()
    with open_with_fallback(bundle, backend, precision, threads, how, ways) as runner:
        runner.logits(next(rotate(images, bundle.manifest.batch[0])))
        load_seconds = time.perf_counter() - began
        return [
            measure(runner, images, size, config.seconds, threads, load_seconds)
            for size in config.batch_sizes
        ]


def measure(
    runner: Runner,
    images: Array,
    batch: int,
    seconds: float,
    threads: int,
    load_seconds: float = 0.0,
) -> Measurement:
    """Warms up until steady, then times back-to-back requests (MLPerf's single stream).

    Args:
        runner: An open runner.
        images: Normalised images (N, C, H, W) to rotate through.
        batch: Images per request.
        seconds: Least duration of the timed part; at least 10 requests are made.
        threads: For the record.
        load_seconds: For the record.
    """
    requests = rotate(images, batch)
    began = time.perf_counter()
    steady, _ = warm_up(runner.logits, requests)
    start = time.perf_counter()
    latencies: list[float] = []
    end = start
    while end - start < seconds or len(latencies) < _LEAST_REQUESTS:
        request = next(requests)
        before = time.perf_counter()
        runner.logits(request)
        end = time.perf_counter()
        latencies.append(end - before)
    return Measurement(
        precision=runner.precision,
        backend=runner.backend,
        batch=batch,
        threads=threads,
        load_seconds=load_seconds,
        warmup_seconds=start - began,
        steady=steady,
        latencies=tuple(latencies),
    )


def rotate(images: Array, batch: int) -> Iterator[Array]:
    """Endless batches that walk through the images, so that no two in a row are the same."""
    position = 0
    while True:
        rows = np.arange(position, position + batch) % len(images)
        yield np.ascontiguousarray(images[rows])
        position = (position + batch) % len(images)


def warm_up(infer: Infer, requests: Iterator[Array]) -> tuple[bool, float]:
    """Runs until three successive windows have the same median.

    Returns:
        Whether they had before time ran out, and the last median in seconds.
    """
    least, most = _WARMUP_SECONDS
    medians: list[float] = []
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < most:
        window: list[float] = []
        while sum(window) < _WINDOW_SECONDS:
            before = time.perf_counter()
            infer(next(requests))
            window.append(time.perf_counter() - before)
        medians.append(statistics.median(window))
        last = medians[-3:]
        if elapsed >= least and len(last) == 3 and max(last) <= (1 + _STEADY) * min(last):
            return True, medians[-1]
    return False, medians[-1]


if __name__ == "__main__":
    serve(_answers)
