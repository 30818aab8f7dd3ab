"""Table 2: error rates on CIFAR and SVHN as published, and how large our networks are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from densenet_deploy.figures.drawing import draw_table
from densenet_deploy.figures.picture import Picture
from densenet_deploy.published_results import CIFAR_SETS, CifarRow, load
from densenet_deploy.spec import variant

_TITLE = "Table 2: test error on CIFAR and SVHN, and the size of our networks"
_HEADER = (
    *("model", "depth", "params"),
    *CIFAR_SETS,
    *("our model", "our params", "our MACs", "as printed"),
)
_KINDS = ("name", *("published",) * 7, "name", *("ours",) * 3)
_READING = (
    "Errors in percent; + is with augmentation; the least of each column in bold; * run by the "
    "DenseNet authors. Ours: parameters and multiply-accumulates of our networks with 10 classes, "
    "for one 32x32 image, and whether the parameters round to the printed figure."
)


def table2() -> Picture:
    """Every row of table 2, with our parameter and MAC counts beside the networks we have."""
    table = load().table2
    noted = [row.note for row in table.rows if row.note]
    marks = {note: "†‡§"[index] for index, note in enumerate(noted)}
    lines = [_cells(row, marks.get(row.note, "")) for row in table.rows]
    bold = _best(table.rows)
    notes = "".join(f" {mark} {note}." for note, mark in marks.items())
    return Picture(
        name="table2",
        title=_TITLE,
        caption=f"Published: {table.source}. {_READING}{notes}",
        data={"source": table.source, "rows": [_record(row) for row in table.rows]},
        header=_HEADER,
        lines=lines,
        size=(13, 6.8),
        draw=lambda figure: draw_table(figure.subplots(), _titles(), _KINDS, lines, bold),
    )


def counts(model: str, printed: float | None = None) -> dict[str, Any]:
    """What we count for a network, and whether it rounds to `printed` million parameters."""
    spec = variant(model)
    ours: dict[str, Any] = {
        "model": model,
        "depth": spec.depth,
        "parameters": spec.parameters,
        "macs": spec.macs,
    }
    if printed is not None:
        ours["rounds_to_printed"] = round(spec.parameters / 1e6, 1) == printed
    return ours


def _record(row: CifarRow) -> dict[str, Any]:
    ours = None
    if row.model:
        ours = counts(row.model, row.parameters_millions)
        ours["parameters_100_classes"] = variant(row.model, classes=100).parameters
    published = {key: value for key, value in asdict(row).items() if key != "model"}
    return {"published": published, "ours": ours}


def _cells(row: CifarRow, mark: str) -> tuple[str, ...]:
    errors = tuple(
        f"{row.errors[name]:.2f}{'*' if name in row.authors_runs else ''}"
        if name in row.errors
        else "-"
        for name in CIFAR_SETS
    )
    size = "-" if row.parameters_millions is None else f"{row.parameters_millions:.1f}M{mark}"
    depth = "-" if row.depth is None else str(row.depth)
    if not row.model:
        return (row.method, depth, size, *errors, "", "", "", "")
    ours = counts(row.model, row.parameters_millions)
    rounds = "yes" if ours["rounds_to_printed"] else "NO"
    numbers = (f"{ours['parameters']:,}", f"{ours['macs']:,}")
    return (row.method, depth, size, *errors, row.model, *numbers, rounds)


def _titles() -> list[str]:
    published = [f"paper\n{name}" for name in _HEADER[1:8]]
    return [
        "\nmodel",
        *published,
        "\nour network",
        "ours\nparams",
        "ours\nMACs",
        "rounds to\nprinted",
    ]


def _best(rows: tuple[CifarRow, ...]) -> set[tuple[int, int]]:
    """(row, column) of the least error of each data set."""
    found = set()
    for column, name in enumerate(CIFAR_SETS, start=3):
        least = min(row.errors[name] for row in rows if name in row.errors)
        found |= {(i, column) for i, row in enumerate(rows) if row.errors.get(name) == least}
    return found
