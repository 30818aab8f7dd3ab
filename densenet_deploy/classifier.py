"""Classes and probabilities of image files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densenet_deploy.bundle import Bundle
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime.fallback import Say, open_with_fallback
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
    fallback: Sequence[str] = (),
    say: Say = warnings.warn,
) -> list[list[Candidate]]:
    """The `top` most probable classes of each image file, best first.

    Args:
        bundle: A verified bundle.
        images: Image files.
        backend: That is to run.
        precision: One the bundle has.
        top: Classes of each image.
        fallback: What else may run, see `open_with_fallback`.
        say: Is told when something else does.

    Raises:
        DataError: A file is not an image.
        BackendError: Neither the backend nor any fallback can run here.
    """
    manifest = bundle.manifest
    pixels = np.stack([manifest.preprocessing.read(path) for path in images])
    with open_with_fallback(bundle, backend, precision, fallback=fallback, say=say) as runner:
        logits = predict(runner, pixels)
    return [best(row, manifest.labels, top) for row in logits]


def best(logits: Array, labels: tuple[str, ...], top: int) -> list[Candidate]:
    """The `top` most probable classes of one row of logits (classes,), best first."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = exponentials / exponentials.sum()
    return [
        Candidate(int(index), labels[index] if labels else str(index), float(probabilities[index]))
        for index in np.argsort(-probabilities)[:top]
    ]
