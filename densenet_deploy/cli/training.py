"""The command train."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from densenet_deploy import schema
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
from densenet_deploy.errors import DeployError, RecipeError
from densenet_deploy.recipe import Recipe
from densenet_deploy.train_config import TrainConfig


def train(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output directory (default: work/NAME-train).")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", help="Instead of the recipe's; its schedule keeps its shape."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Instead of the recipe's in [train], such as precision=fp32; repeatable.",
        ),
    ] = None,
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
    chosen = _chosen(recipe, epochs, settings or [], data_dir)
    directory = out or default_out(f"{chosen.name.replace('/', '-')}-train")
    if processes == 1:
        _train(chosen, directory, device, json, quiet)
        return
    from densenet_deploy.launch import launch

    same: dict[str, Any] = {
        "--out": directory,
        "--epochs": epochs,
        "--data-dir": data_dir,
        "--device": device,
    }
    options = [str(part) for pair in same.items() if pair[1] for part in pair]
    options += [part for setting in settings or [] for part in ("--set", setting)]
    flags = ["--json"] * json + ["--quiet"] * quiet
    if code := launch(["train", recipe, *options, *flags], processes, directory):
        raise typer.Exit(code)


def _chosen(recipe: str, epochs: int | None, settings: list[str], data_dir: str) -> Recipe:
    chosen = choose_recipe(recipe)
    training = _changed(chosen.train, settings)
    if epochs is not None:
        warmup = training.warmup_epochs * epochs / training.epochs
        training = checked(lambda: replace(training, epochs=epochs, warmup_epochs=warmup))
    return replace(chosen, data=whole(chosen.data, True, data_dir), train=training)


def _changed(config: TrainConfig, settings: list[str]) -> TrainConfig:
    """`--set` in place of a recipe's values, checked as those are."""
    table = asdict(config)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise RecipeError(f"--set {setting}", expected="KEY=VALUE")
        table[key.strip()] = _value(text)
    problems: list[str] = []
    changed = schema.read(TrainConfig, table, "train", problems)
    if changed is None:
        raise RecipeError.collect("--set", problems)
    return changed


def _value(text: str) -> Any:
    """As in a TOML file, where a word would have quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text.strip()


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
