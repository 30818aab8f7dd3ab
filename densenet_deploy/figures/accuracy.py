"""Figure 3: ImageNet error against parameters and against operations, DenseNet and ResNet."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from densenet_deploy.figures.drawing import COLOURS, MARKERS, OURS, grid
from densenet_deploy.figures.picture import Picture
from densenet_deploy.figures.table2 import counts
from densenet_deploy.published_results import Published, Series, load

_TITLE = "Figure 3: ImageNet top-1 error (single crop) against size and work"
_OURS = "ours: counted"
_READING = (
    "FLOPs are two for each multiply-accumulate, as on the paper's axis. Ours: parameters and "
    "2 x MACs of our networks with 1000 classes, for one 224x224 image, at the paper's errors: of "
    "DenseNets Table 3's, which differ from Figure 3's; 161 is only in the CVPR version's table."
)


def accuracy() -> Picture:
    """Figure 3's two panels, with our counts of the same networks and of DenseNet-161."""
    published = load()
    source, series, ours = published.figure3.source, published.figure3.series, _ours(published)
    plotted = [asdict(point) for one in series for point in one.points]
    lines = [
        (
            one["model"],
            counted_by,
            f"{one['parameters']:,.0f}",
            f"{one['flops']:,.0f}",
            f"{one['error']:.2f}",
        )
        for counted_by, group in (("figure 3", plotted), ("ours", ours))
        for one in group
    ]
    return Picture(
        name="accuracy",
        title=_TITLE,
        caption=f"Published: {source}. {_READING}",
        data={"source": source, "series": [asdict(one) for one in series], "ours": ours},
        header=("model", "counted by", "parameters", "FLOPs", "top-1 error"),
        lines=lines,
        size=(11, 5),
        draw=lambda figure: _draw(figure, series, ours),
    )


def _ours(published: Published) -> list[dict[str, Any]]:
    """Our counts, at the error of table 3; ResNets, which it does not have, at figure 3's."""
    errors = {point.model: point.error for one in published.figure3.series for point in one.points}
    errors |= {row.model: row.top1.single_crop for row in published.table3.rows}
    counted = [{**counts(model), "error": error} for model, error in errors.items()]
    return [{**one, "flops": 2 * one["macs"]} for one in counted]


def _draw(figure: Any, series: tuple[Series, ...], ours: list[dict[str, Any]]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    sizes = (("parameters", 1e6, "parameters, millions"), ("flops", 1e9, "GFLOPs (2 x MACs)"))
    for axes, (key, unit, unit_label) in zip(panels, sizes, strict=True):
        for index, one in enumerate(series):
            xs = [getattr(point, key) / unit for point in one.points]
            ys = [point.error for point in one.points]
            colour, marker = COLOURS[index], MARKERS[index]
            label = f"{one.name}, as plotted in the paper"
            axes.plot(xs, ys, marker=marker, color=colour, mfc="white", ms=8, label=label)
            for x, y, point in zip(xs, ys, one.points, strict=True):
                _name(axes, point.model, (x, y), left=one.name == "DenseNet")
        xs = [one[key] / unit for one in ours]
        ys = [one["error"] for one in ours]
        axes.plot(xs, ys, ".", color=OURS, label=_OURS, zorder=3)
        known = {point.model for one in series for point in one.points}
        for x, y, counted in zip(xs, ys, ours, strict=True):
            if counted["model"] not in known:
                _name(axes, counted["model"], (x, y), left=True)
        grid(axes, unit_label, "")
        axes.set_xlim(left=0, right=1.1 * axes.dataLim.x1)
    panels[0].set_ylabel("top-1 error, %")
    panels[1].legend(loc="upper right", fontsize=9)


def _name(axes: Any, model: str, at: tuple[float, float], left: bool) -> None:
    """Writes a network's depth beside its marker: to the left and below, or to the right."""
    offset, align = ((-7, -11), "right") if left else ((8, 3), "left")
    text = model.removeprefix("densenet").removeprefix("resnet")
    axes.annotate(text, at, offset, textcoords="offset points", fontsize=9, ha=align)
