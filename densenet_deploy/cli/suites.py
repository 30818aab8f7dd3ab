"""The command that runs a suite: suite."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from densenet_deploy.cli import show, suite_tables, training_tables
from densenet_deploy.cli.options import DataDirectory, Json, Quiet, default_out, integers, tracker
from densenet_deploy.embedding_suite import EmbeddingSuite
from densenet_deploy.environment import git_commit
from densenet_deploy.errors import RecipeError
from densenet_deploy.files import replacing_file
from densenet_deploy.inference_suite import InferenceMemorySuite
from densenet_deploy.progress import Track
from densenet_deploy.recipe import Target
from densenet_deploy.study_suite import StudySuite
from densenet_deploy.suite import (
    KINDS,
    AccuracySuite,
    LatencySuite,
    Suite,
    TrafficSuite,
    load_suite,
)
from densenet_deploy.training_suite import TrainingMemorySuite, TrainingSpeedSuite

Options = Mapping[str, Any]
_KINDS = {  # that have an option
    "--model": tuple(kind for kind in KINDS if kind != "accuracy"),
    "--batch": ("latency", "training-speed", "inference-memory"),
    "--pairs": ("latency", "embedding", "training-memory", "training-speed"),
    "--program": ("embedding",),
    "--target": ("accuracy",),
    "--seed": ("accuracy", "training-accuracy"),
    "--data-dir": ("accuracy", "training-accuracy"),
    "--runs": ("training-accuracy",),
}


def suite(
    name: Annotated[str, typer.Argument(help="Suite name or .toml file.", metavar="SUITE")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME", help="Only this one; repeatable. Any recipe or architecture."
        ),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Only these sizes, such as 1,8.")] = "",
    pairs: Annotated[
        int,
        typer.Option(
            "--pairs", metavar="N", min=0, help="Rounds (default: the suite's).", show_default=False
        ),
    ] = 0,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="NAME", help="Only this one; repeatable."),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", metavar="N", min=0, help="Only this one; repeatable."),
    ] = None,
    data_dir: DataDirectory = "",
    program: Annotated[
        str,
        typer.Option(
            "--program", metavar="PATH", help="The C++ program (default: this checkout's)."
        ),
    ] = "",
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs", metavar="DIRECTORY", help="Where trainings are kept (default: work/SUITE)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the records: a .json file, or a device's folder."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a suite claims, such as speed or accuracy; exit 1 if a floor fails."""
    chosen = load_suite(name)
    options: Options = {
        "--model": model,
        "--batch": batch,
        "--pairs": pairs,
        "--target": target,
        "--seed": seed,
        "--data-dir": data_dir,
        "--program": program,
        "--runs": runs,
    }
    _check_options(chosen, options)
    before = git_commit()
    found, tell = _run(chosen, options, tracker(quiet))
    records = found.to_dict()
    if (after := git_commit()) != before:  # processes that were started later ran other code
        records["environment"]["git"] = f"{before}..{after}"
    if out:
        path = out if out.suffix == ".json" else out / f"{chosen.name}.json"
        with replacing_file(path) as temporary:
            temporary.write_text(jsonlib.dumps(records) + "\n", encoding="utf-8")
    if json:
        show.as_json(records)
    else:
        tell(found)
    if not found:
        raise typer.Exit(1)


def _check_options(chosen: Suite, options: Options) -> None:
    for option, value in options.items():
        if value and chosen.kind not in _KINDS[option]:
            raise RecipeError(
                f"{option} with {chosen.name}, a suite of {chosen.kind}",
                expected=f"a suite of {' or '.join(_KINDS[option])}",
            )


def _run(chosen: Suite, options: Options, track: Track) -> tuple[Any, Callable[[Any], None]]:
    """What a suite found, and how to print it."""
    if isinstance(chosen, LatencySuite):
        return _latency(chosen, options, track), suite_tables.latency
    if isinstance(chosen, AccuracySuite):
        return _accuracy(chosen, options, track), suite_tables.accuracy
    if isinstance(chosen, EmbeddingSuite):
        return _embedding(chosen, options, track), suite_tables.embedding
    if isinstance(chosen, StudySuite):
        return _study(chosen, options, track), suite_tables.study
    if isinstance(chosen, TrainingMemorySuite):
        return _training_memory(chosen, options, track), training_tables.memory
    if isinstance(chosen, TrainingSpeedSuite):
        return _training_speed(chosen, options, track), training_tables.speed
    if isinstance(chosen, InferenceMemorySuite):
        return _inference_memory(chosen, options, track), suite_tables.inference_memory
    return _traffic(chosen, options, track), suite_tables.traffic


def _latency(chosen: LatencySuite, options: Options, track: Track) -> Any:
    sizes = _batch_sizes(options)
    from densenet_deploy.compete import compete

    return compete(chosen, options["--model"] or (), sizes, options["--pairs"], track)


def _batch_sizes(options: Options) -> tuple[int, ...]:
    sizes = integers(options["--batch"], "--batch") if options["--batch"] else ()
    if sizes and min(sizes) < 1:
        raise RecipeError(f"--batch {options['--batch']!r}", expected="positive integers")
    return sizes


def _accuracy(chosen: AccuracySuite, options: Options, track: Track) -> Any:
    for target in options["--target"] or ():
        if target not in get_args(Target):
            raise RecipeError(
                f"--target {target!r}", expected=f"one of {', '.join(get_args(Target))}"
            )
    from densenet_deploy.score import score

    directory = options["--data-dir"] or chosen.data.directory
    chosen = replace(chosen, data=replace(chosen.data, directory=directory))
    return score(chosen, options["--target"] or (), options["--seed"] or (), track)


def _traffic(chosen: TrafficSuite, options: Options, track: Track) -> Any:
    from densenet_deploy.weigh import weigh

    return weigh(chosen, options["--model"] or (), track)


def _embedding(chosen: EmbeddingSuite, options: Options, track: Track) -> Any:
    from densenet_deploy.embedding import embed, find_program

    program = find_program(options["--program"])
    return embed(chosen, program, options["--model"] or (), options["--pairs"], track)


def _study(chosen: StudySuite, options: Options, track: Track) -> Any:
    from densenet_deploy.study import study

    out = options["--runs"] or default_out(chosen.name)
    recipes, seeds = options["--model"] or (), options["--seed"] or ()
    return study(chosen, out, recipes, seeds, options["--data-dir"], track)


def _training_memory(chosen: TrainingMemorySuite, options: Options, track: Track) -> Any:
    from densenet_deploy.training_memory import measure_memory

    return measure_memory(chosen, options["--model"] or (), options["--pairs"], track)


def _training_speed(chosen: TrainingSpeedSuite, options: Options, track: Track) -> Any:
    sizes = _batch_sizes(options)
    from densenet_deploy.training_speed import measure_speed

    return measure_speed(chosen, options["--model"] or (), sizes, options["--pairs"], track)


def _inference_memory(chosen: InferenceMemorySuite, options: Options, track: Track) -> Any:
    sizes = _batch_sizes(options)
    from densenet_deploy.inference_memory import measure_inference

    return measure_inference(chosen, options["--model"] or (), sizes, track)
