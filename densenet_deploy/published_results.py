"""What the DenseNet papers report, as data: error rates, sizes, memory.

The numbers are in assets/published.json, each table with its source. They are other people's
measurements; how large our networks are is asked of `spec`, never read from here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from densenet_deploy import schema

_FILE = Path(__file__).parent / "assets" / "published.json"
CIFAR_SETS = ("C10", "C10+", "C100", "C100+", "SVHN")  # "+": with augmentation


@dataclass(frozen=True)
class CifarRow:
    """A line of table 2.

    Attributes:
        method: The network, as the paper calls it.
        errors: Test error in percent by data set, see `CIFAR_SETS`; absent where not reported.
        depth: Layers; None where the paper has none.
        parameters_millions: As printed, with one decimal.
        model: The architecture's name in `spec`, where it is one of ours.
        authors_runs: Data sets on which the DenseNet authors ran somebody else's network.
        note: What is wrong with the line.
    """

    method: str
    errors: dict[str, float]
    depth: int | None = None
    parameters_millions: float | None = None
    model: str = ""
    authors_runs: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Crops:
    """Error in percent on the ImageNet validation set, by how an image is tested."""

    single_crop: float
    ten_crop: float


@dataclass(frozen=True)
class ImageNetRow:
    """A line of table 3."""

    model: str
    top1: Crops
    top5: Crops
    note: str = ""


@dataclass(frozen=True)
class WideRow:
    """A line of the authors' table of wide DenseNet-BC: errors, time and memory of training."""

    model: str
    parameters_millions: float
    errors: dict[str, float]
    seconds_per_iteration: float
    memory_megabytes: int


@dataclass(frozen=True)
class Point:
    """A marker of figure 3 or 4, as plotted.

    Attributes:
        parameters: Read from the axis.
        error: Top-1 error in percent.
        flops: Read from the axis: two for each multiply-accumulate; figure 3 only.
        model: The network, where it is one with a name.
        note: What is wrong with the marker.
    """

    parameters: float
    error: float
    flops: float | None = None
    model: str = ""
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Markers of one kind of network."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class MemoryPoint:
    """Memory a whole training process takes at one depth."""

    depth: int
    gigabytes: float


@dataclass(frozen=True)
class MemorySeries:
    """Memory of one implementation."""

    name: str
    points: tuple[MemoryPoint, ...]


@dataclass(frozen=True)
class CifarTable:
    """Table 2."""

    source: str
    rows: tuple[CifarRow, ...]


@dataclass(frozen=True)
class ImageNetTable:
    """Table 3."""

    source: str
    rows: tuple[ImageNetRow, ...]


@dataclass(frozen=True)
class WideTable:
    """Wide DenseNet-BC."""

    source: str
    rows: tuple[WideRow, ...]


@dataclass(frozen=True)
class Plot:
    """Figure 3 or 4."""

    source: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class MemoryPlot:
    """Figure 4 of the technical report."""

    source: str
    series: tuple[MemorySeries, ...]


@dataclass(frozen=True)
class Published:
    """Everything, by where it was printed."""

    table2: CifarTable
    table3: ImageNetTable
    figure3: Plot
    figure4: Plot
    wide: WideTable
    memory: MemoryPlot


def load() -> Published:
    """Reads the numbers that are shipped."""
    problems: list[str] = []
    table = json.loads(_FILE.read_text(encoding="utf-8"))
    published = schema.read(Published, table, "", problems)
    assert published is not None, problems
    return published
