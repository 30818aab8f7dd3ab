"""Accuracy on a GPU: that of the CPU, to the image."""

from __future__ import annotations

import pytest
import torch

from densenet_deploy.accuracy import evaluate_recipe
from densenet_deploy.recipe import Recipe

pytestmark = pytest.mark.gpu


def test_a_gpu_counts_the_same_images(fashion_recipe: Recipe) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    expected, _ = evaluate_recipe(fashion_recipe)
    found, trained = evaluate_recipe(fashion_recipe, device="cuda")
    assert found == expected
    assert next(trained.model.parameters()).is_cuda
