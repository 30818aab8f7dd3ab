"""docs/figures.md: every figure, with a small picture of the numbers that are drawn today."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.cli.app import app
from densenet_deploy.figures.accuracy import accuracy
from densenet_deploy.figures.feature_reuse import feature_reuse
from densenet_deploy.figures.memory import memory
from densenet_deploy.figures.picture import Picture
from densenet_deploy.figures.small_nets import small_nets
from densenet_deploy.figures.table2 import table2
from densenet_deploy.figures.table3 import table3
from densenet_deploy.figures.training import training
from densenet_deploy.figures.wide_nets import wide_nets
from tests.figures.conftest import look

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "figures.md").read_text(encoding="utf-8")
FIGURES: dict[str, Callable[[], Picture]] = {
    "table2": table2,
    "table3": table3,
    "accuracy": accuracy,
    "small-nets": small_nets,
    "wide-nets": wide_nets,
    "feature-reuse": lambda: feature_reuse()[0],
    "training": lambda: training()[0],
    "memory": memory,
}


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of everything that is no table or list."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, f"{place}.{key}")
    else:
        yield place, value


@pytest.mark.parametrize("name", FIGURES)
def test_the_page_shows_what_is_drawn_today(name: str) -> None:
    picture = FIGURES[name]()
    assert f"| `figure {name}" in PAGE and f"(figures/{name}.png)" in PAGE
    png = DOCS / "figures" / f"{name}.png"
    assert png.stat().st_size < 150_000
    kept = json.loads(png.with_suffix(".json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(picture.to_dict()))
    if name == "memory":  # the page's may show a suite's results too
        kept, now = kept["published"], now["published"]
    else:
        look(png, picture.size)
    assert [place for place, _ in leaves(kept)] == [place for place, _ in leaves(now)]
    for (place, old), (_, new) in zip(leaves(kept), leaves(now), strict=True):
        assert old == (pytest.approx(new, rel=1e-9) if isinstance(new, float) else new), place


def test_the_page_has_all_commands() -> None:
    (group,) = (group for group in app.registered_groups if group.name == "figure")
    assert group.typer_instance is not None
    names = {command.name for command in group.typer_instance.registered_commands}
    assert names == set(FIGURES) == set(re.findall(r"^## (\S+)$", PAGE, re.MULTILINE))
