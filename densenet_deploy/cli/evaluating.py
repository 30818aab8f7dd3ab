"""The command evaluate: accuracy of trained weights in PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from densenet_deploy.choose import choose_recipe
from densenet_deploy.cli import show
from densenet_deploy.cli.options import (
    DEFAULT_RECIPE,
    Architecture,
    DataDirectory,
    Full,
    Json,
    Quiet,
    Weights,
    data_config,
    tracker,
    whole,
)
from densenet_deploy.errors import RecipeError
from densenet_deploy.recipe import DataName


def evaluate(
    recipe: Annotated[
        str,
        typer.Argument(
            help=f"Recipe name or .toml file (default: {DEFAULT_RECIPE}).", show_default=False
        ),
    ] = "",
    model: Architecture = "",
    weights: Weights = "",
    data: Annotated[DataName | None, typer.Option("--data", help="Labelled images.")] = None,
    data_dir: DataDirectory = "",
    crops: Annotated[
        int, typer.Option("--crops", help="1, or 10: corners and centre, and their mirror images.")
    ] = 1,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Crops that are computed at once.")
    ] = 50,
    device: Annotated[str, typer.Option("--device", help="By torch's name, such as cuda.")] = "cpu",
    full: Full = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure top-1 and top-5 accuracy of trained weights in PyTorch fp32."""
    from densenet_deploy.accuracy import evaluate_recipe

    if crops not in (1, 10):
        raise RecipeError(f"--crops {crops}", expected="1 or 10")
    images = data_config(data, data_dir if data else "")
    if recipe and weights and not model:
        chosen = choose_recipe(recipe, data=images)
        chosen = replace(chosen, model=replace(chosen.model, weights=weights))
    else:
        chosen = choose_recipe(recipe or DEFAULT_RECIPE, model, weights, images)
    chosen = replace(chosen, data=whole(chosen.data, full, data_dir))
    accuracy, trained = evaluate_recipe(
        chosen, 10 if crops == 10 else 1, batch_size, device, tracker(quiet)
    )
    if json:
        found = {"weights": trained.report.to_dict(), "preprocessing": trained.preprocessing}
        show.as_json(accuracy.to_dict() | found)
        return
    typer.echo(f"weights: {trained.report.summary()}")
    typer.echo(accuracy.summary())
