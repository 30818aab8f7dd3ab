"""The published numbers: spot values typed from the papers, and relations that must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densenet_deploy import published_results, spec
from densenet_deploy.published_results import CIFAR_SETS, CifarRow, Published, Series, load


@pytest.fixture(scope="module")
def published() -> Published:
    return load()


def cifar(published: Published, method: str, depth: int | None) -> CifarRow:
    (row,) = (r for r in published.table2.rows if (r.method, r.depth) == (method, depth))
    return row


def series(published: Published, name: str) -> Series:
    (found,) = (one for one in published.figure4.series if one.name == name)
    return found


@pytest.mark.parametrize(
    "method, depth, millions, errors",
    [
        ("Network in Network", None, None, (10.41, 8.81, 35.68, None, 2.35)),
        ("Highway Network", None, None, (None, 7.72, None, 32.39, None)),
        ("FractalNet", 21, 38.6, (10.18, 5.22, 35.34, 23.30, 2.01)),
        ("ResNet with Stochastic Depth", 110, 1.7, (11.66, 5.23, 37.80, 24.58, 1.75)),
        ("ResNet with Stochastic Depth", 1202, 10.2, (None, 4.91, None, None, None)),
        ("Wide ResNet", 28, 36.5, (None, 4.17, None, 20.50, None)),
        ("ResNet (pre-activation)", 1001, 10.2, (10.56, 4.62, 33.47, 22.71, None)),
        ("DenseNet (k = 12)", 40, 1.0, (7.00, 5.24, 27.55, 24.42, 1.79)),
        ("DenseNet (k = 24)", 100, 27.2, (5.83, 3.74, 23.42, 19.25, 1.59)),
        ("DenseNet-BC (k = 24)", 250, 15.3, (5.19, 3.62, 19.64, 17.60, 1.74)),
        ("DenseNet-BC (k = 40)", 190, 25.6, (None, 3.46, None, 17.18, None)),
    ],
)
def test_table_2(
    published: Published,
    method: str,
    depth: int | None,
    millions: float | None,
    errors: tuple[float | None, ...],
) -> None:
    row = cifar(published, method, depth)
    assert row.parameters_millions == millions
    assert tuple(row.errors.get(name) for name in CIFAR_SETS) == errors


def test_table_2_has_all_rows_and_what_is_wrong_with_it(published: Published) -> None:
    rows = published.table2.rows
    assert len(rows) == 21
    assert all(set(row.errors) <= set(CIFAR_SETS) for row in rows)
    assert sum(len(row.errors) for row in rows) == 75
    own = [row.depth for row in rows if row.authors_runs == ("C10", "C100")]
    assert own == [164, 1001]
    (noted,) = (row for row in rows if row.note)
    assert noted.depth == 1202 and "19.4M" in noted.note
    least = {name: min(row.errors.get(name, 100) for row in rows) for name in CIFAR_SETS}
    assert least == {"C10": 5.19, "C10+": 3.46, "C100": 19.64, "C100+": 17.18, "SVHN": 1.59}


@pytest.mark.parametrize(
    "model, top1, top5",
    [
        ("densenet121", (25.02, 23.61), (7.71, 6.66)),
        ("densenet169", (23.80, 22.08), (6.85, 5.92)),
        ("densenet201", (22.58, 21.46), (6.34, 5.54)),
        ("densenet264", (22.15, 20.80), (6.12, 5.29)),
        ("densenet161", (22.33, 20.85), (6.15, 5.30)),
    ],
)
def test_table_3(
    published: Published, model: str, top1: tuple[float, float], top5: tuple[float, float]
) -> None:
    (row,) = (row for row in published.table3.rows if row.model == model)
    assert (row.top1.single_crop, row.top1.ten_crop) == top1
    assert (row.top5.single_crop, row.top5.ten_crop) == top5
    assert ("CVPR" in row.note) == (model == "densenet161")


def test_figure_3(published: Published) -> None:
    densenet, resnet = published.figure3.series
    assert [point.error for point in densenet.points] == [25.03, 23.64, 22.54, 21.98]
    assert [point.error for point in resnet.points] == [26.73, 24.01, 22.44, 22.16]
    assert (densenet.points[3].parameters, densenet.points[3].flops) == (33.33e6, 1.155e10)
    assert (resnet.points[0].parameters, resnet.points[0].flops) == (21.8e6, 7.334e9)


def test_figure_4_fits_the_counts_made_outside(
    published: Published, counts: dict[str, Any]
) -> None:
    outside = counts["figure4"]
    seen = set()
    for one in published.figure4.series:
        for point in one.points:
            if point.model in outside:
                assert point.parameters == outside[point.model]["plotted"]
                seen.add(point.model)
    assert seen == set(outside)
    errors = [point.error for point in series(published, "DenseNet-BC").points]
    assert errors == [13.71, 10.98, 8.28, 6.8, 5.84, 5.06, 4.95, 4.89, 4.51]
    assert series(published, "ResNet (pre-activation)").points[-1].error == 6.43


def test_markers_of_figure_4_lie_at_our_networks_but_where_the_paper_slips(
    published: Published,
) -> None:
    points = [point for one in published.figure4.series for point in one.points if point.model]
    off = {
        point.model
        for point in points
        if abs(point.parameters / spec.variant(point.model).parameters - 1) > 0.002
    }
    assert off == {point.model for point in points if point.note}
    assert off == {"densenet-bc-10-12", "densenet-bc-16-12"}


def test_wide_networks_and_memory(published: Published) -> None:
    (middle,) = (row for row in published.wide.rows if row.model == "densenet-bc-40-48")
    assert middle.errors == {"C10+": 3.99, "C100+": 20.29}
    assert (middle.seconds_per_iteration, middle.memory_megabytes) == (0.165, 5245)
    curves = {
        one.name: {point.depth: point.gigabytes for point in one.points}
        for one in published.memory.series
    }
    assert curves["Lua, naive"][154] == 11.24
    assert curves["Lua, efficient"][346] == 11.65
    assert curves["PyTorch, efficient"][478] == 11.61
    assert len(curves) == 5


def test_every_table_names_its_source_and_every_model_exists(published: Published) -> None:
    for table in vars(published).values():
        assert "arXiv" in table.source or "github.com" in table.source
    models = [row.model for row in published.table2.rows if row.model]
    models += [row.model for row in (*published.table3.rows, *published.wide.rows)]
    for name in models:
        assert spec.variant(name).name == name


def test_a_damaged_file_is_our_own_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "published.json"
    path.write_text('{"table2": 3}', encoding="utf-8")
    monkeypatch.setattr(published_results, "_FILE", path)
    with pytest.raises(AssertionError, match="table2"):
        load()
