"""Wide DenseNet-BC: the errors, time and memory the authors report, and our networks' size."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from densenet_deploy.figures.drawing import draw_table
from densenet_deploy.figures.picture import Picture
from densenet_deploy.figures.table2 import counts
from densenet_deploy.published_results import WideRow, load

_TITLE = "Wide DenseNet-BC: fewer layers, more feature maps"
_HEADER = (
    *("model", "params", "C10+", "C100+", "s/iteration", "memory MB"),
    *("our params", "our MACs", "as printed"),
)
_KINDS = ("name", *("published",) * 5, *("ours",) * 3)
_READING = (
    "Errors in percent. Ours: parameters and multiply-accumulates of our networks with 10 classes, "
    "for one 32x32 image, and whether the parameters round to the printed figure."
)


def wide_nets() -> Picture:
    """The authors' table of wide networks, with our parameter and MAC counts."""
    table = load().wide
    lines = [_cells(row) for row in table.rows]
    titles = [
        *("\nmodel", "authors\nparams", "authors\nC10+", "authors\nC100+"),
        *("authors\ns/iteration", "authors\nmemory, MB"),
        *("ours\nparams", "ours\nMACs", "rounds to\nprinted"),
    ]
    return Picture(
        name="wide-nets",
        title=_TITLE,
        caption=f"Published: {table.source}. {_READING}",
        data={"source": table.source, "rows": [_record(row) for row in table.rows]},
        header=_HEADER,
        lines=lines,
        size=(10, 2.6),
        draw=lambda figure: draw_table(figure.subplots(), titles, _KINDS, lines),
    )


def _record(row: WideRow) -> dict[str, Any]:
    return {"published": asdict(row), "ours": counts(row.model, row.parameters_millions)}


def _cells(row: WideRow) -> tuple[str, ...]:
    ours = counts(row.model, row.parameters_millions)
    return (
        row.model,
        f"{row.parameters_millions:.1f}M",
        *(f"{row.errors[name]:.2f}" for name in ("C10+", "C100+")),
        f"{row.seconds_per_iteration:.3f}",
        f"{row.memory_megabytes:,}",
        f"{ours['parameters']:,}",
        f"{ours['macs']:,}",
        "yes" if ours["rounds_to_printed"] else "NO",
    )
