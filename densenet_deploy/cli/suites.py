"""The command that runs a suite: suite."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densenet_deploy.cli import show
from densenet_deploy.cli.options import Json, Quiet, integers, tracker
from densenet_deploy.errors import RecipeError
from densenet_deploy.files import replacing_file
from densenet_deploy.paired import LEAST_PAIRS
from densenet_deploy.results import milliseconds
from densenet_deploy.suite import load_suite

if TYPE_CHECKING:
    from densenet_deploy.compete import Competition, Judged

HEADER = (
    "model",
    "batch",
    "candidate",
    "ms",
    "over",
    "ms",
    "speed-up",
    "95 % interval",
    "floor",
    "verdict",
    "goal",
    "verdict",
    "cosine",
)


def suite(
    name: Annotated[str, typer.Argument(help="Suite name or .toml file.", metavar="SUITE")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Only this one; repeatable. Any recipe or architecture."),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Only these sizes, such as 1,8.")] = "",
    pairs: Annotated[
        int,
        typer.Option("--pairs", min=0, help="Rounds (default: the suite's).", show_default=False),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the records: a .json file, or a device's folder."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time a suite's sides against each other, interleaved; exit 1 if a floor fails."""
    chosen = load_suite(name)
    sizes = integers(batch, "--batch") if batch else ()
    if sizes and min(sizes) < 1:
        raise RecipeError(f"--batch {batch!r}", expected="positive integers")
    from densenet_deploy.compete import compete

    found = compete(chosen, model or (), sizes, pairs, tracker(quiet))
    records = found.to_dict()
    if out:
        path = out if out.suffix == ".json" else out / f"{chosen.name}.json"
        with replacing_file(path) as temporary:
            temporary.write_text(jsonlib.dumps(records) + "\n", encoding="utf-8")
    if json:
        show.as_json(records)
    else:
        _print(found)
    if not found:
        raise typer.Exit(1)


def _print(found: Competition) -> None:
    title = f"{found.suite.description or found.suite.name}; {found.pairs} pairs, "
    show.table(HEADER, map(_cells, found.judged), f"{title}{found.threads} threads")
    for side in found.timed:
        if not side.samples.steady:
            typer.echo(f"{side.model}, batch {side.batch}: {side.side.name} did not settle")
    if found.pairs < LEAST_PAIRS:
        typer.echo(f"a trial: fewer than {LEAST_PAIRS} pairs decide nothing")


def _cells(judged: Judged) -> tuple[str, ...]:
    claim, found = judged.claim, judged.speedup
    return (
        judged.candidate.model,
        str(judged.candidate.batch),
        claim.candidate,
        milliseconds(judged.candidate.median_seconds),
        claim.baseline,
        milliseconds(judged.baseline.median_seconds),
        f"{found.median:.2f}",
        f"[{found.low:.2f}, {found.high:.2f}]",
        "-" if claim.floor is None else f"{claim.floor:.2f}",
        judged.verdict or "-",
        "-" if claim.goal is None else f"{claim.goal:.2f}",
        judged.goal_verdict or "-",
        f"{judged.candidate.cosine:.4f}",
    )
