"""The suite that compares programs which embed a bundle: the C++ runtime with the Python one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from densenet_deploy.paired import check_rounds
from densenet_deploy.recipe import PRECISIONS, Precision


@dataclass(frozen=True)
class EmbeddingSuite:
    """What is timed in C++ and in Python, on the same backend, bundle and images.

    Attributes:
        name: The file's.
        models: Recipes, or architectures, which get seeded weights.
        precisions: Of their graphs.
        floor: Times that C++ must be as fast as Python: the engine alone at batch 1, and from an
            image file to class probabilities.
        description: One line.
        backend: What runs the graphs.
        threads: CPU threads of each side; 0 for all cores.
        pairs: Rounds, in each of which either side is timed once.
        block: Rounds after which both sides are started anew: the ratio of two launches differs
            by a few percent from that of two others.
        starts: Times that either program is started anew, for its cold start and peak memory.
        kind: Which suite this is.
    """

    name: str
    models: tuple[str, ...]
    precisions: tuple[Precision, ...] = PRECISIONS
    floor: float = 1.0
    description: str = ""
    backend: Literal["openvino", "onnxruntime"] = "openvino"
    threads: int = 0
    pairs: int = 24
    block: int = 2
    starts: int = 5
    kind: Literal["embedding"] = "embedding"

    def __post_init__(self) -> None:
        for key, values in (("models", self.models), ("precisions", self.precisions)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must not be empty, and each be named once")
        if self.floor <= 0 or self.threads < 0 or self.starts < 1:
            raise ValueError("floor and starts must be positive and threads not negative")
        check_rounds(self.pairs, self.block)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)
