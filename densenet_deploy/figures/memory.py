"""Memory and time of training against depth: ours, beside the memory that the authors report.

The memories are different quantities, so each has a panel of its own: ours is what one forward pass
keeps for the backward pass, theirs is the memory of a GPU that trains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from densenet_deploy.errors import DataError
from densenet_deploy.figures.drawing import COLOURS, MARKERS, grid
from densenet_deploy.figures.picture import Picture
from densenet_deploy.published_results import MemorySeries, load
from densenet_deploy.results import milliseconds

MODES = ("naive", "memory-efficient")
_KINDS = {"plain": "DenseNet", "b": "DenseNet-B", "c": "DenseNet-C", "bc": "DenseNet-BC"}
_PUBLISHED = "Published: {source}; memory of a GPU that trains DenseNet-BC (k = 12)."
_MEASURED = (
    "Ours: {source}; bytes that one forward pass in training keeps for the backward pass, without "
    "parameters and batch; dotted, by how much a step raises the resident set of a fresh process; "
    "median time of a step. Published and measured memory are different quantities on different "
    "machines."
)


@dataclass(frozen=True)
class Step:
    """What a training step of one network takes.

    Attributes:
        depth: Layers.
        held_bytes: Kept from the forward pass for the backward pass.
        peak_rss_bytes: By how much the resident set grew.
        step_seconds: Median time.
    """

    depth: int
    held_bytes: int
    peak_rss_bytes: int
    step_seconds: float


@dataclass(frozen=True)
class StepSeries:
    """Networks that differ in depth alone.

    Attributes:
        name: What they have in common.
        mode: One of `MODES`.
        points: By rising depth.
    """

    name: str
    mode: str
    points: tuple[Step, ...]


def read_results(path: Path) -> list[StepSeries]:
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


def _curves(points: Sequence[Mapping[str, Any]]) -> list[StepSeries]:
    found: dict[tuple[str, str], dict[int, Step]] = {}
    for point in points:
        if point["mode"] in MODES:
            step = _step(point)
            found.setdefault((_name(point), point["mode"]), {}).setdefault(step.depth, step)
    return [
        StepSeries(name, mode, tuple(steps[depth] for depth in sorted(steps)))
        for (name, mode), steps in found.items()
        if len(steps) > 1
    ]


def _step(point: Mapping[str, Any]) -> Step:
    step = Step(**{field.name: point[field.name] for field in fields(Step)})
    whole = (step.depth, step.held_bytes, step.peak_rss_bytes)
    if any(type(number) is not int for number in whole) or min(step.depth, step.held_bytes) < 1:
        raise ValueError(f"{step}")
    if step.peak_rss_bytes < 0 or not 0 < step.step_seconds < math.inf:
        raise ValueError(f"{step}")
    return step


def _name(point: Mapping[str, Any]) -> str:
    kind = _KINDS[point["variant"]]
    shape = "x".join(map(str, point["input_shape"]))
    return (
        f"{kind} (k = {point['growth_rate']}), batch {point['batch']} of {shape}, "
        f"{point['precision']}"
    )


def memory(measured: Sequence[StepSeries] = (), source: str = "") -> Picture:
    """The authors' curves, and ours beside them where some were measured.

    Args:
        measured: Our curves.
        source: Where they are from.
    """
    published = load().memory
    lines = [
        (
            *(series.name, series.mode, str(one.depth), f"{one.held_bytes / 1e6:.1f} MB"),
            f"{milliseconds(one.step_seconds)} ms",
        )
        for series in measured
        for one in series.points
    ]
    lines += [
        (series.name, "published", str(point.depth), f"{point.gigabytes:.2f} GB", "")
        for series in published.series
        for point in series.points
    ]
    caption = _PUBLISHED.format(source=published.source)
    if measured:
        caption = f"{_MEASURED.format(source=source)} {caption}"
    return Picture(
        name="memory",
        title=f"Memory {'and time ' if measured else ''}of training against depth",
        caption=caption,
        data={"published": asdict(published), "measured": [asdict(one) for one in measured]},
        header=("model", "mode", "depth", "memory", "step"),
        lines=lines,
        size=(16, 5) if measured else (7, 5),
        draw=lambda figure: _draw(figure, measured, published.series),
    )


def _draw(figure: Any, measured: Sequence[StepSeries], series: Sequence[MemorySeries]) -> None:
    panels = figure.subplots(1, 3 if measured else 1, squeeze=False)[0]
    if measured:
        held, peak = (lambda one: one.held_bytes / 1e6), (lambda one: one.peak_rss_bytes / 1e6)
        _draw_measured(panels[0], measured, "held for the backward pass, MB", held, dotted=peak)
        _draw_measured(panels[1], measured, "a training step, s", lambda one: one.step_seconds)
    published = panels[-1]
    for index, one in enumerate(series):
        style = "--" if one.name.startswith("Lua") else "-"
        look = {"color": COLOURS[index], "linestyle": style, "mfc": "white", "ms": 5}
        xs, ys = zip(*((point.depth, point.gigabytes) for point in one.points), strict=True)
        published.plot(xs, ys, marker=MARKERS[index], label=one.name, **look)
    grid(published, "depth L, layers", "memory of the GPU, GB")
    published.set_title("published: DenseNet-BC (k = 12)", fontsize=10)
    _finish(published)


def _draw_measured(
    axes: Any,
    measured: Sequence[StepSeries],
    what: str,
    value: Callable[[Step], float],
    dotted: Callable[[Step], float] | None = None,
) -> None:
    names = list(dict.fromkeys(series.name for series in measured))
    for series in measured:
        efficient = series.mode == MODES[1]
        look = {"marker": "o" if efficient else "s", "linestyle": "-" if efficient else "--"}
        look["color"] = COLOURS[names.index(series.name) % len(COLOURS)]
        label = series.mode if len(names) == 1 else f"{series.mode}, {series.name}"
        depths = [one.depth for one in series.points]
        axes.plot(depths, list(map(value, series.points)), label=label, **look)
        if dotted:
            axes.plot(depths, list(map(dotted, series.points)), color=look["color"], linestyle=":")
    grid(axes, "depth L, layers", what)
    axes.set_title(f"ours: {names[0]}" if len(names) == 1 else "ours", fontsize=10)
    _finish(axes)


def _finish(axes: Any) -> None:
    """Starts at zero, and leaves room above the curves for the legend."""
    axes.set_ylim(0, 1.4 * axes.dataLim.y1)
    axes.legend(loc="upper left", fontsize=8)
