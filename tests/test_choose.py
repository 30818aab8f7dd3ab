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


def test_published_weights_say_the_architecture_where_their_name_does() -> None:
    found = choose_recipe("", weights="timm:densenet161.tv_in1k")
    assert (found.name, found.model.variant) == ("densenet161.tv_in1k", "densenet161")
    assert (found.model.input_shape, found.model.classes) == ((3, 224, 224), 1000)
    named = "torchvision:DenseNet201_Weights.IMAGENET1K_V1"
    assert choose_recipe("", weights=named).model.variant == "densenet201"
    assert choose_recipe("", weights="torchvision:IMAGENET1K_V1").model.variant == ""
    tagged = choose_recipe("", "densenet169", "torchvision:IMAGENET1K_V1")
    assert (tagged.name, tagged.model.variant) == ("densenet169", "densenet169")
    assert tagged.model.weights == "torchvision:IMAGENET1K_V1"


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(RecipeError, match="unknown model 'vgg16'"):
        find_recipe("vgg16")
    with pytest.raises(RecipeError, match="no recipe"):
        find_recipe("missing.toml")
