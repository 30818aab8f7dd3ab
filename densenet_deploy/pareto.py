"""The picture of a tuning: agreement against cost, with the Pareto front."""

from __future__ import annotations

from pathlib import Path

from densenet_deploy.errors import MissingDependencyError
from densenet_deploy.tune import Tuning


def write(tuning: Tuning, path: Path) -> None:
    """Draws every candidate and the front.

    Args:
        tuning: What was measured.
        path: PNG file to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError.of("matplotlib", "report", "the picture") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    front = tuning.front
    axes.step([c.cost for c in front], [c.agreement for c in front], where="post", color="0.7")
    for label, group in (("policy", tuning.policies), ("mixed precision", tuning.mixed)):
        axes.scatter([c.cost for c in group], [c.agreement for c in group], label=label)
    for index, candidate in enumerate(tuning.policies):
        place = (6, 6 if index % 2 else -12)  # neighbours often lie on each other
        at = (candidate.cost, candidate.agreement)
        axes.annotate(candidate.name, at, place, textcoords="offset points", fontsize=8)
    chosen = tuning.chosen
    axes.scatter(
        [chosen.cost], [chosen.agreement], s=160, facecolors="none", edgecolors="C3", label="chosen"
    )
    axes.axhline(100 - tuning.budget, color="C3", linestyle=":", label="budget")
    unit = "ms at batch 1" if tuning.unit == "ms" else "MB of activations at batch 1"
    axes.set_xlabel(f"cost on {tuning.target}: {unit}")
    axes.set_ylabel(f"agreement with fp32, % of {tuning.images} images")
    axes.margins(x=0.15, y=0.1)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120, format="png")
