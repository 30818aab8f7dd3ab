"""docs/cpp.md holds the examples as they are, and figures that the recorded suite gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.results import milliseconds

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
RECORD = ROOT / "benchmarks" / "results" / "epyc-2-cores" / "embedding.json"


@pytest.mark.parametrize("name", ["CMakeLists.txt", "minimal.cpp", "threads.cpp"])
def test_examples_are_quoted_whole(name: str) -> None:
    assert (ROOT / "examples" / "cpp" / name).read_text(encoding="utf-8") in PAGE


def rows(header: tuple[str, ...], lines: list[list[str]]) -> str:
    """A table in Markdown; the first two columns are names."""
    rule = ["---"] * 2 + ["---:"] * (len(header) - 2)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def timings(record: dict[str, Any]) -> str:
    """Engine and image of each model and precision."""
    parts = {(one["model"], one["precision"], one["part"]): one for one in record["comparisons"]}
    lines = []
    for model, precision in dict.fromkeys(key[:2] for key in parts):
        cells = [model, precision]
        for part in ("engine", "image"):
            one = parts[model, precision, part]
            ratio = one["speedup"]
            cells += [milliseconds(one[f"{side}_median_seconds"]) for side in ("cpp", "python")]
            cells.append(f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]")
        lines.append(cells)
    header = ("engine: C++ ms", "Python ms", "ratio", "file to classes: C++ ms", "Python ms")
    return rows(("model", "precision", *header, "ratio"), lines)


def starts(record: dict[str, Any]) -> str:
    """Cold start and memory of each model and precision."""
    sides = ("cpp", "python")
    lines = [
        [one["model"], one["precision"]]
        + [f"{1000 * one[f'{side}_median_seconds']:.0f}" for side in sides]
        + [f"{one[f'{side}_median_peak_bytes'] / 2**20:.0f}" for side in sides]
        for one in record["starts"]
    ]
    header = ("cold start: C++ ms", "Python ms", "peak memory: C++ MiB", "Python MiB")
    return rows(("model", "precision", *header), lines)


def tables() -> str:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return f"{timings(record)}\n\n{starts(record)}"


def test_figures_are_the_recorded_ones() -> None:
    assert f"<!-- embedding:begin -->\n{tables()}\n<!-- embedding:end -->" in PAGE
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["passed"] is True and record["pairs"] == 24
