"""The suite that compares how well networks learn: recipes, each trained from several seeds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class StudySuite:
    """What is trained, and from which seeds.

    Attributes:
        name: The file's.
        recipes: That differ in their models alone; test images choose nothing, and the last epoch
            counts.
        seeds: Of initial weights, order and augmentation, instead of the recipes'.
        description: One line.
        kind: Which suite this is.
    """

    name: str
    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    description: str = ""
    kind: Literal["training-accuracy"] = "training-accuracy"

    def __post_init__(self) -> None:
        named: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("recipes", self.recipes),
            ("seeds", self.seeds),
        )
        for key, values in named:
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must not be empty, and each be named once")
        if min(self.seeds) < 0:
            raise ValueError("seeds must not be negative")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)
