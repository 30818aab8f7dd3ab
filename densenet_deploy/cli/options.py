"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from densenet_deploy.errors import RecipeError
from densenet_deploy.progress import Track, bar, silent
from densenet_deploy.recipe import (
    PRECISIONS,
    DataConfig,
    ModelConfig,
    Precision,
    Recipe,
    load_recipe,
)

DEFAULT_RECIPE = "fashion-mnist"
RecipeArgument = Annotated[str, typer.Argument(help="Recipe name or .toml file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
DataDirectory = Annotated[
    str, typer.Option("--data-dir", help="Directory of the data set (default: its usual places).")
]
Full = Annotated[
    bool, typer.Option("--full", help="Use the whole data set, not the sample that is shipped.")
]


Precisions = Annotated[
    list[str] | None,
    typer.Option("--precision", help="fp32, fp16 or int8; repeatable (default: all there are)."),
]


def precisions(names: list[str] | None) -> tuple[Precision, ...]:
    """Checked `--precision` values; empty where none were given.

    Raises:
        RecipeError: Not a precision.
    """
    for name in names or ():
        if name not in PRECISIONS:
            raise RecipeError(f"--precision {name!r}", expected=f"one of {', '.join(PRECISIONS)}")
    return tuple(names or ())  # type: ignore[arg-type]


def tracker(quiet: bool) -> Track:
    """The progress reporter a command passes on."""
    return silent if quiet else bar


def integers(text: str, option: str, count: int | None = None) -> tuple[int, ...]:
    """`1,8,64` as integers.

    Raises:
        RecipeError: Not integers, or not `count` of them.
    """
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or (count and len(values) != count):
        wanted = f"{count} integers" if count else "integers"
        raise RecipeError(f"{option} {text!r}", expected=f"{wanted} separated by commas")
    return values


def batch_bounds(text: str) -> tuple[int, int, int]:
    """`MIN,OPT,MAX` as three integers."""
    low, best, high = integers(text, "--batch", 3)
    return low, best, high


def choose_recipe(
    name: str, model: str = "", weights: str = "", data: DataConfig | None = None
) -> Recipe:
    """The recipe a command works on: by name, or made for `--model` and `--weights`.

    A model without weights gets seeded ones and synthetic images. Weights without a model take
    the architecture their header names.
    """
    recipe = load_recipe(name)
    if weights and not model:
        recipe = replace(recipe, model=replace(recipe.model, variant="", weights=weights))
    elif model:
        recipe = _recipe_for(recipe, model, weights)
    return recipe if data is None else replace(recipe, data=data)


def _recipe_for(recipe: Recipe, model: str, weights: str) -> Recipe:
    from densenet_deploy.spec import variant

    spec = variant(model)
    config = ModelConfig(model, spec.input_shape, spec.classes, weights)
    return replace(
        recipe,
        name=model,
        description=f"{model}, {'x'.join(map(str, spec.input_shape))}"
        + ("" if weights else ", seeded weights: speed only"),
        model=config,
        data=DataConfig(name="synthetic"),
    )


def checked(change: Any) -> Any:
    """Runs `change`, and reports a value a config dataclass refuses as a usage error."""
    try:
        return change()
    except ValueError as error:
        raise RecipeError(str(error)) from None


def default_out(name: str) -> Path:
    """Where a command writes when it is not told."""
    return Path("work") / name
