"""The suite that compares what networks take in memory to answer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class InferenceMemorySuite:
    """Networks whose memory in inference is measured.

    Attributes:
        name: The file's.
        models: Our DenseNets, torchvision's models, and any other architecture of ours, by name; a
            name of the first two is not looked for in the next.
        batch_sizes: Images per request.
        backends: What runs torch.onnx's fp32 exports, not rewritten.
        description: One line.
        threads: CPU threads; 0 for all cores.
        kind: Which suite this is.
    """

    name: str
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    backends: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime", "openvino")
    description: str = ""
    threads: int = 0
    kind: Literal["inference-memory"] = "inference-memory"

    def __post_init__(self) -> None:
        named: dict[str, tuple[Any, ...]] = {
            "models": self.models,
            "batch_sizes": self.batch_sizes,
            "backends": self.backends,
        }
        for key, values in named.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must not be empty, and each be named once")
        if min(self.batch_sizes) < 1 or self.threads < 0:
            raise ValueError("batch_sizes must be positive and threads not negative")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)
