"""The published recipes: how each DenseNet of the papers was trained, and the error it came to.

A recipe is composed from a net and a setting, the data set and how it is trained on; both are data,
in export/published/densenet.toml.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from densenet_deploy import schema
from densenet_deploy.errors import RecipeError
from densenet_deploy.recipe import DataName, Recipe, parse_recipe, recipe_folder

PREFIX = "paper/"


@dataclass(frozen=True)
class PublishedRecipe:
    """How a network was trained.

    Attributes:
        recipe: As published, or by the same rules in a setting that was not.
        error: Top-1 error on the test images in percent, single crop; None in such a setting.
        source: Where the network was published.
    """

    recipe: Recipe
    error: float | None
    source: str


@dataclass(frozen=True)
class _Setting:
    title: str
    data: DataName
    input_shape: tuple[int, int, int]
    classes: int
    train: dict[str, Any]
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class _Net:
    source: str
    settings: tuple[str, ...]
    errors: dict[str, float]
    inferred: str = ""
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Catalogue:
    train: dict[str, Any]
    settings: dict[str, _Setting]
    nets: dict[str, _Net]


def is_published(name: str) -> bool:
    """Whether a name is one of a published recipe, and not a file's."""
    return name.startswith(PREFIX) and not name.endswith(".toml")


@cache
def published_recipes() -> dict[str, PublishedRecipe]:
    """All of them, by name."""
    table, path = schema.load_table("densenet", recipe_folder() / "published", "catalogue")
    problems: list[str] = []
    catalogue = schema.read(_Catalogue, table, "", problems)
    if catalogue is None:
        raise RecipeError.collect(str(path), problems)
    return {
        f"{PREFIX}{net}/{setting}": _compose(catalogue, net, setting)
        for net, its in catalogue.nets.items()
        for setting in its.settings
    }


def published_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        RecipeError: There is none.
    """
    known = published_recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise RecipeError(
            f"no published recipe {name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""),
            expected=f"{PREFIX}NET/SETTING",
            remedy="`densenet-deploy models --recipes` lists them",
        )
    return known[name].recipe


def _compose(catalogue: _Catalogue, net: str, setting: str) -> PublishedRecipe:
    trained, on = catalogue.nets[net], catalogue.settings[setting]
    train = catalogue.train | on.train | trained.train
    if drops := train.pop("drop_epochs", None):
        train["drops"] = [epoch / train["epochs"] for epoch in drops]
    name, error = f"{PREFIX}{net}/{setting}", trained.errors.get(setting)
    how = "trained as published"
    if error is None:
        how = "not published in this setting; trained by the same rules"
    elif trained.inferred:
        how += f", {trained.inferred} inferred"
    table = {
        "name": name,
        "description": f"{net} on {on.title}, {how}",
        "model": {
            "variant": net,
            "input_shape": on.input_shape,
            "classes": on.classes,
            "weights": "",
        },
        "data": {"name": on.data, "sample": False, "interpolation": on.interpolation},
        "train": train,
    }
    return PublishedRecipe(parse_recipe(table, name), error, trained.source)
