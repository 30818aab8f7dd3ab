"""Figure 4, left and middle: C10+ error of small networks against their parameters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from densenet_deploy.figures.drawing import COLOURS, MARKERS, OURS, grid
from densenet_deploy.figures.picture import Picture
from densenet_deploy.published_results import Point, Series, load
from densenet_deploy.spec import variant

_TITLE = "Figure 4: test error on CIFAR-10 with augmentation against parameters"
_LEFT = ("DenseNet", "DenseNet-C", "DenseNet-B", "DenseNet-BC")
_MIDDLE = ("ResNet (pre-activation)", "DenseNet-BC")
_READING = (
    "Growth rate 12. Dots: the parameters we count for a marker's network; two ResNets are none of "
    "ours. Two markers lie off their dots: the paper plots DenseNet-BC-10 and -16 at "
    "DenseNet-C's parameters."
)


def small_nets() -> Picture:
    """Figure 4's curves as plotted, and our parameter count of the networks we know on them."""
    published = load().figure4
    records = [
        {"name": one.name, "points": [_record(point) for point in one.points]}
        for one in published.series
    ]
    lines = [
        (
            point.model or one.name,
            f"{point.parameters:,.0f}",
            "-" if not point.model else f"{variant(point.model).parameters:,}",
            f"{point.error:.2f}",
        )
        for one in published.series
        for point in one.points
    ]
    return Picture(
        name="small-nets",
        title=_TITLE,
        caption=f"Published: {published.source}. {_READING}",
        data={"source": published.source, "series": records},
        header=("model", "params as plotted", "our params", "C10+ error"),
        lines=lines,
        size=(11, 5),
        draw=lambda figure: _draw(figure, published.series),
    )


def _record(point: Point) -> dict[str, Any]:
    ours = variant(point.model).parameters if point.model else None
    published = {key: value for key, value in asdict(point).items() if value not in (None, "")}
    return {**published, "our_parameters": ours}


def _draw(figure: Any, series: tuple[Series, ...]) -> None:
    by_name = {one.name: (one, index) for index, one in enumerate(series)}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, names in zip(panels, (_LEFT, _MIDDLE), strict=True):
        counted: list[tuple[float, float]] = []
        for name in names:
            one, index = by_name[name]
            xs = [point.parameters / 1e6 for point in one.points]
            ys = [point.error for point in one.points]
            look = {"marker": MARKERS[index], "color": COLOURS[index], "mfc": "white"}
            axes.plot(xs, ys, label=f"{name}, as plotted in the paper", **look)
            counted += [
                (variant(point.model).parameters / 1e6, point.error)
                for point in one.points
                if point.model
            ]
        dots: dict[str, Any] = {"color": OURS, "ms": 4, "zorder": 3}
        axes.plot(*zip(*counted, strict=True), ".", label="ours: counted parameters", **dots)
        grid(axes, "parameters, millions", "")
        axes.legend(loc="upper right", fontsize=9)
    panels[0].set_ylabel("test error on C10+, %")
