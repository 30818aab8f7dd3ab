"""Suites: one TOML file says which sides are timed against each other, and what must come out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from densenet_deploy import schema
from densenet_deploy.errors import RecipeError
from densenet_deploy.paired import LEAST_PAIRS
from densenet_deploy.recipe import Target, recipe_folder

GraphKind = Literal["plain", "fp32", "int8", "quantize-static"]
SideBackend = Literal["onnxruntime", "openvino"]
LOWERED: tuple[GraphKind, ...] = ("fp32", "int8")  # those that are made for a target


@dataclass(frozen=True)
class Side:
    """A graph on a backend.

    Attributes:
        name: How comparisons call it.
        graph: `plain`: torch.onnx's fp32 export, not rewritten; `fp32`: rewritten for the target;
            `int8`: that, quantized for the target; `quantize-static`: the plain one through ONNX
            Runtime's quant_pre_process and quantize_static.
        backend: What runs it.
        target: What `fp32` and `int8` are lowered for; the backend by default.
    """

    name: str
    graph: GraphKind
    backend: SideBackend
    target: Target | None = None

    def __post_init__(self) -> None:
        if self.graph not in LOWERED and self.target is not None:
            raise ValueError(f"a {self.graph} graph is made for no target")

    @property
    def lowered_for(self) -> Target | None:
        """Target of the graph; None for a graph that has none."""
        return (self.target or self.backend) if self.graph in LOWERED else None


@dataclass(frozen=True)
class Comparison:
    """A claim: the candidate is so many times faster than the baseline.

    Attributes:
        candidate: Name of a side.
        baseline: Name of the side it is measured against.
        floor: Speed-up it must reach, see `paired.Ratio.verdict`; None to only measure it.
        goal: Speed-up it should reach.
        models: Where the claim is made; empty for every model of the suite.
        batch_sizes: Likewise.
    """

    candidate: str
    baseline: str
    floor: float | None = None
    goal: float | None = None
    models: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.candidate == self.baseline:
            raise ValueError(f"{self.candidate!r} is compared with itself")
        if any(least is not None and least <= 0 for least in (self.floor, self.goal)):
            raise ValueError("floor and goal must be positive")

    def made_at(self, model: str, batch: int) -> bool:
        """Whether the claim is about this model and batch size."""
        return (not self.models or model in self.models) and (
            not self.batch_sizes or batch in self.batch_sizes
        )


@dataclass(frozen=True)
class Suite:
    """What is timed against what.

    Attributes:
        name: The file's.
        description: One line.
        models: Recipes, or architectures, which get seeded weights.
        batch_sizes: Images per request.
        sides: Everything that is timed.
        comparisons: Claims about pairs of sides.
        threads: CPU threads of each side; 0 for all cores.
        pairs: Rounds, in each of which every side is timed once.
    """

    name: str
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    sides: tuple[Side, ...]
    comparisons: tuple[Comparison, ...]
    description: str = ""
    threads: int = 0
    pairs: int = 24

    def __post_init__(self) -> None:
        if not self.models or not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError("models must not be empty and batch_sizes must be positive")
        if self.threads < 0 or self.pairs < LEAST_PAIRS:
            raise ValueError(f"threads must not be negative and pairs at least {LEAST_PAIRS}")
        names = [side.name for side in self.sides]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sides are called {doubled[0]!r}")
        for comparison in self.comparisons:
            self._check(comparison)
        compared = {name for c in self.comparisons for name in (c.candidate, c.baseline)}
        if idle := [name for name in names if name not in compared]:
            raise ValueError(f"side {idle[0]!r} is in no comparison")

    def _check(self, comparison: Comparison) -> None:
        known: list[tuple[str, tuple[Any, ...], list[Any]]] = [
            ("side", (comparison.candidate, comparison.baseline), [s.name for s in self.sides]),
            ("model", comparison.models, list(self.models)),
            ("batch size", comparison.batch_sizes, list(self.batch_sizes)),
        ]
        for kind, used, valid in known:
            if unknown := [value for value in used if value not in valid]:
                listed = ", ".join(map(str, valid))
                raise ValueError(f"a comparison names {kind} {unknown[0]!r}; there are: {listed}")

    def comparisons_at(self, model: str, batch: int) -> tuple[Comparison, ...]:
        """The claims about a model and batch size.

        Elsewhere than at its own models and batch sizes a suite claims nothing: every pair of sides
        is compared there, without floors and goals.
        """
        if model in self.models and batch in self.batch_sizes:
            return tuple(c for c in self.comparisons if c.made_at(model, batch))
        pairs = dict.fromkeys((c.candidate, c.baseline) for c in self.comparisons)
        return tuple(Comparison(candidate, baseline) for candidate, baseline in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)


def suite_folder() -> Path:
    """Folder of the shipped suites, in a wheel or in a checkout."""
    return recipe_folder().parent / "benchmarks" / "suites"


def load_suite(name: str) -> Suite:
    """Reads a suite by name (from benchmarks/suites/) or by path.

    Raises:
        RecipeError: No such suite, not TOML, or a key or value the schema does not have.
    """
    table, path = schema.load_table(name, suite_folder(), "suite")
    problems: list[str] = []
    suite = schema.read(Suite, table, "", problems)
    if suite is None:
        raise RecipeError.collect(path.name, problems)
    return suite
