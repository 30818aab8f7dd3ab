"""How results and errors look on a terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from densenet_deploy import report
from densenet_deploy.errors import DeployError

_LEFT = (
    *("precision", "backend", "model", "candidate", "over", "verdict", "target", "graph", "part"),
    *("engine", "profiles", "options", "recipe", "learning rate"),
)


def fail(error: DeployError) -> None:
    """Prints an error to standard error."""
    typer.secho("error: ", fg=typer.colors.RED, err=True, nl=False)
    typer.echo(str(error).rstrip(), err=True)


def as_json(value: Any) -> None:
    """Prints one JSON document to standard output."""
    typer.echo(json.dumps(value, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]


def profiles(sizes: Iterable[Iterable[int]]) -> str:
    """Optimization profiles, such as `1,1,1 and 1,8,64`."""
    return " and ".join(",".join(map(str, profile)) for profile in sizes)


def table(header: Iterable[str], lines: Iterable[Iterable[str]], title: str = "") -> None:
    """Prints a table; numbers are right-aligned, nothing is cut on a narrow or piped output."""
    drawn = Table(
        title=title or None, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for name in header:
        drawn.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    for line in lines:
        drawn.add_row(*line)
    # Wide enough for every cell: a terminal wraps, a file keeps the whole line.
    width = Console(width=1000).measure(drawn).maximum
    Console(width=width).print(drawn)


def results(records: dict[str, Any], title: str) -> None:
    """Prints the table of a run, then what was skipped and why."""
    table(report.HEADER, [row.cells() for row in report.rows(records)], title)
    for names, reason in report.by_reason(records.get("skipped", ())):
        typer.echo(f"skipped {names}: {reason}")
