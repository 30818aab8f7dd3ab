"""The two files of a figure: written together or not at all."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from densenet_deploy.errors import MissingDependencyError, RecipeError
from densenet_deploy.figures.drawing import grid, render
from densenet_deploy.figures.picture import Picture, place, write
from tests.figures.conftest import look


def line(figure: Any) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    grid(axes, "x", "y")


PICTURE = Picture("line", "A line", "Ours.", {"points": [0, 1]}, ("a",), (("1",),), (4, 3), line)


@pytest.mark.parametrize(
    "out, expected",
    [
        ("", "line.png"),
        ("new", "new/line.png"),
        ("new/deep", "new/deep/line.png"),
        ("one.png", "one.png"),
        ("v1.2", "v1.2/line.png"),
    ],
)
def test_place(tmp_path: Path, out: str, expected: str) -> None:
    png, data = write(PICTURE, tmp_path / out)
    assert png == tmp_path / expected and data == png.with_suffix(".json")
    look(png, PICTURE.size)
    assert json.loads(data.read_text())["points"] == [0, 1]


@pytest.mark.parametrize("out", ["a.pdf", "a.svg", "a.JPG", "a.json"])
def test_another_kind_of_file_is_refused(tmp_path: Path, out: str) -> None:
    with pytest.raises(RecipeError, match=r"expected a directory or a \.png file"):
        write(PICTURE, tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_picture_is_not_replaced(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("mine")
    with pytest.raises(RecipeError, match="notes"):
        place(notes, "line")
    assert notes.read_text() == "mine"


def test_a_directory_named_like_a_picture_is_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "odd.png"
    folder.mkdir()
    assert place(folder, "line") == folder / "line.png"


@pytest.mark.parametrize("data", [{"x": math.nan}, {"x": {1, 2}}])
def test_data_that_is_not_json_leaves_what_was_there(tmp_path: Path, data: dict[str, Any]) -> None:
    before = [path.read_bytes() for path in write(PICTURE, tmp_path)]
    with pytest.raises((ValueError, TypeError)):
        write(replace(PICTURE, data=data), tmp_path)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir(), reverse=True)] == before


def test_drawing_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    before = [path.read_bytes() for path in write(PICTURE, tmp_path)]

    def fail(figure: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(replace(PICTURE, draw=fail, title="new"), tmp_path)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir(), reverse=True)] == before


def test_a_figure_never_replaces_what_it_is_drawn_from(tmp_path: Path) -> None:
    source = tmp_path / "line.json"
    source.write_text("measured")
    link = tmp_path / "link.json"
    link.symlink_to(source)
    for given in (source, link):
        with pytest.raises(RecipeError, match="is the file it is drawn from"):
            write(PICTURE, tmp_path, (given,))
    assert source.read_text() == "measured" and not (tmp_path / "line.png").exists()


def test_a_directory_in_the_way_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "line.json").mkdir()
    with pytest.raises(RecipeError, match=r"line\.json is a directory"):
        write(PICTURE, tmp_path)
    assert not (tmp_path / "line.png").exists()


def test_the_same_picture_has_the_same_bytes_whatever_the_user_prefers() -> None:
    plain = render((4, 3), "A line", "Ours.", line)
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30}):
        assert render((4, 3), "A line", "Ours.", line) == plain
        assert matplotlib.rcParams["font.size"] == 30
    assert render((4, 3), "Another line", "Ours.", line) != plain


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"densenet-deploy\[report\]"):
        write(PICTURE, tmp_path)
    assert list(tmp_path.iterdir()) == []
