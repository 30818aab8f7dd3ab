"""Commands that draw the figures of the paper: figure NAME."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import show
from densenet_deploy.cli.options import Json, Quiet, default_out, tracker
from densenet_deploy.figures import feature_reuse as reuse
from densenet_deploy.figures import memory as held_memory
from densenet_deploy.figures import training as curves
from densenet_deploy.figures.accuracy import accuracy as draw_accuracy
from densenet_deploy.figures.picture import Picture, write
from densenet_deploy.figures.small_nets import small_nets as draw_small_nets
from densenet_deploy.figures.table2 import table2 as draw_table2
from densenet_deploy.figures.table3 import table3 as draw_table3
from densenet_deploy.figures.wide_nets import wide_nets as draw_wide_nets

figure = typer.Typer(help="Draw a figure of the paper: a PNG, and its numbers as JSON beside it.")
Out = Annotated[
    Path,
    typer.Option("--out", metavar="PATH", help="A .png file, or a directory for NAME.png."),
]
OUT = default_out("figures")


@figure.callback(invoke_without_command=True)
def names(context: typer.Context) -> None:
    """List the figures, where none is named."""
    if context.invoked_subcommand is None:
        lines = [
            (name, (command.callback.__doc__ or "").splitlines()[0])
            for name, command in context.command.commands.items()  # type: ignore[attr-defined]
        ]
        width = max(len(name) for name, _ in lines)
        for name, sentence in lines:
            typer.echo(f"{name:{width}}  {sentence}")


@figure.command("table2")
def table2(out: Out = OUT, json: Json = False) -> None:
    """Errors on CIFAR and SVHN as published, with our networks' parameters and MACs."""
    _finish(draw_table2(), out, json)


@figure.command("table3")
def table3(out: Out = OUT, json: Json = False) -> None:
    """Errors on ImageNet as published, with our networks' parameters and MACs."""
    _finish(draw_table3(), out, json)


@figure.command("accuracy")
def accuracy(out: Out = OUT, json: Json = False) -> None:
    """ImageNet error against parameters and FLOPs, DenseNet and ResNet (figure 3)."""
    _finish(draw_accuracy(), out, json)


@figure.command("small-nets")
def small_nets(out: Out = OUT, json: Json = False) -> None:
    """CIFAR-10 error of small networks against parameters (figure 4)."""
    _finish(draw_small_nets(), out, json)


@figure.command("wide-nets")
def wide_nets(out: Out = OUT, json: Json = False) -> None:
    """Wide DenseNet-BC as its authors report it, with our networks' parameters and MACs."""
    _finish(draw_wide_nets(), out, json)


@figure.command("feature-reuse")
def feature_reuse(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="Weights: a file, a directory with a model.safetensors, or a name, also of "
            "published ones such as torchvision:DenseNet121_Weights.IMAGENET1K_V1.",
        ),
    ] = reuse.SHIPPED,
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME", help="Architecture, where the file does not say it."
        ),
    ] = "",
    classes: Annotated[
        int | None,
        typer.Option("--classes", metavar="COUNT", min=1, help="Of the classifier, likewise."),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option("--channels", metavar="COUNT", min=1, help="Of an image, likewise."),
    ] = None,
    out: Out = OUT,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How strongly each layer of a checkpoint uses earlier layers' feature maps (figure 5)."""
    picture, path = reuse.feature_reuse(checkpoint, model, classes, channels, tracker(quiet))
    _finish(picture, out, json, (path,))


@figure.command("training")
def training(
    logs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[LOG]...",
            help="metrics.jsonl files or their directories (default: of the shipped models).",
        ),
    ] = None,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Loss, accuracy and learning rate of one or more trainings, by epoch."""
    picture, paths = curves.training(tuple(logs or curves.SHIPPED))
    _finish(picture, out, json, paths)


@figure.command("memory")
def memory(
    results: Annotated[
        Path | None,
        typer.Argument(metavar="[RESULTS]", help="Results of a training-memory suite."),
    ] = None,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Memory of training against depth: as published, and as a suite measured it."""
    measured = held_memory.read_results(results) if results else []
    source = results.name if results else ""
    _finish(held_memory.memory(measured, source), out, json, (results,) if results else ())


def _finish(picture: Picture, out: Path, json: bool, inputs: Collection[Path] = ()) -> None:
    files = write(picture, out, inputs)
    if json:
        show.as_json({**picture.to_dict(), "files": files})
        return
    typer.echo(picture.title)
    show.table(picture.header, picture.lines)
    typer.echo(picture.caption)
    for path in files:
        typer.echo(path)
