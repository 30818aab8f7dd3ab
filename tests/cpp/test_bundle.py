"""Python and C++ must agree about every manifest: one contract, two independent readers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densenet_deploy.bundle import MANIFEST, Bundle, open_bundle
from densenet_deploy.errors import BundleError
from tests.cpp.toolchain import Probe

MOST_INTEGER = 2**63 - 1
property_test = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 28, 10**9, 10**30, 1.5, -0.0, "", "x", "fp32", "openvino"),
    *([], [1], [1, 2, 3], [3, 2, 1], [0, 1, 2], ["a"], [None], {}, {"a": 1}, {"fp32": "fp32.onnx"}),
    *("../x", "/etc/passwd", "fp32.onnx", "none", "stripped", "8.6", [[1, 8, 64]], [1.0, 1, 1]),
]
# What Python leaves to the runner, or has no limit for.
STRICTER = re.compile(
    r"(input|output) (dtype is|shape is|shape\[\d\] is|shape \()|is not in 0\.\.64000000 pixels|"
    r"more than 64000000 pixels"
)
ENGINE = {
    "file": "fp32.onnx",  # any file of the bundle: nothing loads it
    "backend": "tensorrt",
    "precision": "fp32",
    "version": "10.16.1.11",
    "profiles": [[1, 8, 64]],
    "compute_capabilities": ["8.9"],
    "hardware_compatibility": "none",
    "version_compatible": False,
    "weights": "embedded",
}


@pytest.fixture(scope="module")
def table(fashion_bundle: Path) -> dict[str, Any]:
    """A manifest with an engine in it, and without long lists of numbers."""
    manifest = json.loads((fashion_bundle / MANIFEST).read_text(encoding="utf-8"))
    manifest["calibration"] = {"images": 512}
    return manifest | {"engines": [ENGINE]}


@pytest.fixture(scope="module")
def copy(fashion_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest tests replace."""
    return Path(shutil.copytree(fashion_bundle, tmp_path_factory.mktemp("copy") / "bundle"))


def verdicts(probe: Probe, path: Path) -> tuple[str, str]:
    """(Python's error, C++'s error) of opening a bundle; empty where it opens."""
    try:
        open_bundle(path)
        error = ""
    except BundleError as refused:
        error = str(refused)
    return error, probe.ask(open=str(path))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a manifest can be changed; what C++ does not interpret is left out."""
    if at[:1] in (("recipe",), ("calibration",), ("rewrites",)):
        return
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def changed(table: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    result = json.loads(json.dumps(table))
    inner = result
    for key in at[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return result


def fits_in_64_bits(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(fits_in_64_bits, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or abs(value) <= MOST_INTEGER


def test_both_open_what_the_pipeline_writes(probe: Probe, fashion_bundle: Path) -> None:
    assert verdicts(probe, fashion_bundle) == ("", "")


def test_both_open_the_manifest_that_is_changed(
    probe: Probe, copy: Path, table: dict[str, Any]
) -> None:
    (copy / MANIFEST).write_text(json.dumps(table))
    assert verdicts(probe, copy) == ("", "")


@property_test
@given(data=st.data())
def test_they_agree_whatever_is_changed(
    probe: Probe, copy: Path, table: dict[str, Any], data: st.DataObject
) -> None:
    manifest = table
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from([*places(manifest)][1:]))
        value = data.draw(st.sampled_from([*ODD_VALUES, ...]))
        manifest = changed(manifest, at, value)
    if data.draw(st.booleans()):
        manifest = manifest | {data.draw(st.sampled_from(["extra", "Name", "", "batch "])): 1}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    python, cpp = verdicts(probe, copy)
    if python:
        assert cpp, f"C++ opens what Python refuses: {python}"
    elif cpp:
        reason = STRICTER.search(cpp) or not fits_in_64_bits(manifest)
        assert reason, f"Python opens what C++ refuses: {cpp}"


@pytest.mark.parametrize("name", ["fp16.onnx", "golden/input.npy", "model.safetensors"])
@pytest.mark.parametrize("change", ["cut", "flipped", "missing", "linked", "directory"])
def test_they_agree_about_files(
    probe: Probe, damaged: Path, fashion_bundle: Path, name: str, change: str
) -> None:
    path = damaged / name
    content = path.read_bytes()
    path.unlink()
    if change == "cut":
        path.write_bytes(content[:-1])
    elif change == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif change == "linked":
        path.symlink_to(fashion_bundle / name)
    elif change == "directory":
        path.mkdir()
    python, cpp = verdicts(probe, damaged)
    assert name in python and name in cpp


@pytest.mark.parametrize("profiles", [[], [[0, 0, 0]], [[1, 8, 4]], [[1, 1, 1], [8, 1, 1]]])
def test_both_refuse_profiles_that_hold_nothing(
    probe: Probe, copy: Path, table: dict[str, Any], profiles: list[list[int]]
) -> None:
    manifest = table | {"engines": [ENGINE | {"profiles": profiles}]}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert all("profile" in verdict for verdict in verdicts(probe, copy))


@pytest.mark.parametrize("name", [..., "bilinear", "bicubic", "nearest", "", 1, None])
def test_both_know_the_interpolations(
    probe: Probe, copy: Path, table: dict[str, Any], name: Any
) -> None:
    manifest = changed(table, ("preprocessing", "interpolation"), name)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    if name in (..., "bilinear", "bicubic"):  # bundles from before there was a choice have none
        assert verdicts(probe, copy) == ("", "")
    else:
        assert all("preprocessing interpolation is" in said for said in verdicts(probe, copy))


def test_both_refuse_a_byte_order_mark(probe: Probe, copy: Path, table: dict[str, Any]) -> None:
    (copy / MANIFEST).write_text(json.dumps(table), encoding="utf-8-sig")
    assert all(verdicts(probe, copy))


def test_they_read_the_same_numbers(probe: Probe, bundle: Bundle) -> None:
    """The golden input is the C++ preprocessing of the samples, see image_test.cpp."""
    assert bundle.manifest.schema_version == 2
    constant = Path(__file__).parents[2] / "cpp/include/densenet_deploy/bundle.hpp"
    assert "schema_version = 2;" in constant.read_text(encoding="utf-8")
