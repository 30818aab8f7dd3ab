"""The command train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from densenet_deploy.choose import choose_recipe
from densenet_deploy.cli import show
from densenet_deploy.cli.options import (
    DEFAULT_RECIPE,
    DataDirectory,
    Json,
    Quiet,
    RecipeArgument,
    checked,
    default_out,
    tracker,
    whole,
)
from densenet_deploy.errors import DeployError
from densenet_deploy.recipe import Recipe


def train(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output directory (default: work/NAME-train).")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", help="Instead of the recipe's; its schedule keeps its shape."),
    ] = None,
    validation: Annotated[
        int, typer.Option("--validation", help="Hold out so many training images to choose by.")
    ] = 0,
    data_dir: DataDirectory = "",
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            metavar="N",
            min=1,
            help="Train in so many on this machine; or start with torchrun.",
        ),
    ] = 1,
    device: Annotated[
        Literal["", "cpu", "cuda"],
        typer.Option("--device", help="Default: a GPU where there is one.", show_default=False),
    ] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe's model; run the same command again to resume after an interruption."""
    chosen = _chosen(recipe, epochs, validation, data_dir)
    directory = out or default_out(f"{chosen.name.replace('/', '-')}-train")
    if processes == 1:
        _train(chosen, directory, device, json, quiet)
        return
    from densenet_deploy.launch import launch

    same: dict[str, Any] = {
        "--out": directory,
        "--epochs": epochs,
        "--validation": validation,
        "--data-dir": data_dir,
        "--device": device,
    }
    options = [str(part) for pair in same.items() if pair[1] for part in pair]
    flags = ["--json"] * json + ["--quiet"] * quiet
    if code := launch(["train", recipe, *options, *flags], processes, directory):
        raise typer.Exit(code)


def _chosen(recipe: str, epochs: int | None, validation: int, data_dir: str) -> Recipe:
    chosen = choose_recipe(recipe)
    changes: dict[str, Any] = {"validation_images": validation} if validation else {}
    if epochs is not None:
        share = epochs / chosen.train.epochs
        changes |= {"epochs": epochs, "warmup_epochs": chosen.train.warmup_epochs * share}
    training = checked(lambda: replace(chosen.train, **changes))
    return replace(chosen, data=whole(chosen.data, True, data_dir), train=training)


def _train(recipe: Recipe, out: Path, device: str, json: bool, quiet: bool) -> None:
    """Trains in this process, which may be one of several; the first of them reports."""
    from densenet_deploy import pipeline
    from densenet_deploy.allocator import keep_freed_memory
    from densenet_deploy.distributed import join

    keep_freed_memory()
    with join(device) as here:
        track = tracker(quiet or here.rank > 0)
        try:
            records = pipeline.train_model(recipe, out, track, here)
        except DeployError as error:
            if here.rank == 0 or hasattr(error, "__notes__"):  # of this process alone
                raise
            raise typer.Exit(error.exit_code) from None
    if here.rank > 0:
        return
    last = records[-1]
    if json:
        show.as_json({"weights": out / "model.safetensors", **last})
        return
    typer.echo(
        f"epoch {last['epoch']}: loss {last['loss']:.4f}, top-1 {last['evaluation_top1']:.2f} % "
        f"on {last['evaluation_images']} images"
    )
    typer.echo(f"weights: {out / 'model.safetensors'}, log: {out / 'metrics.jsonl'}")
