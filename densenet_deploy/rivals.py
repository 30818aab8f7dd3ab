"""The networks whose graphs a latency suite times against each other.

Most suites compare graphs of one model; a side may name another, which then takes the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.choose import find_recipe
from densenet_deploy.errors import RecipeError
from densenet_deploy.progress import Track, once
from densenet_deploy.recipe import Recipe, Target
from densenet_deploy.sides import describe, export_plain, make_graph
from densenet_deploy.source import Source, prepare
from densenet_deploy.suite import Comparison, GraphKind, LatencySuite, Side


@dataclass(frozen=True)
class Lot:
    """Sides that are timed against each other.

    Attributes:
        model: As the suite names it.
        batch: Images per request.
        sides: Who takes part.
        claims: About pairs of them.
    """

    model: str
    batch: int
    sides: tuple[Side, ...]
    claims: tuple[Comparison, ...]

    def network_of(self, side: Side) -> str:
        """Name of the network a side runs."""
        return side.model or self.model

    @property
    def networks(self) -> list[str]:
        """The model, then its rivals."""
        return list(dict.fromkeys((self.model, *map(self.network_of, self.sides))))


def lot_of(suite: LatencySuite, model: str, batch: int) -> Lot:
    """The sides that a suite's claims about a model and batch size need."""
    claims = suite.comparisons_at(model, batch)
    used = {side for claim in claims for side in (claim.candidate, claim.baseline)}
    return Lot(model, batch, tuple(side for side in suite.sides if side.name in used), claims)


def find_recipes(lots: Sequence[Lot]) -> dict[str, Recipe]:
    """The recipe of every network of some lots, by its name.

    Raises:
        RecipeError: There is none, or networks of a lot take images of different shapes.
    """
    recipes = {name: find_recipe(name) for lot in lots for name in lot.networks}
    for lot in lots:
        shape = recipes[lot.model].model.input_shape
        for name in lot.networks:
            if (other := recipes[name].model.input_shape) != shape:
                raise RecipeError(
                    f"{name} takes images of {other}, {lot.model} of {shape}",
                    expected="sides that take the same images",
                )
    return recipes


@dataclass(frozen=True)
class Network:
    """A model whose graphs are timed.

    Attributes:
        source: It, and images.
        record: What records say of it.
        graphs: Its ONNX files, by kind and target.
    """

    source: Source
    record: dict[str, Any]
    graphs: dict[tuple[GraphKind, Target | None], Path]


def make_networks(
    lots: Sequence[Lot], recipes: dict[str, Recipe], folder: Path, track: Track
) -> dict[str, Network]:
    """Every network of some lots, with the graphs that are timed, which are written to `folder`."""
    networks: dict[str, Network] = {}
    for number, name in enumerate(dict.fromkeys(name for lot in lots for name in lot.networks)):
        sides = [side for lot in lots for side in lot.sides if lot.network_of(side) == name]
        recipe, own = recipes[name], folder / str(number)
        own.mkdir()
        source = prepare(recipe, track)
        graphs = _write_graphs(sides, source, recipe, own, track)
        networks[name] = Network(source, describe(name, recipe, source), graphs)
    return networks


def _write_graphs(
    sides: Sequence[Side], source: Source, recipe: Recipe, folder: Path, track: Track
) -> dict[tuple[GraphKind, Target | None], Path]:
    """The ONNX files that sides of one network run; sides of the same graph share one."""
    plain = once(track, f"Exporting {recipe.name}", lambda: export_plain(source))
    pixels = source.calibration.pixels[: recipe.quantize.images]
    calibration = source.preprocessing.normalise(pixels)
    keys = dict.fromkeys((side.graph, side.lowered_for) for side in sides)
    paths: dict[tuple[GraphKind, Target | None], Path] = {}
    for kind, target in track(keys, f"Making graphs of {recipe.name}"):
        path = folder / "-".join(filter(None, (kind, target, "graph.onnx")))
        path.write_bytes(make_graph(kind, target, plain, calibration, recipe.quantize))
        paths[kind, target] = path
    return paths
