"""Suites: one TOML file says what is measured, and what must come out.

Its `kind` says which measure: `latency` times sides against each other, `accuracy` asks int8 graphs
about every test image, `traffic` counts the bytes that TensorRT-RTX's kernels move, `embedding`
times the C++ runtime against the Python one, `training-accuracy` trains recipes from several seeds,
`training-memory` and `training-speed` measure training steps, `inference-memory` the memory of
requests.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from densenet_deploy import schema
from densenet_deploy.embedding_suite import EmbeddingSuite
from densenet_deploy.errors import RecipeError
from densenet_deploy.inference_suite import InferenceMemorySuite
from densenet_deploy.paired import check_rounds
from densenet_deploy.recipe import DataConfig, Target, recipe_folder
from densenet_deploy.study_suite import StudySuite
from densenet_deploy.training_suite import TrainingMemorySuite, TrainingSpeedSuite

GraphKind = Literal[
    "plain", "plain-fp16", "fp32", "fp16", "int8", "quantize-static", "quantize-static-tensorrt"
]
SideBackend = Literal["onnxruntime", "openvino"]
LOWERED: tuple[GraphKind, ...] = ("fp32", "fp16", "int8")  # those that are made for a target
_WHOLE = DataConfig(sample=False)


@dataclass(frozen=True)
class Side:
    """A graph on a backend, of the model that is being timed or of a rival.

    Attributes:
        name: How comparisons call it.
        graph: `plain`: torch.onnx's fp32 export, not rewritten; `fp32`: rewritten for the target;
            `plain-fp16`, `fp16`: those in half precision; `int8`: `fp32` quantized for the target;
            `quantize-static`: the plain one through ONNX Runtime's quant_pre_process and
            quantize_static; `quantize-static-tensorrt`: likewise, with int8 activations,
            zero-points 0 and floating-point biases, and in half what is not quantized.
        backend: What runs it.
        target: What `fp32`, `fp16` and `int8` are lowered for; the backend by default.
        model: Recipe or architecture; empty for the suite's model that is being timed.
    """

    name: str
    graph: GraphKind
    backend: SideBackend
    target: Target | None = None
    model: str = ""

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
class LatencySuite:
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
        block: Rounds after which all sides are started anew.
        kind: Which suite this is.
    """

    name: str
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    sides: tuple[Side, ...]
    comparisons: tuple[Comparison, ...]
    description: str = ""
    threads: int = 0
    pairs: int = 24
    block: int = 4
    kind: Literal["latency"] = "latency"

    def __post_init__(self) -> None:
        if not self.models or not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError("models must not be empty and batch_sizes must be positive")
        if self.threads < 0:
            raise ValueError("threads must not be negative")
        check_rounds(self.pairs, self.block)
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


@dataclass(frozen=True)
class AccuracyContract:
    """What int8 may cost against fp32, on every target.

    Attributes:
        mean_drop: Most that top-1 accuracy drops, as the mean of all seeds, in percentage points.
        upper_drop: Largest upper 95 % bound of the drop of each seed, in percentage points.
        agreement: Least share of images with the same top-1 class, of each seed, in percent.
        agreement_goal: What that share should be; None for no goal.
    """

    mean_drop: float
    upper_drop: float
    agreement: float
    agreement_goal: float | None = None

    def __post_init__(self) -> None:
        if any(not 0 <= share <= 100 for share in (self.agreement, self.agreement_goal or 0)):
            raise ValueError("agreement and agreement_goal must be in [0, 100]")


@dataclass(frozen=True)
class AccuracySuite:
    """What int8 costs: each target's graph, calibrated with each seed, on every test image.

    Attributes:
        name: The file's.
        recipe: Of a trained model; its `[quantize]` says how, but for the seed.
        targets: What int8 graphs are made for.
        seeds: Each draws its own calibration images from the training images.
        contract: What must come out.
        description: One line.
        data: Images, instead of the recipe's.
        threads: CPU threads of each backend; 0 for all cores.
        kind: Which suite this is.
    """

    name: str
    recipe: str
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    contract: AccuracyContract
    description: str = ""
    data: DataConfig = _WHOLE
    threads: int = 0
    kind: Literal["accuracy"] = "accuracy"

    def __post_init__(self) -> None:
        for key, values in (("targets", self.targets), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must not be empty, and each be named once")
        if min(self.seeds) < 0 or self.threads < 0:
            raise ValueError("seeds and threads must not be negative")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TrafficLimit:
    """A claim about what TensorRT-RTX makes of a graph.

    Attributes:
        graph: Which.
        models: Where the claim is made; empty for every model of the suite.
        megabytes: Most activation bytes that all kernels together read and write, in 1e6 bytes;
            None to only count them.
        goal: What that should be.
        float_convolutions: The convolutions that need not read Int8; None to not look.
    """

    graph: GraphKind
    models: tuple[str, ...] = ()
    megabytes: float | None = None
    goal: float | None = None
    float_convolutions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if any(most is not None and most <= 0 for most in (self.megabytes, self.goal)):
            raise ValueError("megabytes and goal must be positive")


@dataclass(frozen=True)
class TrafficSuite:
    """What TensorRT-RTX's kernels move at batch 1, by the layer list of its build log.

    Attributes:
        name: The file's.
        models: Recipes, or architectures, which get seeded weights.
        graphs: What is compiled of each, see `Side`; lowered for tensorrt-rtx where for a target.
        limits: Claims about them.
        description: One line.
        compute_capability: What is compiled for.
        kind: Which suite this is.
    """

    name: str
    models: tuple[str, ...]
    graphs: tuple[GraphKind, ...]
    limits: tuple[TrafficLimit, ...] = ()
    description: str = ""
    compute_capability: str = "8.9"
    kind: Literal["traffic"] = "traffic"

    def __post_init__(self) -> None:
        for key, values in (("models", self.models), ("graphs", self.graphs)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must not be empty, and each be named once")
        for limit in self.limits:
            if limit.graph not in self.graphs:
                raise ValueError(f"a limit names graph {limit.graph!r}, which is not compiled")
            if unknown := [model for model in limit.models if model not in self.models]:
                listed = ", ".join(self.models)
                raise ValueError(f"a limit names model {unknown[0]!r}; there are: {listed}")

    def limits_at(self, model: str, graph: GraphKind) -> tuple[TrafficLimit, ...]:
        """The claims about a graph of a model; there are none about other models than its own."""
        if model not in self.models:
            return ()
        at = (limit for limit in self.limits if not limit.models or model in limit.models)
        return tuple(limit for limit in at if limit.graph == graph)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)


Suite = (
    LatencySuite
    | AccuracySuite
    | TrafficSuite
    | EmbeddingSuite
    | StudySuite
    | TrainingMemorySuite
    | TrainingSpeedSuite
    | InferenceMemorySuite
)
KINDS: dict[str, type[Suite]] = {
    "latency": LatencySuite,
    "accuracy": AccuracySuite,
    "traffic": TrafficSuite,
    "embedding": EmbeddingSuite,
    "training-accuracy": StudySuite,
    "training-memory": TrainingMemorySuite,
    "training-speed": TrainingSpeedSuite,
    "inference-memory": InferenceMemorySuite,
}


def suite_folder() -> Path:
    """Folder of the shipped suites, in a wheel or in a checkout."""
    return recipe_folder().parent / "benchmarks" / "suites"


def load_suite(name: str) -> Suite:
    """Reads a suite by name (from benchmarks/suites/) or by path.

    Raises:
        RecipeError: No such suite, not TOML, or a key or value the schema does not have.
    """
    table, path = schema.load_table(name, suite_folder(), "suite")
    kind = table.get("kind")
    if kind not in tuple(KINDS):
        found = "kind is missing" if kind is None else f"kind is {kind!r}"
        raise RecipeError(f"{path.name}: {found}", expected=f"one of {', '.join(KINDS)}")
    problems: list[str] = []
    suite: Suite | None = schema.read(KINDS[kind], table, "", problems)
    if suite is None:
        raise RecipeError.collect(path.name, problems)
    return suite
