"""Memory of training against depth: what our networks hold, beside what the authors report.

The two are different quantities, so each has a panel of its own: ours is what one forward pass
keeps for the backward pass, theirs is the memory of a GPU that trains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.errors import DataError
from densenet_deploy.figures.drawing import COLOURS, MARKERS, grid
from densenet_deploy.figures.picture import Picture
from densenet_deploy.published_results import MemorySeries, load

MODES = ("naive", "memory-efficient")
_KINDS = {"plain": "DenseNet", "b": "DenseNet-B", "c": "DenseNet-C", "bc": "DenseNet-BC"}
_PUBLISHED = "Published: {source}; memory of a GPU that trains DenseNet-BC (k = 12)."
_MEASURED = (
    "Ours: {source}; bytes that one forward pass in training keeps for the backward pass, without "
    "parameters and batch. The panels show different quantities on different machines."
)


@dataclass(frozen=True)
class Held:
    """What a training step of one network holds.

    Attributes:
        depth: Layers.
        held_bytes: Kept from the forward pass for the backward pass.
    """

    depth: int
    held_bytes: int


@dataclass(frozen=True)
class HeldSeries:
    """Networks that differ in depth alone.

    Attributes:
        name: What they have in common.
        mode: One of `MODES`.
        points: By rising depth.
    """

    name: str
    mode: str
    points: tuple[Held, ...]


def read_results(path: Path) -> list[HeldSeries]:
    """The curves in the results of a training-memory suite: whatever has two depths or more.

    Raises:
        DataError: The file is missing or holds no such curve.
    """
    try:
        points = json.loads(path.read_text(encoding="utf-8"))["points"]
        curves = _curves(points)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        curves, reason = [], f" ({type(error).__name__})"
    else:
        reason = ""
    if not curves:
        raise DataError(
            f"{path} holds no memory against depth{reason}",
            expected="results of a training-memory suite with a sweep over depth",
        )
    return curves


def _curves(points: Sequence[Mapping[str, Any]]) -> list[HeldSeries]:
    found: dict[tuple[str, str], dict[int, int]] = {}
    for point in points:
        depth, size, mode = point["depth"], point["held_bytes"], point["mode"]
        if type(depth) is not int or type(size) is not int or min(depth, size) < 1:
            raise ValueError(f"depth {depth}: {size} bytes")
        if mode in MODES:
            found.setdefault((_name(point), mode), {})[depth] = size
    return [
        HeldSeries(name, mode, tuple(Held(*one) for one in sorted(sizes.items())))
        for (name, mode), sizes in found.items()
        if len(sizes) > 1
    ]


def _name(point: Mapping[str, Any]) -> str:
    kind = _KINDS[point["variant"]]
    shape = "x".join(map(str, point["input_shape"]))
    return (
        f"{kind} (k = {point['growth_rate']}), batch {point['batch']} of {shape}, "
        f"{point['precision']}"
    )


def memory(measured: Sequence[HeldSeries] = (), source: str = "") -> Picture:
    """The authors' curves, and ours beside them where some were measured.

    Args:
        measured: Our curves.
        source: Where they are from.
    """
    published = load().memory
    lines = [
        (series.name, series.mode, str(one.depth), f"{one.held_bytes / 1e6:.1f} MB")
        for series in measured
        for one in series.points
    ]
    lines += [
        (series.name, "published", str(point.depth), f"{point.gigabytes:.2f} GB")
        for series in published.series
        for point in series.points
    ]
    caption = _PUBLISHED.format(source=published.source)
    if measured:
        caption = f"{_MEASURED.format(source=source)} {caption}"
    return Picture(
        name="memory",
        title="Memory of training against depth",
        caption=caption,
        data={"published": asdict(published), "measured": [asdict(one) for one in measured]},
        header=("model", "mode", "depth", "memory"),
        lines=lines,
        size=(12, 5) if measured else (7, 5),
        draw=lambda figure: _draw(figure, measured, published.series),
    )


def _draw(figure: Any, measured: Sequence[HeldSeries], series: Sequence[MemorySeries]) -> None:
    panels = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    if measured:
        _draw_measured(panels[0], measured)
    published = panels[-1]
    for index, one in enumerate(series):
        style = "--" if one.name.startswith("Lua") else "-"
        look = {"color": COLOURS[index], "linestyle": style, "mfc": "white", "ms": 5}
        xs, ys = zip(*((point.depth, point.gigabytes) for point in one.points), strict=True)
        published.plot(xs, ys, marker=MARKERS[index], label=one.name, **look)
    grid(published, "depth L, layers", "memory of the GPU, GB")
    published.set_title("published: DenseNet-BC (k = 12)", fontsize=10)
    _finish(published)


def _draw_measured(axes: Any, measured: Sequence[HeldSeries]) -> None:
    names = list(dict.fromkeys(series.name for series in measured))
    for series in measured:
        colour = COLOURS[names.index(series.name) % len(COLOURS)]
        efficient = series.mode == MODES[1]
        look = {"marker": "o" if efficient else "s", "linestyle": "-" if efficient else "--"}
        xs, ys = zip(*((one.depth, one.held_bytes / 1e6) for one in series.points), strict=True)
        label = series.mode if len(names) == 1 else f"{series.mode}, {series.name}"
        axes.plot(xs, ys, color=colour, label=label, **look)
    grid(axes, "depth L, layers", "held for the backward pass, MB")
    axes.set_title(f"ours: {names[0]}" if len(names) == 1 else "ours", fontsize=10)
    _finish(axes)


def _finish(axes: Any) -> None:
    """Starts at zero, and leaves room above the curves for the legend."""
    axes.set_ylim(0, 1.4 * axes.dataLim.y1)
    axes.legend(loc="upper left", fontsize=8)
