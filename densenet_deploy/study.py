"""Runs a study: trains every recipe from every seed, and says how accurate the last epochs are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densenet_deploy import environment
from densenet_deploy.checkpoint import read_info
from densenet_deploy.choose import choose_recipe
from densenet_deploy.errors import RecipeError
from densenet_deploy.pipeline import train_model
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import Recipe
from densenet_deploy.spec import Architecture, variant
from densenet_deploy.study_suite import StudySuite

SCHEMA_VERSION = 2
METHOD = (
    "Every recipe is trained from every seed, which draws initial weights and order. The recipes "
    "differ in their models alone. An accuracy is that of the weights after the last epoch, on the "
    "recipes' test images, which choose nothing. std is the sample standard deviation over seeds."
)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        recipe: Its name.
        seed: Of initial weights and order.
        log: One record for each epoch.
        trained_by: Software of the processes that did, in order.
    """

    recipe: str
    seed: int
    log: tuple[dict[str, Any], ...]
    trained_by: tuple[dict[str, str], ...]

    @property
    def top1(self) -> float:
        """Accuracy on the test images after the last epoch, in percent."""
        return float(self.log[-1]["evaluation_top1"])

    @property
    def seconds(self) -> float:
        """Spent on training steps."""
        return float(sum(record["seconds"] for record in self.log))


@dataclass(frozen=True)
class Learned:
    """What the runs of one recipe came to.

    Attributes:
        recipe: What was trained.
        spec: The architecture.
        runs: One for each seed.
    """

    recipe: Recipe
    spec: Architecture
    runs: tuple[Run, ...]

    @property
    def mean(self) -> float:
        """Of the runs' accuracies, in percent."""
        return statistics.fmean(run.top1 for run in self.runs)

    @property
    def std(self) -> float | None:
        """Their sample standard deviation, in percentage points; None of a single run."""
        accuracies = [run.top1 for run in self.runs]
        return statistics.stdev(accuracies) if len(accuracies) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, every run's log among them."""
        return {
            "recipe": self.recipe.to_dict(),
            "recipe_digest": self.recipe.digest,
            "model": self.spec.name,
            "parameters": self.spec.parameters,
            "macs": self.spec.macs,
            "mean_top1": self.mean,
            "std_top1": self.std,
            "runs": [
                {
                    "seed": run.seed,
                    "top1": run.top1,
                    "seconds": run.seconds,
                    "trained_by": list(run.trained_by),
                    "log": list(run.log),
                }
                for run in self.runs
            ],
        }


@dataclass(frozen=True)
class Study:
    """Everything a study found; it claims nothing, so its truth value is True.

    Attributes:
        suite: What was run; of a larger suite, the part that was asked for.
        learned: What came of each recipe.
    """

    suite: StudySuite
    learned: tuple[Learned, ...]

    def __bool__(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite.to_dict(),
            "method": METHOD,
            "environment": environment.describe(),
            "recipes": [learned.to_dict() for learned in self.learned],
        }


def study(
    suite: StudySuite,
    out: Path,
    recipes: Sequence[str] = (),
    seeds: Sequence[int] = (),
    directory: str = "",
    track: Track = silent,
) -> Study:
    """Trains every recipe from every seed; runs that `out` holds already are not repeated.

    Args:
        suite: What to train.
        out: Where runs are kept, each in a folder of its own; an interrupted one is continued.
        recipes: Instead of the suite's.
        seeds: Likewise.
        directory: Where the data set lies, instead of where the recipes say.
        track: Progress reporter.

    Raises:
        RecipeError: The recipes differ in more than their models, or select an epoch; one of
            them, or a seed, is there twice.
        DeployError: Whatever training found wrong.
    """
    asked = _asked(suite, recipes, seeds)
    chosen = [choose_recipe(name) for name in asked.recipes]
    _check_names(chosen)
    check_alike(chosen)
    if directory:
        chosen = [replace(each, data=replace(each.data, directory=directory)) for each in chosen]
    runs: dict[str, list[Run]] = {recipe.name: [] for recipe in chosen}
    for seed in asked.seeds:  # by seed, so that what is done so far can be compared
        for recipe in chosen:
            seeded = replace(recipe, train=replace(recipe.train, seed=seed))
            folder = out / f"{recipe.name}-seed{seed}"
            log = tuple(train_model(seeded, folder, track))
            runs[recipe.name].append(Run(recipe.name, seed, log, _trained_by(folder)))
    return Study(
        asked, tuple(Learned(each, _spec(each), tuple(runs[each.name])) for each in chosen)
    )


def _trained_by(folder: Path) -> tuple[dict[str, str], ...]:
    info = read_info(folder / "model.safetensors")
    assert info is not None
    return tuple(info.training["trained_by"])


def _asked(suite: StudySuite, recipes: Sequence[str], seeds: Sequence[int]) -> StudySuite:
    try:
        return replace(
            suite, recipes=tuple(recipes or suite.recipes), seeds=tuple(seeds or suite.seeds)
        )
    except ValueError as error:
        raise RecipeError(f"{suite.name}: {error}") from None


def _check_names(recipes: Sequence[Recipe]) -> None:
    """Runs are kept by the recipe's name."""
    names = [recipe.name for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{name} is the name of two recipes", expected="a name for each")


def _spec(recipe: Recipe) -> Architecture:
    return variant(recipe.model.variant, recipe.model.input_shape, recipe.model.classes)


def check_alike(recipes: Sequence[Recipe]) -> None:
    """Refuses a comparison of more than models, or one whose runs are not the last epochs'.

    Raises:
        RecipeError: Says which key differs, or is not allowed.
    """
    first = recipes[0]
    for other in recipes:
        for part in ("data", "train"):
            ours, theirs = vars(getattr(first, part)), vars(getattr(other, part))
            if different := [key for key in ours if ours[key] != theirs[key]]:
                raise RecipeError(
                    f"{other.name} differs from {first.name} in {part}.{different[0]}",
                    expected="recipes that differ in their models alone",
                )
    if first.train.select != "last" or first.train.validation_images:
        raise RecipeError(
            f"{first.name} holds out validation images or selects an epoch by them",
            expected='train.select = "last" and train.validation_images = 0',
        )
