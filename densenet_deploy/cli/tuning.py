"""The command that chooses how to quantize: tune."""

from __future__ import annotations

import json as jsonlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densenet_deploy.choose import find_recipe
from densenet_deploy.cli import show
from densenet_deploy.cli.options import (
    DEFAULT_RECIPE,
    DataDirectory,
    Full,
    Json,
    Quiet,
    RecipeArgument,
    default_out,
    tracker,
    whole,
)
from densenet_deploy.errors import MissingDependencyError
from densenet_deploy.files import replacing_file
from densenet_deploy.recipe import Target

if TYPE_CHECKING:
    from densenet_deploy.tune import Candidate, Tuning

_SENSITIVE = 8  # parts to print; the file has all


def tune(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    target: Annotated[
        Target, typer.Option("--target", help="What int8 is lowered for.")
    ] = "onnxruntime",
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory for tune.json and tune.png.")
    ] = None,
    full: Full = False,
    data_dir: DataDirectory = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure int8 policies, sensitivity and mixed precision, on training images alone."""
    from densenet_deploy import pareto, pipeline

    chosen = find_recipe(recipe)
    chosen = replace(chosen, data=whole(chosen.data, full, data_dir))
    tuning = pipeline.tune_recipe(chosen, target, tracker(quiet))
    directory = out or default_out(f"{chosen.name}-{target}-tune")
    directory.mkdir(parents=True, exist_ok=True)
    with replacing_file(directory / "tune.json") as temporary:
        temporary.write_text(jsonlib.dumps(tuning.to_dict()) + "\n", encoding="utf-8")
    try:
        with replacing_file(directory / "tune.png") as temporary:
            pareto.write(tuning, temporary)
        picture = f"picture: {directory / 'tune.png'}"
    except MissingDependencyError as error:
        picture = f"no picture: {error}"
    if json:
        show.as_json(tuning.to_dict())
        return
    _print(tuning)
    typer.echo(f"records: {directory / 'tune.json'}; {picture}")


def _print(tuning: Tuning) -> None:
    header = ("candidate", "agreement %", "KL, nats", tuning.unit, "fp32 / int8", "Pareto")
    title = f"{tuning.target}, {tuning.images} training images that did not calibrate"
    show.table(header, [_cells(item, tuning) for item in tuning.candidates], title)
    parts = [
        (item.part, f"{item.kl:.2e}", f"{item.gain:.1e}")
        for item in tuning.sensitivities[:_SENSITIVE]
    ]
    show.table(("part", "KL, nats", "gain"), parts, "left in floating point, one at a time")
    typer.echo(f"chosen: {tuning.summary()}")


def _cells(item: Candidate, tuning: Tuning) -> tuple[str, ...]:
    speedup = item.speedup
    interval = f" [{speedup.low:.2f}, {speedup.high:.2f}]" if speedup.pairs > 1 else ""
    return (
        item.name,
        f"{item.agreement:.2f}",
        f"{item.kl:.1e}",
        f"{item.cost:.3g}",
        f"{speedup.median:.2f}{interval}",
        "*" if item in tuning.front else "",
    )
