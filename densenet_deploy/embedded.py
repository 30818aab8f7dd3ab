"""The two programs that the embedding suite compares.

Either is a process that loads a graph once, warms up, and then gives one timing for each line it is
sent: this module run with `python -m`, and the C++ program `densenet-infer sample`.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar, cast

from densenet_deploy.bench import rotate, warm_up
from densenet_deploy.bundle import Bundle, open_bundle
from densenet_deploy.classifier import Candidate, best
from densenet_deploy.errors import BackendError
from densenet_deploy.interleaved import sample
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime import open_runner
from densenet_deploy.runtime.runner import Runner
from densenet_deploy.worker import here

T = TypeVar("T")
_SAMPLE_SECONDS = 0.05
_LEAST_REQUESTS = 3
_TOP = 3
METHOD = (
    "A sample is the median host wall time of consecutive requests after one that is not timed: "
    "at least 3 requests and about 50 ms. Engine: a normalised image in to logits out. Image: "
    "an image file to its three most probable classes: reading, decoding, resizing, "
    "normalising, the engine, softmax. Either side runs in a process of its own, loaded and "
    "warmed up until its median settles or for 2 s, and started anew for every block of rounds. "
    "In every round each side gives one sample, one at a time, in an order that is reversed "
    "every second round. A ratio is the median over the rounds of Python / C++, with its 95 % "
    "percentile bootstrap interval, for which whole blocks are resampled. Cold start is the "
    "time from starting `densenet-deploy predict` or `densenet-infer classify` to its end, for "
    "one image; peak memory is that process's largest resident set. No sample is dropped."
)


@dataclass(frozen=True)
class Task:
    """What a side repeats.

    Attributes:
        bundle: Directory.
        backend: What runs the graph.
        precision: Of the graph.
        threads: CPU threads.
        batch: Images of a request to the engine.
        images: Files to classify in turn; none for the engine alone.
    """

    bundle: Path
    backend: str
    precision: Precision
    threads: int
    batch: int = 1
    images: tuple[Path, ...] = ()

    def arguments(self) -> list[str]:
        """As either program takes them."""
        options = ["--backend", self.backend, "--precision", self.precision]
        options += ["--threads", str(self.threads), "--batch", str(self.batch)]
        return [str(self.bundle), *map(str, self.images), *options]


def python_command(task: Task) -> list[str]:
    """This module as a program."""
    return [sys.executable, "-P", "-m", __name__, *task.arguments()]


def cpp_command(program: Path, task: Task) -> list[str]:
    """The C++ program."""
    return [str(program), "sample", *task.arguments()]


@dataclass(frozen=True)
class Opening:
    """What a side says before it is timed.

    Attributes:
        load_seconds: From opening the bundle to the first answer.
        steady: Whether its median latency had settled.
        requests: Timed requests of each sample.
    """

    load_seconds: float
    steady: bool
    requests: int


class Side:
    """A program that gives one timing for each line; a context manager that ends it.

    Raises:
        BackendError: It does not start, ends before it has said everything, or says anything else.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._name = Path(command[0]).name
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here()
            )
        except OSError as error:
            raise BackendError(f"{command[0]} does not run: {error}") from None
        self.opened = self._understood(lambda answer: Opening(**answer))

    def seconds(self) -> float:
        """One sample."""
        assert self._process.stdin
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except OSError:
            self._end()
        return self._understood(float)

    def _understood(self, read: Callable[[Any], T]) -> T:
        """Its next line, as `read` takes it."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._end()
        try:
            return read(json.loads(line))
        except (ValueError, TypeError):
            self.close()
            raise BackendError(
                f"{self._name} says {line.strip()[:60]!r}", expected="a side of this suite"
            ) from None

    def _end(self) -> NoReturn:
        self.close()
        raise BackendError(f"{self._name} ended with exit code {self._process.returncode}")

    def close(self) -> None:
        """Lets it end: no more lines come."""
        with suppress(OSError):
            self._process.communicate()

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Start:
    """One run of a program from its start to its end.

    Attributes:
        seconds: Wall time.
        peak_bytes: Its largest resident set.
    """

    seconds: float
    peak_bytes: int


# A process starts with the peak memory of the one that made it, so a small one makes it.
_LAUNCHER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - began, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""


def start(command: Sequence[str]) -> Start:
    """Runs a program once.

    Raises:
        BackendError: It does not run, or fails.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
    done = subprocess.run([*launcher, *command], stdout=subprocess.PIPE, text=True, env=here())
    if done.returncode:
        raise BackendError(f"{command[0]} does not run")
    seconds, peak, code = json.loads(done.stdout)
    if code:
        raise BackendError(f"{Path(command[0]).name} ended with exit code {code}")
    return Start(seconds, peak if sys.platform == "darwin" else 1024 * peak)


def serve(task: Task) -> None:
    """The Python side: the same protocol as `densenet-infer sample`."""
    began = time.perf_counter()
    bundle = open_bundle(task.bundle)
    with open_runner(bundle, task.backend, task.precision, task.threads) as runner:
        infer, requests = _work(bundle, runner, task)
        infer(next(requests))
        loaded = time.perf_counter() - began
        steady, latency = warm_up(infer, requests)
        count = max(_LEAST_REQUESTS, math.ceil(_SAMPLE_SECONDS / latency))
        _say({"load_seconds": loaded, "steady": steady, "requests": count})
        for _ in sys.stdin:
            _say(sample(infer, requests, count))


def _work(bundle: Bundle, runner: Runner, task: Task) -> tuple[Callable[[Any], Any], Iterator[Any]]:
    """What is repeated, and what with."""
    manifest = bundle.manifest
    if not task.images:
        normalised = manifest.preprocessing.normalise(bundle.sample_pixels())
        return runner.logits, rotate(normalised, task.batch)

    def classify(path: Path) -> list[Candidate]:
        pixels = manifest.preprocessing.read(path)
        logits = runner.logits(manifest.preprocessing.normalise(pixels[None]))
        return best(logits[0], manifest.labels, _TOP)

    return classify, itertools.cycle(task.images)


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _task(arguments: Sequence[str]) -> Task:
    """Of the command line that `python_command` makes."""
    names = arguments[: arguments.index("--backend")]
    options = dict(zip(arguments[len(names) :: 2], arguments[len(names) + 1 :: 2], strict=True))
    return Task(
        bundle=Path(names[0]),
        backend=options["--backend"],
        precision=cast(Precision, options["--precision"]),
        threads=int(options["--threads"]),
        batch=int(options["--batch"]),
        images=tuple(map(Path, names[1:])),
    )


if __name__ == "__main__":
    serve(_task(sys.argv[1:]))
