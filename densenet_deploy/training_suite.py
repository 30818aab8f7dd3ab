"""The suites that measure training: the memory a step holds, and how long one takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from densenet_deploy.paired import check_rounds

Mode = Literal["memory-efficient", "naive", "torchvision"]
StepPrecision = Literal["fp32", "bf16"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class StepTask:
    """A training step that is repeated.

    Attributes:
        model: Architecture.
        mode: `memory-efficient` and `naive`: ours, with and without recomputation;
            `torchvision`: the model of this name there.
        batch: Images.
        input_shape: (channels, height, width); None for the architecture's own.
        precision: `bf16` is autocast.
    """

    model: str
    mode: Mode
    batch: int
    input_shape: Shape | None = None
    precision: StepPrecision = "fp32"


@dataclass(frozen=True)
class MemoryLimit:
    """A claim: what memory-efficient training takes, as a share of what naive training takes.

    Attributes:
        model: Architecture.
        batch: Images of a step.
        held: Largest share of the bytes held for the backward pass; None to only measure it.
        goal: What that share should be.
        seconds: Most times as long as a naive step that one may last; None to only measure it.
    """

    model: str
    batch: int
    held: float | None = None
    goal: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if any(most is not None and most <= 0 for most in (self.held, self.goal, self.seconds)):
            raise ValueError("held, goal and seconds must be positive")
        if self.batch < 1:
            raise ValueError("batch must be positive")


@dataclass(frozen=True)
class DepthSweep:
    """Networks of one kind and growth rate, of rising depth.

    Attributes:
        depths: L of each.
        growth_rate: k.
        variant: Without or with bottlenecks and compression, see `spec.cifar`.
        batch: Images of a step.
        pairs: Rounds, in each of which a step of either mode is timed once.
    """

    depths: tuple[int, ...]
    growth_rate: int = 12
    variant: Literal["plain", "b", "c", "bc"] = "bc"
    batch: int = 16
    pairs: int = 10

    def __post_init__(self) -> None:
        if list(self.depths) != sorted(set(self.depths)) or min(self.batch, self.pairs) < 1:
            raise ValueError("depths must rise, and batch and pairs be positive")

    def model(self, depth: int) -> str:
        """The architecture's name."""
        kind = "" if self.variant == "plain" else f"{self.variant}-"
        return f"densenet-{kind}{depth}-{self.growth_rate}"


@dataclass(frozen=True)
class TrainingMemorySuite:
    """What a training step holds and peaks at, memory-efficient against naive.

    Attributes:
        name: The file's.
        limits: Claims, each about one network.
        sweep: Networks of rising depth; None for none.
        description: One line.
        threads: CPU threads; 0 for all cores.
        pairs: Rounds, in each of which a step of either mode is timed once.
        block: Rounds after which both are started anew.
        kind: Which suite this is.
    """

    name: str
    limits: tuple[MemoryLimit, ...]
    sweep: DepthSweep | None = None
    description: str = ""
    threads: int = 0
    pairs: int = 24
    block: int = 4
    kind: Literal["training-memory"] = "training-memory"

    def __post_init__(self) -> None:
        names = [limit.model for limit in self.limits]
        if not names or len(set(names)) < len(names):
            raise ValueError("limits must not be empty, and name each model once")
        if self.threads < 0:
            raise ValueError("threads must not be negative")
        check_rounds(self.pairs, self.block)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class StepComparison:
    """A claim: a step of the candidate is so many times faster than one of the baseline.

    Attributes:
        model: Architecture.
        candidate: See `StepTask.mode`.
        baseline: Likewise.
        batch_sizes: Images of a step.
        precisions: See `StepTask.precision`.
        input_shape: (channels, height, width); None for the architecture's own.
        floor: Speed-up it must reach, see `paired.Ratio.verdict`; None to only measure it.
        goal: Speed-up it should reach.
    """

    model: str
    candidate: Mode
    baseline: Mode
    batch_sizes: tuple[int, ...]
    precisions: tuple[StepPrecision, ...] = ("fp32", "bf16")
    input_shape: Shape | None = None
    floor: float | None = None
    goal: float | None = None

    def __post_init__(self) -> None:
        if self.candidate == self.baseline:
            raise ValueError(f"{self.candidate!r} is compared with itself")
        if not self.precisions or not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError("precisions must not be empty and batch_sizes must be positive")
        if any(least is not None and least <= 0 for least in (self.floor, self.goal)):
            raise ValueError("floor and goal must be positive")
        if self.input_shape is not None and "torchvision" in (self.candidate, self.baseline):
            raise ValueError("torchvision's models have an input_shape of their own")


@dataclass(frozen=True)
class TrainingSpeedSuite:
    """Training steps that are timed against each other.

    Attributes:
        name: The file's.
        comparisons: Claims about pairs of steps.
        description: One line.
        threads: CPU threads of each side; 0 for all cores.
        pairs: Rounds, in each of which every side is timed once.
        block: Rounds after which all sides are started anew.
        kind: Which suite this is.
    """

    name: str
    comparisons: tuple[StepComparison, ...]
    description: str = ""
    threads: int = 0
    pairs: int = 24
    block: int = 4
    kind: Literal["training-speed"] = "training-speed"

    def __post_init__(self) -> None:
        if not self.comparisons:
            raise ValueError("comparisons must not be empty")
        if self.threads < 0:
            raise ValueError("threads must not be negative")
        check_rounds(self.pairs, self.block)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)
