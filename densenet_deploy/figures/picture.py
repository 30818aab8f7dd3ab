"""A figure before it is drawn: its data, how it is drawn, and the two files it becomes."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.errors import RecipeError
from densenet_deploy.figures.drawing import Draw, render
from densenet_deploy.files import replacing_file

_OTHER_KINDS = (".jpg", ".jpeg", ".pdf", ".svg", ".json")


@dataclass(frozen=True)
class Picture:
    """A figure of the paper, ready to be drawn.

    Attributes:
        name: Its command, and the stem of its files.
        title: What is shown.
        caption: Where the numbers come from and how to read them.
        data: Every number that is drawn, as JSON values.
        header: Column titles of the table that is printed.
        lines: Its cells.
        size: Width and height in inches.
        draw: Draws onto a matplotlib figure.
    """

    name: str
    title: str
    caption: str
    data: dict[str, Any]
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    size: tuple[float, float]
    draw: Draw

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {"figure": self.name, "title": self.title, "caption": self.caption, **self.data}


def place(out: Path, name: str) -> Path:
    """The PNG a figure is written to: `out` itself, or NAME.png in that directory.

    Raises:
        RecipeError: `out` is a file of another kind.
    """
    if out.is_dir():
        return out / f"{name}.png"
    if out.suffix.lower() in _OTHER_KINDS or (out.exists() and out.suffix != ".png"):
        raise RecipeError(f"--out {out}", expected="a directory or a .png file")
    return out if out.suffix == ".png" else out / f"{name}.png"


def write(picture: Picture, out: Path, inputs: Collection[Path] = ()) -> tuple[Path, Path]:
    """Writes the picture and its data beside it; none is replaced before both are complete.

    Args:
        picture: What to draw.
        out: A .png file, or a directory for NAME.png.
        inputs: Files the data was read from, which are never overwritten.

    Returns:
        The PNG and the JSON file.

    Raises:
        RecipeError: `out` is a file of another kind, or a file would replace an input.
        MissingDependencyError: matplotlib is not installed.
    """
    png = place(out, picture.name)
    data = png.with_suffix(".json")
    read = {path.resolve() for path in inputs}
    for path in (png, data):
        if path.resolve() in read:
            raise RecipeError(
                f"the figure's {path} is the file it is drawn from", remedy="choose another --out"
            )
        if path.is_dir():
            raise RecipeError(f"{path} is a directory", remedy="choose another --out")
    text = json.dumps(picture.to_dict(), indent=1, allow_nan=False) + "\n"
    drawn = render(picture.size, picture.title, picture.caption, picture.draw)
    with replacing_file(png) as temporary, replacing_file(data) as beside:
        temporary.write_bytes(drawn)
        beside.write_text(text, encoding="utf-8")
    return png, data
