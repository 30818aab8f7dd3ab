"""Which recipe a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.choose import choose_recipe, find_recipe
from densenet_deploy.errors import RecipeError
from densenet_deploy.recipe import DataConfig, load_recipe


def test_a_recipe_by_name_or_path(tiny_recipe: Path) -> None:
    assert find_recipe("fashion-mnist") == load_recipe("fashion-mnist")
    assert find_recipe(str(tiny_recipe)).name == "tiny"


def test_an_architecture_gets_seeded_weights() -> None:
    found = find_recipe("densenet-bc-100-12")
    assert (found.model.variant, found.model.input_shape) == ("densenet-bc-100-12", (3, 32, 32))
    assert (found.model.weights, found.data.name) == ("", "synthetic")
    assert "speed only" in found.description
    assert found == choose_recipe("", model="densenet-bc-100-12")


def test_weights_choose_their_own_architecture_and_need_images() -> None:
    data = DataConfig(name="folder", directory="images")
    found = choose_recipe("", weights="trained.safetensors", data=data)
    assert (found.name, found.model.variant, found.data) == ("trained", "", data)


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(RecipeError, match="unknown model 'resnet50'"):
        find_recipe("resnet50")
    with pytest.raises(RecipeError, match="no recipe"):
        find_recipe("missing.toml")
