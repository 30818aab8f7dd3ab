"""Tables and curves of published numbers, with our counts held against counts made outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import densenet_deploy
from densenet_deploy.figures import accuracy, small_nets, table2, table3, wide_nets
from densenet_deploy.figures.picture import Picture
from tests.figures.conftest import Drawn


@pytest.fixture(scope="module")
def outside(counts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Counts made outside this project by our names: 10 classes on CIFAR, 1000 on ImageNet."""
    return {
        entry["variant"]: entry
        for entry in counts["configurations"]
        if "variant" in entry and entry["classes"] in (10, 1000)
    }


def test_table_2(drawn: Drawn, outside: dict[str, dict[str, Any]], counts: dict[str, Any]) -> None:
    rows = drawn(table2.table2())["rows"]
    ours = {row["ours"]["model"]: row["ours"] for row in rows if row["ours"]}
    densenets = {name: one for name, one in ours.items() if name.startswith("densenet")}
    assert len(rows) == 21 and len(densenets) == 6
    large = {e.get("variant"): e for e in counts["configurations"] if e["classes"] == 100}
    for name, one in densenets.items():
        assert one["parameters"] == outside[name]["parameters"]
        assert one["macs"] == outside[name]["macs"]
        assert one["parameters_100_classes"] == large[name]["parameters"]
        assert one["rounds_to_printed"] is True
    printed = {row["ours"]["model"]: row["published"] for row in rows if row["ours"]}
    assert printed["densenet-bc-190-40"]["errors"] == {"C10+": 3.46, "C100+": 17.18}


def test_table_2_shows_deviations_and_marks() -> None:
    picture = table2.table2()
    cells = {(line[0], line[1]): line for line in picture.lines}
    assert cells["ResNet with Stochastic Depth", "1202"][2] == "10.2M†"
    assert "† the paper prints 10.2M" in picture.caption
    assert cells["ResNet (pre-activation)", "164"][3:8] == (
        "11.26*",
        "5.46",
        "35.58*",
        "24.33",
        "-",
    )
    assert cells["DenseNet (k = 12)", "40"][8:] == (
        *("densenet-40-12", "1,019,722", "264,812,928"),
        "yes",
    )
    # 10,327,706 parameters are not the 10.2M that are printed, and the table says so.
    assert cells["ResNet (pre-activation)", "1001"][-1] == "NO"
    assert cells["Network in Network", "-"][8:] == ("", "", "", "")


def test_a_count_that_does_not_round_to_the_printed_one_is_told() -> None:
    assert table2.counts("densenet-40-12", 1.0)["rounds_to_printed"] is True
    assert table2.counts("densenet-40-12", 1.1)["rounds_to_printed"] is False
    assert "rounds_to_printed" not in table2.counts("densenet121")


def test_table_3(drawn: Drawn, outside: dict[str, dict[str, Any]]) -> None:
    rows = {row["ours"]["model"]: row for row in drawn(table3.table3())["rows"]}
    assert list(rows) == [f"densenet{depth}" for depth in (121, 169, 201, 264, 161)]
    for name, row in rows.items():
        assert row["ours"]["parameters"] == outside[name]["parameters"]
        assert row["ours"]["macs"] == outside[name]["macs"]
    assert rows["densenet264"]["ours"]["depth"] == 265
    differences = [row["figure3"] and row["figure3"]["error_minus_table3"] for row in rows.values()]
    assert differences == [0.01, -0.16, -0.04, -0.17, None]
    assert rows["densenet121"]["published"]["top5"] == {"single_crop": 7.71, "ten_crop": 6.66}


def test_accuracy(drawn: Drawn, outside: dict[str, dict[str, Any]]) -> None:
    said = drawn(accuracy.accuracy())
    ours = {one["model"]: one for one in said["ours"]}
    for name in (f"densenet{depth}" for depth in (121, 161, 169, 201, 264)):
        assert ours[name]["parameters"] == outside[name]["parameters"]
        assert ours[name]["flops"] == 2 * outside[name]["macs"]
    assert ours["densenet264"]["error"] == 22.15
    assert ours["resnet50"]["error"] == 24.01
    # Reference counts of torchvision's ResNet-50, and the plotted positions of every network.
    assert ours["resnet50"]["parameters"] == 25_557_032
    for one in said["series"]:
        for point in one["points"]:
            counted = ours[point["model"]]
            assert counted["parameters"] == pytest.approx(point["parameters"], rel=0.002)
            assert counted["flops"] == pytest.approx(point["flops"], rel=0.01)
    assert "two for each multiply-accumulate" in said["caption"]


def test_small_nets(drawn: Drawn, counts: dict[str, Any]) -> None:
    said = drawn(small_nets.small_nets())
    points = {p["model"]: p for one in said["series"] for p in one["points"] if "model" in p}
    for name, entry in counts["figure4"].items():
        assert points[name]["our_parameters"] == entry["parameters"]
    slips = {name: p["our_parameters"] for name, p in points.items() if "note" in p}
    assert slips == {"densenet-bc-10-12": 20_902, "densenet-bc-16-12": 44_410}
    unknown = [p for one in said["series"] for p in one["points"] if p["our_parameters"] is None]
    assert len(unknown) == 2


def test_wide_nets(drawn: Drawn, outside: dict[str, dict[str, Any]]) -> None:
    rows = drawn(wide_nets.wide_nets())["rows"]
    assert [row["ours"]["model"] for row in rows] == [
        *(f"densenet-bc-40-{k}" for k in (36, 48, 60)),
        "densenet-bc-100-12",
    ]
    for row in rows:
        assert row["ours"]["parameters"] == outside[row["ours"]["model"]]["parameters"]
        assert row["ours"]["rounds_to_printed"] is True


@pytest.mark.parametrize(
    "make",
    [
        *(table2.table2, table3.table3, accuracy.accuracy),
        *(small_nets.small_nets, wide_nets.wide_nets),
    ],
)
def test_printed_lines_fit_their_header(make: Callable[[], Picture]) -> None:
    picture = make()
    assert picture.lines and all(len(line) == len(picture.header) for line in picture.lines)


def test_tables_and_curves_need_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'safetensors', 'onnx']))\n"
        "from pathlib import Path\n"
        "from densenet_deploy.figures import memory, table2, training\n"
        "from densenet_deploy.figures.picture import write\n"
        "for picture in (table2.table2(), training.training()[0], memory.memory()):\n"
        f"    write(picture, Path({str(tmp_path)!r}))\n"
    )
    root = Path(densenet_deploy.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=120)
    assert len(list(tmp_path.glob("*.png"))) == 3
