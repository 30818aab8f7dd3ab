"""The golden output as the judge of a loaded engine: by the recipe's tolerances, and no others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime.golden import check_golden
from densenet_deploy.runtime.runner import Array, Runner

# Of `fashion_recipe`: fp32 within 1e-3, fp16 within 0.25, int8 by agreement and cosine alone.


def answering(bundle: Bundle, precision: Precision, change: Callable[[Array], Array]) -> Runner:
    _, expected = bundle.golden()
    return Runner(bundle, "onnxruntime", precision, lambda images: change(expected))


@pytest.mark.parametrize(
    ("precision", "error"), [("fp32", 9e-4), ("fp16", 0.2), ("int8", 0.3)], ids=str
)
def test_what_a_recipe_allows(bundle: Bundle, precision: Precision, error: float) -> None:
    check_golden(answering(bundle, precision, lambda logits: logits + error), bundle, "it")


@pytest.mark.parametrize(
    ("precision", "change", "problem"),
    [
        ("fp32", lambda x: x + np.float32(2e-3), r"\|d logit\| 0.002, allowed 0.001"),
        ("fp16", lambda x: x + np.float32(0.3), r"\|d logit\| 0.3, allowed 0.25"),
        ("int8", lambda x: -x, r"agreement 0.00 %, required 90.0 %.*cosine -1.0+, required 0.95"),
        ("int8", lambda x: x**3, r"not the bundle's: cosine 0.\d+, required 0.95"),
        ("int8", lambda x: x * np.float32(np.nan), r"cosine nan, required 0.95"),
        ("fp32", lambda x: x * np.float32(np.nan), r"\|d logit\| nan, allowed 0.001"),
    ],
)
def test_what_it_does_not(
    bundle: Bundle, precision: Precision, change: Callable[[Array], Array], problem: str
) -> None:
    with pytest.raises(BackendError, match=rf"(?s)it was refitted, and its answers.*{problem}"):
        check_golden(answering(bundle, precision, change), bundle, "it was refitted")
