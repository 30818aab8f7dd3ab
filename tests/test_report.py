"""Tables and the picture, from records made here and from no records at all."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from densenet_deploy import report
from densenet_deploy.errors import DataError, MissingDependencyError
from densenet_deploy.results import Measurement

LATENCIES = tuple(0.001 * (1 + position / 200) for position in range(200))


def parity(precision: str, backend: str, top1: float | None, agreement: float) -> dict[str, Any]:
    return {
        "precision": precision,
        "backend": backend,
        "reference": "pytorch fp32",
        "source": "Fashion-MNIST sample, 1000 test images",
        "top1": top1,
        "reference_top1": None if top1 is None else 93.5,
        "agreement": agreement,
    }


def measured(precision: Any, backend: str, batch: int, count: int = 200) -> dict[str, Any]:
    record = Measurement(precision, backend, batch, 2, 0.1, 0.3, True, LATENCIES[:count])
    return record.to_dict()


RECORDS: dict[str, Any] = {
    "parity": [
        parity("fp32", "onnxruntime", 93.5, 100.0),
        parity("int8", "onnxruntime", 93.1, 98.75),
        parity("int8", "openvino", 93.0, 98.5),
    ],
    "measurements": [
        measured("fp32", "pytorch", 1),
        measured("fp32", "onnxruntime", 1),
        measured("fp32", "onnxruntime", 8, count=20),
        measured("int8", "openvino", 1),
        measured("fp16", "openvino", 1),
    ],
    "skipped": [
        {"backend": "tensorrt", "reason": "no CUDA device"},
        {"backend": "onnxruntime-cuda", "reason": "no CUDA device (no NVIDIA driver)"},
    ],
    "environment": {
        "cpu": "Some CPU",
        "cores": 2,
        "system": "Linux x86_64",
        "python": "3.11.7",
        "packages": {"numpy": "2.4.6", "torch": "2.14.1"},
    },
}


def test_rows_join_accuracy_and_speed() -> None:
    rows = {(row.precision, row.backend, row.batch): row for row in report.rows(RECORDS)}
    assert len(rows) == len(RECORDS["measurements"])
    assert (rows["int8", "openvino", 1].top1, rows["int8", "openvino", 1].agreement) == (93.0, 98.5)
    for batch in (1, 8):
        assert rows["fp32", "onnxruntime", batch].top1 == 93.5
    # the reference is compared with nothing, but its accuracy is known
    assert rows["fp32", "pytorch", 1].top1 == 93.5
    assert rows["fp32", "pytorch", 1].agreement == 100.0
    # measured and never verified: speed without a claim of accuracy
    assert (rows["fp16", "openvino", 1].top1, rows["fp16", "openvino", 1].agreement) == (None, None)
    assert rows["fp32", "onnxruntime", 1].p50 == pytest.approx(LATENCIES[99])
    assert rows["fp32", "onnxruntime", 8].p99 is None


@pytest.mark.parametrize("steady, cell", [(True, "1.5"), (False, "~1.5")])
def test_a_median_that_had_not_settled_is_marked(steady: bool, cell: str) -> None:
    (row,) = report.rows({"measurements": [measured("fp32", "pytorch", 1) | {"steady": steady}]})
    assert row.steady == steady
    assert row.cells()[report.HEADER.index("p50 ms")] == cell


def test_a_reference_that_was_verified_keeps_its_own_numbers() -> None:
    records = {
        "parity": [
            {**parity("int8", "onnxruntime", 90.0, 97.0), "reference": "onnxruntime fp32"},
            {**parity("fp32", "onnxruntime", 93.25, 100.0), "reference": "onnxruntime fp32"},
        ],
        "measurements": [measured("fp32", "onnxruntime", 1), measured("int8", "onnxruntime", 1)],
    }
    assert [row.top1 for row in report.rows(records)] == [93.25, 90.0]


def test_cells_follow_the_header() -> None:
    row = report.Row("int8", "openvino", 93.0, None, 8, 0.0012345, 0.002, None, 1234.5, True)
    assert len(row.cells()) == len(report.HEADER)
    assert row.cells() == ("int8", "openvino", "93.00", "-", "8", "1.23", "2", "-", "1234")
    assert replace(row, steady=False).cells()[5] == "~1.23"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_markdown_has_a_line_for_each_row_and_each_skipped_backend() -> None:
    text = report.markdown(RECORDS)
    lines = text.splitlines()
    assert not [line for line in lines if line.startswith("#")]  # whoever places it titles it
    table = [line for line in lines if line.startswith("|")]
    assert cells(table[0]) == list(report.HEADER)
    assert all(re.fullmatch(r"-+:?", cell) for cell in cells(table[1]))
    assert [cells(line) for line in table[2:]] == [list(r.cells()) for r in report.rows(RECORDS)]
    start = lines.index(table[0])
    assert lines[start : start + len(table)] == table  # one table, no line between its rows
    assert lines[start - 1] == lines[start + len(table)] == ""
    assert "- not measured: tensorrt: no CUDA device" in lines
    assert "- not measured: onnxruntime-cuda: no CUDA device (no NVIDIA driver)" in lines
    assert "Fashion-MNIST sample, 1000 test images, compared with pytorch fp32" in text
    assert "Some CPU, 2 cores, Linux x86_64, Python 3.11.7, numpy 2.4.6, torch 2.14.1" in text
    assert report.METHOD in text


def test_backends_skipped_for_one_reason_share_a_line() -> None:
    skipped = [{"backend": name, "reason": "no GPU"} for name in ("tensorrt", "pytorch-cuda")]
    skipped.insert(1, {"backend": "openvino", "reason": "openvino is not installed"})
    text = report.markdown({**RECORDS, "skipped": skipped})
    assert "- not measured: tensorrt, pytorch-cuda: no GPU" in text.splitlines()
    assert "- not measured: openvino: openvino is not installed" in text.splitlines()


def test_self_consistency_is_told_where_it_was_checked() -> None:
    assert "Self-consistency" not in report.markdown(RECORDS)
    checked = [{"passed": True}, {"passed": False}, {"passed": True}]
    text = report.markdown({**RECORDS, "consistency": checked})
    assert "Self-consistency: 2 of 3 graphs on their backends pass" in text


def test_markdown_of_speed_alone() -> None:
    text = report.markdown({"measurements": RECORDS["measurements"][:1]})
    assert "Accuracy was not measured." in text
    assert "not measured: " not in text
    assert "| fp32 | pytorch | - | - | 1 |" in text


def test_names_are_not_escaped_as_html() -> None:
    records = {"skipped": [{"backend": "a & b", "reason": "<none>"}]}
    assert "- not measured: a & b: <none>" in report.markdown(records)


def drawn(path: Path) -> set[tuple[int, ...]]:
    """The colours in a PNG file."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
    return {colour for _, colour in colours}


def test_plot_is_a_picture_with_a_point_for_each_backend(tmp_path: Path) -> None:
    report.plot(RECORDS, tmp_path / "report.png", "The title")
    colours = drawn(tmp_path / "report.png")
    # matplotlib's first three colours: pytorch, onnxruntime, openvino
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours
    report.plot({"measurements": RECORDS["measurements"]}, tmp_path / "empty.png", "No accuracy")
    assert not {(31, 119, 180), (255, 127, 14)} & drawn(tmp_path / "empty.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.png", "report.png"]


def test_unlabelled_images_are_plotted_by_agreement(tmp_path: Path) -> None:
    records = {
        "parity": [parity("int8", "onnxruntime", None, 98.0)],
        "measurements": [measured("int8", "onnxruntime", 1)],
    }
    report.plot(records, tmp_path / "report.png", "Agreement")
    assert (31, 119, 180) in drawn(tmp_path / "report.png")


def test_a_plot_leaves_pyplot_alone(tmp_path: Path) -> None:
    """A library must not choose the backend of a process that draws windows."""
    before = "matplotlib.pyplot" in sys.modules
    report.plot(RECORDS, tmp_path / "report.png", "T")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_write_makes_both(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert report.write(RECORDS, "T", out) == [out / "report.md", out / "report.png"]
    text = (out / "report.md").read_text(encoding="utf-8")
    assert text == f"# T\n\n{report.markdown(RECORDS)}"
    drawn(out / "report.png")


@pytest.mark.parametrize("package, left", [("jinja2", []), ("matplotlib", ["report.md"])])
def test_a_missing_package_is_named(
    package: str, left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"{package}.*densenet-deploy\[report\]"):
        report.write(RECORDS, "T", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == left


@pytest.mark.parametrize("extra", [{}, {"bundle": {"name": "x"}}])
def test_records_are_read_back(tmp_path: Path, extra: dict[str, Any]) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(RECORDS | extra), encoding="utf-8")
    assert report.read_records(path) == RECORDS | extra


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        b"[]",
        b'[{"measurements": []}]',
        b'{"bundle": "x"}',
        b'{"measurements": []}',
        b'{"measurements": [1]}',
        b'{"measurements": [{"precision": "fp32"}]}',
        json.dumps(RECORDS | {"bundle": "x"}).encode(),
        json.dumps(RECORDS | {"parity": [{}]}).encode(),
        json.dumps(RECORDS | {"environment": []}).encode(),
    ],
    ids=range(13),
)
def test_what_holds_no_measurements_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bench.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bench\.json holds no benchmark records.*bench --out"):
        report.read_records(path)


def test_missing_records_are_a_data_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(DataError, match=f"{path.name} holds no benchmark records"):
            report.read_records(path)


DOCUMENT = "a\n<!-- results:begin -->\nold\n<!-- results:end -->\nb <!-- results:end -->\n"


def test_insert_replaces_what_stands_between_the_markers() -> None:
    content = "\n| \\1 | new \\g<0> |\n"  # no escape of a pattern's replacement is one here
    text = report.insert(DOCUMENT, "results", content)
    assert text == DOCUMENT.replace("old", content.strip())
    assert report.insert(text, "results", content) == text
    assert report.insert(text, "results", "old") == DOCUMENT


@pytest.mark.parametrize(
    "text", ["", "<!-- results:begin -->", "<!-- results:end --> <!-- results:begin -->"]
)
def test_insert_needs_its_markers(text: str) -> None:
    with pytest.raises(DataError, match=r"no place for the table; expected <!-- results:begin"):
        report.insert(text, "results", "x")
    with pytest.raises(DataError):
        report.insert(DOCUMENT, "training", "x")
