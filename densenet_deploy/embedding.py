"""Runs an embedding suite: the same bundle, backend and images in C++ and in Python."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from densenet_deploy import embedded, environment
from densenet_deploy.bundle import Bundle
from densenet_deploy.choose import find_recipe
from densenet_deploy.embedded import Side, Start, Task, cpp_command, python_command, start
from densenet_deploy.embedding_suite import EmbeddingSuite
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import BackendError, MissingDependencyError
from densenet_deploy.files import sha256
from densenet_deploy.paired import Ratio, Verdict, block_size, ratio
from densenet_deploy.pipeline import export_bundle
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime import why_unavailable
from densenet_deploy.turns import take_turns

SCHEMA_VERSION = 1
PROGRAM = "densenet-infer"
Part = Literal["engine", "image"]


@dataclass(frozen=True)
class Claim:
    """What is compared, and what must come out.

    Attributes:
        model: As the suite names it.
        precision: Of the graph.
        part: The engine alone, or from an image file to probabilities.
        floor: Of Python / C++; None for models other than the suite's own.
    """

    model: str
    precision: Precision
    part: Part
    floor: float | None


@dataclass(frozen=True)
class Compared:
    """One part of the work in C++ and in Python; its truth value is that the floor does not fail.

    Attributes:
        claim: What this is.
        speedup: Python / C++.
        cpp_seconds: One sample of each round.
        python_seconds: Likewise.
        cpp_load_seconds: From opening the bundle to the first answer, median of all launches.
        python_load_seconds: Likewise.
        steady: Whether the median latency of every process had settled before it was timed.
    """

    claim: Claim
    speedup: Ratio
    cpp_seconds: tuple[float, ...]
    python_seconds: tuple[float, ...]
    cpp_load_seconds: float
    python_load_seconds: float
    steady: bool

    @property
    def verdict(self) -> Verdict | None:
        """On the floor; None where there is none."""
        floor = self.claim.floor
        return None if floor is None else self.speedup.verdict(floor)

    def __bool__(self) -> bool:
        return self.verdict != "fail"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, raw samples among them."""
        return {
            **asdict(self.claim),
            "speedup": self.speedup.to_dict(),
            "verdict": self.verdict,
            "cpp_median_seconds": statistics.median(self.cpp_seconds),
            "python_median_seconds": statistics.median(self.python_seconds),
            "cpp_seconds": [round(value, 7) for value in self.cpp_seconds],
            "python_seconds": [round(value, 7) for value in self.python_seconds],
            "cpp_load_seconds": self.cpp_load_seconds,
            "python_load_seconds": self.python_load_seconds,
            "steady": self.steady,
        }


@dataclass(frozen=True)
class Started:
    """Cold starts of either program for one image, one after the other.

    Attributes:
        model: As the suite names it.
        precision: Of the graph.
        cpp: Runs of the C++ program.
        python: Runs of the Python command.
    """

    model: str
    precision: Precision
    cpp: tuple[Start, ...]
    python: tuple[Start, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: every run, and medians."""
        table: dict[str, Any] = {"model": self.model, "precision": self.precision}
        for name, runs in (("cpp", self.cpp), ("python", self.python)):
            seconds = [run.seconds for run in runs]
            peaks = [run.peak_bytes for run in runs]
            table[f"{name}_median_seconds"] = statistics.median(seconds)
            table[f"{name}_median_peak_bytes"] = statistics.median(peaks)
            table[f"{name}_seconds"] = [round(value, 4) for value in seconds]
            table[f"{name}_peak_bytes"] = peaks
        return table


@dataclass(frozen=True)
class Embedding:
    """Everything one run of a suite found; its truth value is that no floor fails.

    Attributes:
        suite: What was run.
        threads: CPU threads of each side.
        pairs: Rounds.
        block: Rounds after which both sides are started anew.
        program_sha256: Of the C++ program.
        compared: Every comparison.
        started: Cold starts.
    """

    suite: EmbeddingSuite
    threads: int
    pairs: int
    block: int
    program_sha256: str
    compared: tuple[Compared, ...]
    started: tuple[Started, ...]

    def __bool__(self) -> bool:
        return all(self.compared)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite.to_dict(),
            "threads": self.threads,
            "pairs": self.pairs,
            "block": self.block,
            "passed": bool(self),
            "method": embedded.METHOD,
            "program_sha256": self.program_sha256,
            "environment": environment.describe(),
            "comparisons": [record.to_dict() for record in self.compared],
            "starts": [record.to_dict() for record in self.started],
        }


def find_program(given: str = "") -> Path:
    """The C++ program: as given, of this checkout's preset `cpu`, or on the path.

    Raises:
        BackendError: It is nowhere.
    """
    built = Path(__file__).parents[1] / "cpp" / "build" / "cpu" / "app" / PROGRAM
    for candidate in (given,) if given else (str(built), PROGRAM):
        if found := shutil.which(candidate):
            return Path(found)
    raise BackendError(
        f"{given or PROGRAM} is not there",
        expected="the C++ program",
        remedy="build it with `make cpp` in a checkout, or name it with --program",
    )


def embed(
    suite: EmbeddingSuite,
    program: Path,
    models: Sequence[str] = (),
    pairs: int = 0,
    track: Track = silent,
) -> Embedding:
    """Runs a suite, one model and precision after another.

    Args:
        suite: What to time.
        program: densenet-infer, with the suite's backend.
        models: Instead of the suite's; it claims nothing about others than its own.
        pairs: Rounds instead of the suite's; fewer than 20 decide nothing.
        track: Progress reporter.

    Raises:
        BackendError: Either side cannot run here, or dies.
        DeployError: Whatever a stage found wrong.
    """
    if reason := why_unavailable(suite.backend):
        raise BackendError(f"{suite.backend} cannot run here: {reason}")
    threads, rounds = suite.threads or usable_cores(), pairs or suite.pairs
    block = block_size(rounds, suite.block)
    recipes = {name: find_recipe(name) for name in models or suite.models}
    compared: list[Compared] = []
    started: list[Started] = []
    for name, recipe in recipes.items():
        with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
            bundle, _ = export_bundle(recipe, Path(folder) / "bundle", track)
            for precision in suite.precisions:
                engine = Task(
                    bundle.path, suite.backend, precision, threads, bundle.manifest.batch[0]
                )
                image = replace(engine, images=_images(bundle))
                parts: dict[Part, Task] = {"engine": engine, "image": image}
                for part, task in parts.items():
                    floor = suite.floor if name in suite.models else None
                    claim = Claim(name, precision, part, floor)
                    compared.append(_compare(claim, task, program, rounds, block, track))
                started.append(_start(name, image, program, suite.starts, track))
    return Embedding(
        suite, threads, rounds, block, sha256(program), tuple(compared), tuple(started)
    )


def _compare(
    claim: Claim, task: Task, program: Path, rounds: int, block: int, track: Track
) -> Compared:
    """Both sides, started anew for each block of rounds."""
    launches = [
        partial(Side, command) for command in (cpp_command(program, task), python_command(task))
    ]
    title = f"{claim.model} {claim.precision}, {claim.part}"
    cpp, python = take_turns(launches, rounds, block, track, title)
    return Compared(
        claim=claim,
        speedup=ratio(python.seconds, cpp.seconds, block),
        cpp_seconds=cpp.seconds,
        python_seconds=python.seconds,
        cpp_load_seconds=statistics.median(opening.load_seconds for opening in cpp.opened),
        python_load_seconds=statistics.median(opening.load_seconds for opening in python.opened),
        steady=all(opening.steady for opening in (*cpp.opened, *python.opened)),
    )


def _start(name: str, task: Task, program: Path, times: int, track: Track) -> Started:
    """Both programs for the first image, in turns: what a user types."""
    one = replace(task, images=task.images[:1], threads=0)
    command = [sys.executable, "-P", "-m", "densenet_deploy.cli.app"]
    images = [str(path) for path in one.images]
    options = ["--backend", one.backend, "--precision", one.precision]
    cpp: list[Start] = []
    python: list[Start] = []
    for _ in track(range(times), f"{name} {task.precision}, cold starts", times):
        cpp.append(start([str(program), "classify", str(one.bundle), *images, *options]))
        python.append(start([*command, "predict", str(one.bundle), *images, *options]))
    return Started(name, task.precision, tuple(cpp), tuple(python))


def _images(bundle: Bundle) -> tuple[Path, ...]:
    """The bundle's samples; for a network that takes colour a real photograph, 512x600 pixels."""
    if bundle.manifest.preprocessing.channels == 1:
        return tuple(map(bundle.file, bundle.manifest.samples))
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        raise MissingDependencyError.of("matplotlib", "report", "its sample photograph")
    return (Path(found.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg",)
