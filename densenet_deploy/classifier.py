"""Classes and probabilities of image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densenet_deploy.bundle import Bundle
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime import open_runner
from densenet_deploy.runtime.runner import Array
from densenet_deploy.verify import predict


@dataclass(frozen=True)
class Candidate:
    """A class an image may show: its index, its name and its softmax probability."""

    index: int
    label: str
    probability: float


def classify(
    bundle: Bundle,
    images: Sequence[Path],
    backend: str = "onnxruntime",
    precision: Precision = "fp32",
    top: int = 3,
) -> list[list[Candidate]]:
    """The `top` most probable classes of each image file, best first.

    Raises:
        DataError: A file is not an image.
        BackendError: The backend cannot run here.
    """
    manifest = bundle.manifest
    pixels = np.stack([manifest.preprocessing.read(path) for path in images])
    with open_runner(bundle, backend, precision) as runner:
        logits = predict(runner, pixels)
    return [_best(row, manifest.labels, top) for row in logits]


def _best(logits: Array, labels: tuple[str, ...], top: int) -> list[Candidate]:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = exponentials / exponentials.sum()
    return [
        Candidate(int(index), labels[index] if labels else str(index), float(probabilities[index]))
        for index in np.argsort(-probabilities)[:top]
    ]
