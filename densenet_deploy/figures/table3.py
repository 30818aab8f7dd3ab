"""Table 3: ImageNet errors as published, and how large our networks are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from densenet_deploy.figures.drawing import draw_table
from densenet_deploy.figures.picture import Picture
from densenet_deploy.figures.table2 import counts
from densenet_deploy.published_results import ImageNetRow, Point, load

_TITLE = "Table 3: ImageNet validation error, and the size of our networks"
_HEADER = (
    *("model", "top-1", "top-1 10-crop", "top-5", "top-5 10-crop"),
    *("plotted top-1", "plotted params"),
    *("our depth", "our params", "our MACs"),
)
_KINDS = ("name", *("published",) * 6, *("ours",) * 3)
_READING = (
    "Errors in percent. Figure 3 plots the single-crop errors anew, and they differ from this "
    "table's. Ours: layers, parameters and multiply-accumulates of our networks with 1000 classes, "
    "for one 224x224 image."
)


def table3() -> Picture:
    """Every row of table 3, figure 3's numbers for the same networks, and our counts."""
    published = load()
    rows = published.table3.rows
    plotted = {point.model: point for series in published.figure3.series for point in series.points}
    marks = {row.model: "†‡§"[i] for i, row in enumerate(row for row in rows if row.note)}
    lines = [_cells(row, plotted.get(row.model), marks.get(row.model, "")) for row in rows]
    notes = "".join(f" {marks[row.model]} {row.note}." for row in rows if row.note)
    source = published.table3.source
    plot = f"Figure 3: {published.figure3.source.rpartition('Figure 3, ')[2]}."
    return Picture(
        name="table3",
        title=_TITLE,
        caption=f"Published: {source}. {plot} {_READING}{notes}",
        data={"source": source, "rows": [_record(row, plotted.get(row.model)) for row in rows]},
        header=_HEADER,
        lines=lines,
        size=(11, 3.2),
        draw=lambda figure: draw_table(figure.subplots(), _titles(), _KINDS, lines),
    )


def _record(row: ImageNetRow, plotted: Point | None) -> dict[str, Any]:
    figure3 = None
    if plotted is not None:
        figure3 = {
            "error": plotted.error,
            "parameters": plotted.parameters,
            "flops": plotted.flops,
            "error_minus_table3": round(plotted.error - row.top1.single_crop, 2),
        }
    ours = counts(row.model)
    return {"published": asdict(row), "figure3": figure3, "ours": ours}


def _cells(row: ImageNetRow, plotted: Point | None, mark: str) -> tuple[str, ...]:
    errors = (*vars(row.top1).values(), *vars(row.top5).values())
    ours = counts(row.model)
    if plotted is None:
        figure3 = ("-", "-")
    else:
        figure3 = (f"{plotted.error:.2f}", f"{plotted.parameters / 1e6:.2f}M")
    return (
        f"{row.model}{mark}",
        *(f"{error:.2f}" for error in errors),
        *figure3,
        str(ours["depth"]),
        f"{ours['parameters']:,}",
        f"{ours['macs']:,}",
    )


def _titles() -> list[str]:
    crops = [
        f"paper\n{top}\n{crop}" for top in ("top-1", "top-5") for crop in ("1-crop", "10-crop")
    ]
    plotted = ["paper,\nfigure 3\ntop-1", "paper,\nfigure 3\nparams"]
    return ["\n\nmodel", *crops, *plotted, "\nours\nlayers", "\nours\nparams", "\nours\nMACs"]
