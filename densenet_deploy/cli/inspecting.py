"""The command that looks into models, graphs and engines: inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import typer

from densenet_deploy.choose import find_recipe
from densenet_deploy.cli import show
from densenet_deploy.cli.options import DEFAULT_RECIPE, Json, Quiet, tracker
from densenet_deploy.engine.inspected import KINDS, inspect_engine
from densenet_deploy.errors import RecipeError
from densenet_deploy.recipe import ExportConfig, Recipe, Target

_KINDS = f"a recipe, an architecture, an .onnx file, {KINDS}"
EngineLog = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="The build log of that engine.")
]
OfProfile = Annotated[
    int,
    typer.Option(
        "--profile", metavar="INDEX", min=0, help="Of an engine: which optimization profile."
    ),
]


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
    log: EngineLog = None,
    profile: OfProfile = 0,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Of an engine: every kernel and what it fuses.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what the rewrites do, what they gain and that they are exact; exit 1 if they are not.

    Of an .onnx file: what is in it, and which rewrites still apply. Of an engine or its build log:
    its kernels, by DenseNet layer.
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
        found = engine = inspect_engine(path, log, profile)
        if kernels and not json:
            typer.echo(engine.kernels())
    if json:
        show.as_json(found.to_dict())
    else:
        typer.echo(found.summary())
    if not found:
        raise typer.Exit(1)


def _recipe(what: str) -> Recipe | None:
    """The recipe of this name; None where there is none, but such a path."""
    try:
        return find_recipe(what)
    except RecipeError as error:
        path = Path(what)
        if path.suffix == ".toml" or what.startswith("densenet"):
            raise
        if path.exists():
            return None
        remedy = "name one, or list architectures with: densenet-deploy models"
        raise RecipeError(f"there is no {what!r}", expected=_KINDS, remedy=remedy) from error
