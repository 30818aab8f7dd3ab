"""Commands over what builds and runs keep: cache ls, cache clear."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from densenet_deploy.cli import show
from densenet_deploy.cli.options import Json
from densenet_deploy.engine.cache import Entry, clear, default_cache, entries, kept_files
from densenet_deploy.engine.options import changed

cache = typer.Typer(
    help="What builds and runs keep: engines, kernel times, kernels.", no_args_is_help=True
)
_HEADER = ("model", "engine", "target", "profiles", "options", "size [MB]", "age")
_AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@cache.command("ls")
def ls(json: Json = False) -> None:
    """List the engines that need not be built again, newest first."""
    folder = default_cache()
    found, files = entries(folder), kept_files(folder)
    kept = sum(file.stat().st_size for file in files)
    if json:
        described = [_described(entry) for entry in found]
        others = {"files": len(files), "bytes": kept}
        show.as_json({"cache": folder, "engines": described, "others": others})
        return
    if found:
        show.table(_HEADER, map(_row, found))
    size = sum(entry.size for entry in found) / 1e6
    typer.echo(
        f"{folder}: {_count(len(found), 'engine')} ({size:.2f} MB), "
        f"{_count(len(files), 'file')} of measured or compiled kernels ({kept / 1e6:.2f} MB)"
    )


@cache.command("clear")
def clear_(
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than", metavar="DAYS", min=0, help="Keep what is newer; 0 for nothing."
        ),
    ] = 0.0,
    json: Json = False,
) -> None:
    """Remove what the caches hold; it is made again at need."""
    folder = default_cache()
    cleared = clear(folder, older_than)
    if json:
        show.as_json({"cache": folder, **vars(cleared)})
        return
    typer.echo(
        f"{folder}: removed {_count(cleared.engines, 'engine')} and "
        f"{_count(cleared.files, 'file')} of measured or compiled kernels, "
        f"{cleared.bytes / 1e6:.2f} MB"
    )


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "model": entry.record.name,
        "graph_sha256": entry.record.identity["graph"],
        "version": entry.record.identity["version"],
        "target": entry.record.identity["target"],
        "compute_capabilities": entry.record.compute_capabilities,
        "config": entry.record.config,
        "bytes": entry.size,
        "age_seconds": entry.age,
    }


def _row(entry: Entry) -> tuple[str, ...]:
    config, identity = entry.record.config, entry.record.identity
    gpu = identity["target"].get("gpu", "")
    targets = " ".join(entry.record.compute_capabilities)
    return (
        f"{entry.record.name} {identity['graph'][:8]}".strip(),
        f"{config['backend']} {identity['version']}",
        f"{gpu} {targets}".strip(),
        show.profiles(config["profiles"]),
        ", ".join(changed(config)),
        f"{entry.size / 1e6:.2f}",
        _age(entry.age),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _age(seconds: float) -> str:
    size, unit = next((pair for pair in _AGES if seconds >= pair[0]), _AGES[-1])
    return f"{seconds / size:.0f} {unit}"
