"""Commands that only tell: models, doctor."""

from __future__ import annotations

import typer

from densenet_deploy import environment
from densenet_deploy._tensorrt import load
from densenet_deploy.cli import show
from densenet_deploy.cli.options import Json
from densenet_deploy.errors import DeployError
from densenet_deploy.runtime import BACKENDS, why_unavailable
from densenet_deploy.spec import VARIANTS


def models(json: Json = False) -> None:
    """List the published architectures with exact parameters and multiply-accumulates."""
    entries = {
        name: {
            "depth": spec.depth,
            "growth_rate": spec.growth_rate,
            "block_layers": spec.block_layers,
            "input_shape": spec.input_shape,
            "classes": spec.classes,
            "parameters": spec.parameters,
            "macs": spec.macs,
        }
        for name, spec in VARIANTS.items()
    }
    if json:
        show.as_json(entries)
        return
    lines = [
        (
            name,
            str(spec.depth),
            str(spec.growth_rate),
            ",".join(map(str, spec.block_layers)),
            "x".join(map(str, spec.input_shape)),
            str(spec.classes),
            f"{spec.parameters:,}",
            f"{spec.macs:,}",
        )
        for name, spec in VARIANTS.items()
    ]
    header = ("model", "depth", "k", "layers", "input", "classes", "parameters", "MACs")
    show.table(header, lines)
    typer.echo("any densenet[-b|-c|-bc]-DEPTH-GROWTH is understood too")


def doctor(json: Json = False) -> None:
    """Say what this machine can run and build, and why not the rest."""
    running = {name: why_unavailable(name) for name in BACKENDS}
    building = {name: _why_not_build(name) for name in ("tensorrt-rtx", "tensorrt")}
    machine = environment.describe()
    if json:
        show.as_json({"environment": machine, "run": running, "build": building})
        return
    typer.echo(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB")
    typer.echo(f"{machine['system']}, Python {machine['python']}")
    for name, version in machine["packages"].items():
        typer.echo(f"  {name} {version}")
    for name, reason in running.items():
        typer.echo(f"run {name}: {'no, ' + reason if reason else 'yes'}")
    for name, reason in building.items():
        typer.echo(f"build {name} engines: {'no, ' + reason if reason else 'yes'}")


def _why_not_build(backend: str) -> str:
    try:
        load(backend)  # type: ignore[arg-type]
    except DeployError as error:
        return str(error)
    return ""
