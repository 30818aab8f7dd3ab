"""The command that looks into models, graphs and build logs: inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import typer

from densenet_deploy.choose import find_recipe
from densenet_deploy.cli import show
from densenet_deploy.cli.options import DEFAULT_RECIPE, Json, Quiet, tracker
from densenet_deploy.engine.layers import EngineLayers, parse_build_log
from densenet_deploy.errors import BuildError, RecipeError
from densenet_deploy.recipe import ExportConfig, Recipe, Target

_KINDS = "a recipe, an architecture, an .onnx file or a build log of TensorRT-RTX"


class _Report(Protocol):
    def summary(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


def inspect(
    what: Annotated[
        str, typer.Argument(help=f"{_KINDS[0].upper()}{_KINDS[1:]}.", metavar="WHAT")
    ] = DEFAULT_RECIPE,
    target: Annotated[
        Target | None, typer.Option("--target", help="Whose rewrites (default: the recipe's).")
    ] = None,
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option("--precision", help="Of a recipe's model.")
    ] = "fp32",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what the rewrites do, what they gain and that they are exact; exit 1 if they are not.

    Of an .onnx file: what is in it, and which rewrites still apply. Of a build log: its kernels.
    """
    track, path = tracker(quiet), Path(what)
    found: _Report
    if path.suffix == ".onnx":
        from densenet_deploy.graph_inspection import inspect_graph

        found = inspect_graph(path, target or ExportConfig().target, track)
    elif (recipe := _recipe(what)) is not None:
        from densenet_deploy.inspection import inspect_model

        found = inspect_model(recipe, target or recipe.export.target, precision, track)
    else:
        found = _layers(path)
    if json:
        show.as_json(found.to_dict())
    else:
        typer.echo(found.summary())
    if not found:
        raise typer.Exit(1)


def _recipe(what: str) -> Recipe | None:
    """The recipe of this name; None where there is none, but a file."""
    try:
        return find_recipe(what)
    except RecipeError as error:
        path = Path(what)
        if path.suffix == ".toml" or what.startswith("densenet"):
            raise
        if path.is_file():
            return None
        found = f"{what!r} is a directory" if path.is_dir() else f"there is no {what!r}"
        name_one = f"a graph in it, such as {path / 'fp32.onnx'}" if path.is_dir() else "one"
        remedy = f"name {name_one}, or list architectures with: densenet-deploy models"
        raise RecipeError(found, expected=_KINDS, remedy=remedy) from error


def _layers(path: Path) -> EngineLayers:
    text = path.read_text(encoding="utf-8", errors="replace")
    if "Layers:" not in text:
        raise BuildError(
            f"{path} has no layer list",
            expected=_KINDS,
            remedy="write a build log with: build_engine(..., log=path)",
        )
    return parse_build_log(text)
