"""Runs a traffic suite: what TensorRT-RTX's kernels read and write at batch 1, of each graph.

It compiles without a GPU. Bytes are those of activations between kernels, by the layer list of the
build log; weights are not among them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from densenet_deploy import environment
from densenet_deploy.choose import find_recipe
from densenet_deploy.engine.build import compile_layers, engine_version
from densenet_deploy.engine.layers import EngineLayers
from densenet_deploy.engine_config import EngineBackend
from densenet_deploy.paired import Verdict
from densenet_deploy.progress import Track, once, silent
from densenet_deploy.recipe import Recipe
from densenet_deploy.sides import describe, export_plain, make_graph
from densenet_deploy.source import Source, prepare
from densenet_deploy.suite import LOWERED, GraphKind, TrafficLimit, TrafficSuite

SCHEMA_VERSION = 1
METHOD = (
    "Each graph is compiled ahead of time by TensorRT-RTX for one compute capability with the "
    "static batch 1. bytes_in and bytes_out are the sizes of the activations that the kernels of "
    "the engine read and write, each kernel for itself, summed over the layer list of the verbose "
    "build log; weights and other constants are not counted. MB are 1e6 bytes."
)
_BACKEND: EngineBackend = "tensorrt-rtx"


@dataclass(frozen=True)
class Weighed:
    """The engine of one graph; its truth value is that no limit fails.

    Attributes:
        model: As the suite names it.
        graph: What was compiled, see `suite.Side`.
        layers: The engine's kernels.
        limits: The suite's claims about it.
        graph_sha256: Of the ONNX file.
        graph_bytes: Its size.
        engine_bytes: Size of the engine.
        make_seconds: Rewriting and quantizing.
        build_seconds: Compiling.
    """

    model: str
    graph: GraphKind
    layers: EngineLayers
    limits: tuple[TrafficLimit, ...]
    graph_sha256: str
    graph_bytes: int
    engine_bytes: int
    make_seconds: float
    build_seconds: float

    @property
    def bytes_in(self) -> int:
        """Activation bytes that all kernels read."""
        assert self.layers.bytes_in is not None  # the batch is static
        return self.layers.bytes_in

    @property
    def bytes_out(self) -> int:
        """Activation bytes that all kernels write."""
        assert self.layers.bytes_out is not None
        return self.layers.bytes_out

    @property
    def megabytes(self) -> float:
        """Both together, in 1e6 bytes."""
        return (self.bytes_in + self.bytes_out) / 1e6

    @property
    def convolutions(self) -> int:
        """Their number."""
        return len(self.layers.of("convolution").layers)

    @property
    def int8_convolutions(self) -> int:
        """Those that read Int8."""
        return self.convolutions - len(self.layers.without_int8())

    @property
    def floor(self) -> float | None:
        """Most megabytes it may move; None where nothing limits them."""
        return min((m for limit in self.limits if (m := limit.megabytes) is not None), default=None)

    @property
    def goal(self) -> float | None:
        """Most megabytes it should move; None where there is no goal."""
        return min((m for limit in self.limits if (m := limit.goal) is not None), default=None)

    @property
    def failures(self) -> tuple[str, ...]:
        """Every limit it misses."""
        failures = []
        if self.floor is not None and self.megabytes > self.floor:
            failures.append(f"{self.megabytes:.2f} MB, allowed {self.floor}")
        for limit in self.limits:
            if limit.float_convolutions is not None:
                wide = set(self.layers.without_int8()) - set(limit.float_convolutions)
                failures += [f"{name} does not read Int8" for name in sorted(wide)]
        return tuple(failures)

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def verdict(self) -> Verdict | None:
        """On the limits; None where there are none."""
        if self.floor is None and all(limit.float_convolutions is None for limit in self.limits):
            return None
        return "pass" if self else "fail"

    @property
    def goal_verdict(self) -> Verdict | None:
        """On the goal; None where there is none."""
        if self.goal is None:
            return None
        return "pass" if self.megabytes <= self.goal else "fail"

    def summary(self) -> str:
        """One line for people."""
        verdict = "" if self else ": FAIL: " + "; ".join(self.failures)
        return (
            f"{self.model}, {self.graph}: {self.megabytes:.1f} MB by {len(self.layers.layers)} "
            f"kernels, Int8 into {self.int8_convolutions} of {self.convolutions} convolutions"
            f"{verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        listed = self.layers.to_dict()
        del listed["parts"]  # `inspect` of a build log tells them
        return {
            "model": self.model,
            "graph": self.graph,
            "target": _BACKEND if self.graph in LOWERED else None,
            **listed,
            "bytes": self.bytes_in + self.bytes_out,
            "convolutions": self.convolutions,
            "convolutions_with_int8_input": self.int8_convolutions,
            "graph_sha256": self.graph_sha256,
            "graph_bytes": self.graph_bytes,
            "engine_bytes": self.engine_bytes,
            "make_seconds": round(self.make_seconds, 3),
            "build_seconds": round(self.build_seconds, 3),
            "floor_megabytes": self.floor,
            "verdict": self.verdict,
            "failures": list(self.failures),
            "goal_megabytes": self.goal,
            "goal_verdict": self.goal_verdict,
        }


@dataclass(frozen=True)
class Weighing:
    """Everything one run of a suite found; its truth value is that no limit fails.

    Attributes:
        suite: What was run.
        builder: What compiled, with its version.
        models: What the records say of each model.
        weighed: Every graph of every model.
    """

    suite: TrafficSuite
    builder: str
    models: tuple[dict[str, Any], ...]
    weighed: tuple[Weighed, ...]

    def __bool__(self) -> bool:
        return all(self.weighed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite.to_dict(),
            "passed": bool(self),
            "method": METHOD,
            "environment": environment.describe(),
            "builder": self.builder,
            "models": list(self.models),
            "results": [record.to_dict() for record in self.weighed],
        }


def weigh(suite: TrafficSuite, models: Sequence[str] = (), track: Track = silent) -> Weighing:
    """Runs a suite: compiles each graph of one model after another.

    Args:
        suite: What to compile, and the claims.
        models: Instead of the suite's; about others than its own it claims nothing.
        track: Progress reporter.

    Raises:
        BuildError: TensorRT-RTX refuses a graph.
        MissingDependencyError: It is not installed.
        DeployError: Whatever a stage found wrong.
    """
    builder = f"{_BACKEND} {engine_version(_BACKEND)}"
    recipes = {name: find_recipe(name) for name in models or suite.models}  # all, before any builds
    records: list[dict[str, Any]] = []
    weighed: list[Weighed] = []
    for name, recipe in recipes.items():
        source = prepare(recipe, track)
        records.append(describe(name, recipe, source))
        weighed += _weigh(suite, name, recipe, source, track)
    return Weighing(suite, builder, tuple(records), tuple(weighed))


def _weigh(
    suite: TrafficSuite, name: str, recipe: Recipe, source: Source, track: Track
) -> list[Weighed]:
    """Every graph of one model."""
    plain = once(track, f"Exporting {recipe.name}", lambda: export_plain(source))
    pixels = source.calibration.pixels[: recipe.quantize.images]
    calibration = source.preprocessing.normalise(pixels)
    found = []
    for kind in track(suite.graphs, f"Compiling {recipe.name}"):
        began = time.perf_counter()
        target = _BACKEND if kind in LOWERED else None
        graph = make_graph(kind, target, plain, calibration, recipe.quantize)
        made = time.perf_counter()
        engine, layers = compile_layers(graph, suite.compute_capability)
        record = Weighed(
            model=name,
            graph=kind,
            layers=layers,
            limits=suite.limits_at(name, kind),
            graph_sha256=hashlib.sha256(graph).hexdigest(),
            graph_bytes=len(graph),
            engine_bytes=len(engine),
            make_seconds=made - began,
            build_seconds=time.perf_counter() - made,
        )
        found.append(record)
    return found
