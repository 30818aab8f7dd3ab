"""Commands that only tell: models, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from densenet_deploy import _cuda, environment
from densenet_deploy._tensorrt import load
from densenet_deploy.cli import show
from densenet_deploy.cli.inspecting import EngineLog, OfProfile
from densenet_deploy.cli.options import Json
from densenet_deploy.engine.cache import default_cache, entries, kept_files
from densenet_deploy.engine.inspected import KINDS, inspect_engine
from densenet_deploy.errors import DeployError
from densenet_deploy.published import published_recipes
from densenet_deploy.runtime import BACKENDS, why_unavailable
from densenet_deploy.spec import ARCHITECTURES, PATTERNS, Architecture, DenseNetSpec
from densenet_deploy.train_config import TrainConfig

doctor = typer.Typer(help="What this machine can do, and what slows an engine down.")
# What TensorRT, TensorRT-RTX and CUDA are made of on PyPI: versions that have to fit each other
_GPU_PACKAGES = (
    "cuda-bindings",
    "nvidia-cuda-runtime",
    *(f"tensorrt-cu{major}{part}" for major in (12, 13) for part in ("", "-bindings", "-libs")),
    *(f"tensorrt-rtx-cu{major}-libs" for major in (12, 13)),
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "nvidia-ml-py",
    "pycuda",
)


def models(
    recipes: Annotated[
        bool, typer.Option("--recipes", help="List how they were trained, and to which error.")
    ] = False,
    json: Json = False,
) -> None:
    """List the published architectures with exact parameters and multiply-accumulates."""
    if recipes:
        _recipes(json)
    elif json:
        counted = ("depth", "parameters", "macs")
        show.as_json(
            {
                name: vars(spec) | {key: getattr(spec, key) for key in counted}
                for name, spec in ARCHITECTURES.items()
            }
        )
    else:
        _architectures()


def _architectures() -> None:
    lines = [
        (
            name,
            str(spec.depth),
            str(spec.growth_rate) if isinstance(spec, DenseNetSpec) else "-",
            ",".join(map(str, _layers(spec))),
            "x".join(map(str, spec.input_shape)),
            str(spec.classes),
            f"{spec.parameters:,}",
            f"{spec.macs:,}",
        )
        for name, spec in ARCHITECTURES.items()
    ]
    header = ("model", "depth", "k", "layers", "input", "classes", "parameters", "MACs")
    show.table(header, lines)
    typer.echo(f"any {' or '.join(PATTERNS)} is understood too")


def _layers(spec: Architecture) -> tuple[int, ...]:
    """Layers of each dense block, or blocks of each stage."""
    return spec.block_layers if isinstance(spec, DenseNetSpec) else spec.stage_blocks


def _recipes(json: bool) -> None:
    known = published_recipes()
    if json:
        show.as_json(
            {
                name: {
                    "error": each.error,
                    "source": each.source,
                    "model": each.recipe.model,
                    "data": each.recipe.data,
                    "train": each.recipe.train,
                }
                for name, each in known.items()
            }
        )
        return
    lines = [
        (
            name,
            str(each.recipe.train.epochs),
            str(each.recipe.train.batch_size),
            _schedule(each.recipe.train),
            f"{each.recipe.train.dropout:g}",
            "-" if each.error is None else f"{each.error:.2f}",
        )
        for name, each in known.items()
    ]
    show.table(("recipe", "epochs", "batch", "learning rate", "dropout", "error %"), lines)
    typer.echo("error: top-1 on the test images as published; sources with --json")


def _schedule(config: TrainConfig) -> str:
    if config.schedule == "cosine":
        return f"{config.learning_rate:g}, cosine"
    epochs = ", ".join(f"{drop * config.epochs:g}" for drop in config.drops)
    return f"{config.learning_rate:g}, a tenth from {epochs}"


@doctor.callback(invoke_without_command=True)
def machine(context: typer.Context, json: Json = False) -> None:
    """Say what this machine can run and build, and why not the rest."""
    if context.invoked_subcommand:
        return
    told = _machine()
    if json:
        show.as_json(told)
        return
    here = told["environment"]
    typer.echo(f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB")
    typer.echo(f"{here['system']}, Python {here['python']}")
    for index, gpu in enumerate(here["gpus"]):
        facts = (f"{name.replace('_', ' ')} {value}" for name, value in gpu.items())
        typer.echo(f"GPU {index}: {', '.join(facts)}")
    if told["no_gpu"]:
        typer.echo(f"GPU: {told['no_gpu']}")
    for name, version in told["packages"].items():
        typer.echo(f"  {name} {version}")
    for name, reason in told["run"].items():
        typer.echo(f"run {name}: {'no: ' + reason if reason else 'yes'}")
    for name, reason in told["build"].items():
        typer.echo(f"build {name} engines: {'no: ' + reason if reason else 'yes'}")
    kept = told["cache"]
    typer.echo(f"cache: {kept['folder']}, {kept['engines']} engines, {kept['bytes'] / 1e6:.2f} MB")


@doctor.command("why-slow")
def why_slow(
    engine: Annotated[Path, typer.Argument(help=f"{KINDS[0].upper()}{KINDS[1:]}.")],
    log: EngineLog = None,
    profile: OfProfile = 0,
    json: Json = False,
) -> None:
    """Say what an engine moves that its precision does not need, worst first, and what to do.

    It informs: exit 0 whatever it finds.
    """
    from densenet_deploy.engine.why_slow import why_slow as diagnose

    found = inspect_engine(engine, log, profile)
    told = diagnose(found.layers)
    if json:
        show.as_json({"source": found.source, **told.to_dict()})
    else:
        typer.echo(f"{told.summary()}\nlayers by {found.source}")


def _machine() -> dict[str, Any]:
    """What there is, what runs, what builds, and what the caches hold."""
    here = environment.describe()
    folder = default_cache()
    engines, files = entries(folder), kept_files(folder)
    size = sum(entry.size for entry in engines) + sum(file.stat().st_size for file in files)
    others = {name: environment.package_version(name) for name in _GPU_PACKAGES}
    return {
        "environment": here,
        "no_gpu": _cuda.why_no_device(),
        "packages": here["packages"] | {name: found for name, found in others.items() if found},
        "run": {name: why_unavailable(name) for name in BACKENDS},
        "build": {name: _why_not_build(name) for name in ("tensorrt-rtx", "tensorrt")},
        "cache": {"folder": str(folder), "engines": len(engines), "bytes": size},
    }


def _why_not_build(backend: str) -> str:
    try:
        load(backend)  # type: ignore[arg-type]
    except DeployError as error:
        return str(error)
    return ""
