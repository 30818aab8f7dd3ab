"""Drawing: the only door to matplotlib of the figures, and the look they share."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any

from densenet_deploy.errors import MissingDependencyError

# Okabe and Ito's colours, told apart with any kind of colour vision; yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "v", "P", "X", "*")
OURS = "#000000"
_CAPTION_SIZE = 8
_CHARACTERS_PER_INCH = 16
_HEADER = {"name": "#E8E8E8", "published": "#D6E6F2", "ours": "#FBE3C8"}
Draw = Callable[[Any], None]


def render(
    size: tuple[float, float], title: str, caption: str, draw: Draw, dpi: int = 110
) -> bytes:
    """A PNG of what `draw` puts onto a matplotlib figure, with a title and a caption.

    Args:
        size: Width and height in inches.
        title: What is shown.
        caption: Where the numbers come from; wrapped to the width.
        draw: Receives the `matplotlib.figure.Figure`.
        dpi: Pixels per inch.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context, rcParamsDefault
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise MissingDependencyError.of("matplotlib", "report", "a figure") from None
    from PIL import Image

    backends = {"backend", "backend_fallback"}  # a user's choice of a window is not ours to change
    looks = {key: value for key, value in rcParamsDefault.items() if key not in backends}
    with rc_context(looks), io.BytesIO() as stream:
        figure = Figure(figsize=size, dpi=dpi, layout=ConstrainedLayoutEngine(h_pad=0.08))
        FigureCanvasAgg(figure)
        draw(figure)
        figure.suptitle(title, fontsize=12)
        lines = textwrap.fill(caption, int(size[0] * _CHARACTERS_PER_INCH))
        figure.supxlabel(lines, fontsize=_CAPTION_SIZE, color="0.25", x=0.01, ha="left")
        figure.savefig(stream, format="png")
        stream.seek(0)
        picture = Image.open(stream).convert("RGB")
    with io.BytesIO() as stream:  # a palette makes a third of the bytes
        picture.quantize(256, dither=Image.Dither.NONE).save(stream, "png", optimize=True)
        return stream.getvalue()


def draw_table(
    axes: Any,
    header: Sequence[str],
    kinds: Sequence[str],
    rows: Sequence[Sequence[str]],
    bold: Collection[tuple[int, int]] = (),
) -> None:
    """Fills `axes` with a table; a column is as wide as its longest cell.

    Args:
        axes: matplotlib axes.
        header: Column titles; may have several lines.
        kinds: Of each column, `name`, `published` or `ours`: the colour of its title.
        rows: Cells.
        bold: (row, column) of cells to set in bold.
    """
    axes.set_axis_off()
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns]
    total = sum(widths) + 2 * len(widths)
    titles = 1 + max(title.count("\n") for title in header)
    row_height = 1 / (len(rows) + titles)
    table = axes.table(
        cellText=[list(row) for row in rows],
        colLabels=list(header),
        colWidths=[(width + 2) / total for width in widths],
        bbox=(0, 0, 1, 1),
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.set_height(row_height * (titles if row == 0 else 1))
        cell.set_edgecolor("0.8")
        cell.PAD = 1 / (widths[column] + 2)  # a character, of the cell's width
        cell.set_text_props(ha="left" if kinds[column] == "name" else "right")
        if row == 0:
            cell.visible_edges = "closed"
            cell.set_facecolor(_HEADER[kinds[column]])
            cell.set_text_props(weight="bold")
        elif (row - 1, column) in bold:
            cell.set_text_props(weight="bold")


def grid(axes: Any, xlabel: str, ylabel: str) -> None:
    """Names both axes and draws thin lines behind the data."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
