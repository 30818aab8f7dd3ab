"""Which recipe a name means: a file's, or one made for an architecture or a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from densenet_deploy import public_weights
from densenet_deploy.published import is_published, published_recipe
from densenet_deploy.recipe import (
    DataConfig,
    ModelConfig,
    QuantizeConfig,
    Recipe,
    Tolerance,
    VerifyConfig,
    load_recipe,
    recipe_folder,
)
from densenet_deploy.spec import variant

# Logits of untrained weights lie close together: their top-1 says little about a graph.
ANY_ANSWER = {
    "fp32": Tolerance(top1_drop=100, agreement=0, cosine=0.9999),
    "fp16": Tolerance(top1_drop=100, agreement=0, cosine=0.999),
    "int8": Tolerance(top1_drop=100, agreement=0, cosine=0.9),
}


def choose_recipe(
    name: str, model: str = "", weights: str = "", data: DataConfig | None = None
) -> Recipe:
    """The recipe a command works on: by name, or made for `--model` and `--weights`.

    A model without weights gets seeded ones and synthetic images. Weights without a model take
    the architecture their header, or their published name, says; trained ones need `data` for int8.
    """
    if not model and not weights:
        recipe = published_recipe(name) if is_published(name) else load_recipe(name)
        return recipe if data is None else replace(recipe, data=data)
    if public_weights.is_public(weights):
        title = model or weights.partition(":")[2]
        model = model or public_weights.architecture(weights)
    else:
        title = model or Path(weights).stem
    description = title if weights else f"{title}, seeded weights: speed only"
    spec = variant(model) if model else None
    config = ModelConfig(
        model,
        spec.input_shape if spec else (3, 224, 224),
        spec.classes if spec else 1000,
        weights,
    )
    return Recipe(
        name=title,
        description=description,
        model=config,
        data=data or DataConfig(name="synthetic"),
        quantize=QuantizeConfig() if weights else QuantizeConfig(images=32, batch_size=8),
        verify=VerifyConfig() if weights else VerifyConfig(ANY_ANSWER),
    )


def find_recipe(name: str) -> Recipe:
    """A recipe by name or path; by an architecture's name, one with seeded weights.

    Raises:
        RecipeError: Neither a recipe nor an architecture.
    """
    if is_published(name):
        return published_recipe(name)
    if name.endswith(".toml") or (recipe_folder() / f"{name}.toml").is_file():
        return load_recipe(name)
    return choose_recipe("", model=name)
