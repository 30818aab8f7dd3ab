"""What the tests of figures share: PNGs that are looked into, and weights made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.figures.picture import Picture, write

Drawn = Callable[[Picture], dict[str, Any]]


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    """Writes a picture, looks at its PNG, and returns what its JSON file says."""

    def draw(picture: Picture) -> dict[str, Any]:
        png, data = write(picture, tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([png, data])
        assert (png.name, data.name) == (f"{picture.name}.png", f"{picture.name}.json")
        assert png.stat().st_size < 150_000
        look(png, picture.size)
        said = json.loads(data.read_text(encoding="utf-8"))
        assert said == json.loads(json.dumps(picture.to_dict()))
        assert said["title"] and said["caption"].endswith(".")
        return said

    return draw


def look(png: Path, size: tuple[float, float]) -> None:
    """The PNG decodes, has the asked size, and is neither blank nor all ink."""
    with Image.open(png) as image:
        image.verify()
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert image.size == tuple(int(round(110 * inches, 6)) for inches in size)
        grey = np.asarray(image.convert("L"))
    ink = (grey < 250).mean()
    assert 0.01 < ink < 0.8
    rows, columns = np.nonzero(grey < 250)
    assert rows.min() < 0.1 * grey.shape[0] and rows.max() > 0.85 * grey.shape[0]
    assert columns.min() < 0.1 * grey.shape[1] and columns.max() > 0.9 * grey.shape[1]
