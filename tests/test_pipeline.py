"""From a recipe to a bundle: the whole chain once, and every way it may refuse to publish."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from densenet_deploy import pipeline
from densenet_deploy.bundle import MANIFEST, open_bundle
from densenet_deploy.engine.build import engine_version
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import (
    BackendError,
    CheckFailedError,
    DataError,
    DeployError,
    GraphError,
)
from densenet_deploy.recipe import (
    DataConfig,
    QuantizeConfig,
    Recipe,
    Tolerance,
    VerifyConfig,
    load_recipe,
)
from densenet_deploy.runtime import DEPLOYED, why_unavailable
from tests.conftest import Finished

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe))


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def records(tiny_run: Finished) -> dict[str, Any]:
    """What the run printed."""
    assert tiny_run.code == 0, tiny_run.err
    return dict(json.loads(tiny_run.out))


def test_run_publishes_a_bundle_of_every_stage(tiny_run: Finished, tiny: Recipe) -> None:
    assert tiny_run.code == 0, tiny_run.err
    opened = open_bundle(tiny_run.directory)
    manifest = opened.manifest
    assert opened.precisions == ("fp32", "int8")
    assert (manifest.name, manifest.recipe_digest) == ("tiny", tiny.digest)
    assert manifest.speed_only and manifest.labels == ()
    assert manifest.batch == (1, 2, 4)
    assert manifest.rewrites["fold_preactivation"] > 0
    assert {"report.md", "report.png", "records.json"} <= manifest.files.keys()
    assert [path.name for path in tiny_run.directory.parent.iterdir()] == ["tiny"]  # no litter


def test_run_builds_real_engines(tiny_run: Finished) -> None:
    opened = open_bundle(tiny_run.directory)
    assert [engine.precision for engine in opened.manifest.engines] == ["fp32", "int8"]
    for engine in opened.manifest.engines:
        assert opened.file(engine.file).read_bytes().startswith(b"vtrt")
        assert engine.file in opened.manifest.files
        assert (engine.backend, engine.profiles) == ("tensorrt-rtx", ((1, 2, 4),))
        assert engine.compute_capabilities == ("8.6",)
        assert engine.version == engine_version("tensorrt-rtx")


def test_run_verifies_every_graph_on_every_backend(records: dict[str, Any]) -> None:
    pairs = [(record["backend"], record["precision"]) for record in records["parity"]]
    here = [name for name in DEPLOYED if name != "pytorch" and not why_unavailable(name)]
    assert pairs == [(backend, name) for backend in here for name in ("fp32", "int8")]
    for record in records["parity"]:
        assert record["passed"] and record["reference"] == "pytorch fp32"
        assert record["top1"] is None, "noise has no labels"
        assert record["source"] == "synthetic images, seed 1"


def test_run_measures_every_graph_on_every_backend(records: dict[str, Any]) -> None:
    pairs = [(record["backend"], record["precision"]) for record in records["measurements"]]
    here = [name for name in DEPLOYED if not why_unavailable(name)]
    expected = [(backend, name) for backend in here for name in ("fp32", "int8")]
    assert pairs == [pair for pair in expected if pair != ("pytorch", "int8")]
    for record in records["measurements"]:
        assert (record["batch"], record["threads"]) == (2, 1)
        assert len(record["latencies"]) == record["requests"] >= 10
        rank = np.percentile(record["latencies"], 50, method="inverted_cdf")
        assert record["p50_seconds"] == pytest.approx(rank, abs=1e-7)


def test_run_says_what_it_skipped_and_where_it_ran(records: dict[str, Any]) -> None:
    skipped = {item["backend"]: item["reason"] for item in records["skipped"]}
    assert skipped == {name: reason for name in DEPLOYED if (reason := why_unavailable(name))}
    assert records["environment"]["packages"]["numpy"] == np.__version__
    assert records["environment"]["cores"] >= 1


def test_records_in_the_bundle_are_those_that_were_printed(
    tiny_run: Finished, records: dict[str, Any]
) -> None:
    opened = open_bundle(tiny_run.directory)
    stored = json.loads(opened.file(opened.manifest.records["run"]).read_text())
    printed = dict(records)
    assert printed.pop("path") == str(tiny_run.directory)
    assert stored == printed
    assert stored["bundle"] == json.loads(json.dumps(opened.identity()))
    assert str(tiny_run.directory.parent) not in json.dumps(stored)  # nor a temporary name in it


def test_report_in_the_bundle_has_a_row_for_each_measurement(
    tiny_run: Finished, records: dict[str, Any]
) -> None:
    text = (tiny_run.directory / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# A tiny net for tests\n")
    rows = [line for line in text.splitlines() if line.startswith(("| fp32", "| int8"))]
    assert len(rows) == len(records["measurements"])
    told = [line for line in text.splitlines() if line.startswith("- not measured: ")]
    assert told and records["skipped"]
    for item in records["skipped"]:
        (line,) = (line for line in told if line.endswith(f": {item['reason']}"))
        assert item["backend"] in line.removesuffix(item["reason"])
    with Image.open(tiny_run.directory / "report.png") as image:
        assert image.format == "PNG"


@pytest.fixture
def earlier(tiny_run: Finished, tiny: Recipe) -> Iterator[Path]:
    """An earlier output, which has to stay as it is, byte for byte."""
    before = contents(tiny_run.directory)
    yield tiny_run.directory
    assert contents(tiny_run.directory) == before
    assert [path.name for path in tiny_run.directory.parent.iterdir()] == ["tiny"]


def test_a_missed_contract_publishes_nothing(earlier: Path, tiny: Recipe) -> None:
    tolerances = {"fp32": Tolerance(), "int8": Tolerance(max_abs=1e-9)}
    with pytest.raises(CheckFailedError) as caught:
        pipeline.run(replace(tiny, verify=VerifyConfig(tolerances)), earlier, engines=False)
    message = str(caught.value)
    assert "tiny misses its contract: 2 problems" in message
    assert "int8 on onnxruntime" in message and "int8 on openvino" in message
    assert "max |d logit|" in message and "fp32 on" not in message


def test_an_engine_that_cannot_be_built_publishes_nothing(earlier: Path, tiny: Recipe) -> None:
    build = replace(tiny.build, compute_capabilities=("9.0",))
    with pytest.raises(DeployError, match=r"cannot compile for compute capability '9\.0'"):
        pipeline.run(replace(tiny, build=build), earlier)


def test_int8_of_trained_weights_without_images_publishes_nothing(
    earlier: Path, tiny: Recipe
) -> None:
    weights = str(earlier / "model.safetensors")  # of which nobody says here that they are noise
    trained = replace(tiny, model=replace(tiny.model, weights=weights))
    with pytest.raises(DataError, match="int8 with 0 calibration images; expected at least 16"):
        pipeline.export_bundle(trained, earlier)


def test_a_foreign_folder_is_left_alone(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DeployError, match="holds other files"):
        pipeline.export_bundle(tiny, tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_engines_for_a_gpu_need_one(earlier: Path, tiny: Recipe) -> None:
    if not why_unavailable("tensorrt"):
        pytest.skip("this machine has a GPU and TensorRT")
    build = BuildConfig("tensorrt", ((1, 2, 4),))
    with pytest.raises(BackendError, match=r"tensorrt is not installed|cannot run here"):
        pipeline.run(replace(tiny, build=build), earlier)


def test_what_is_not_installed_is_left_out_and_named(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the engine builder nor the report's packages: a bundle all the same."""
    for name in ("tensorrt_rtx", "jinja2"):
        monkeypatch.setitem(sys.modules, name, None)
    test = DataConfig(name="synthetic", test_images=10)  # and other images than the recipe's
    result = pipeline.run(replace(tiny, precisions=("fp16",)), tmp_path / "out", test=test)
    assert {record.images for record in result.parity} == {10}
    assert result.bundle.manifest.engines == ()
    assert not (tmp_path / "out" / "engines").exists()
    assert not (tmp_path / "out" / "report.md").exists()
    reasons = {item.backend: item.reason for item in result.skipped}
    assert "pip install 'densenet-deploy[rtx]'" in reasons["tensorrt-rtx engines"]
    assert "pip install 'densenet-deploy[report]'" in reasons["report"]
    assert {record.precision for record in result.measurements} == {"fp16"}
    assert open_bundle(tmp_path / "out") == result.bundle


def test_the_same_recipe_gives_the_same_bytes(
    tiny: Recipe, tiny_run: Finished, tmp_path: Path
) -> None:
    """In another process, at another time, in another folder."""
    pipeline.export_bundle(tiny, tmp_path / "out")
    again, before = contents(tmp_path / "out"), contents(tiny_run.directory)
    del again[MANIFEST]  # the run's has records and engines
    assert again.keys() < before.keys()
    logits = "golden/output.npy"  # PyTorch's sums depend on how memory happens to be aligned
    found, expected = (np.load(io.BytesIO(files.pop(logits))) for files in (again, before))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert {name: before[name] for name in again} == again


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_quantize_file_makes_what_export_makes(
    fashion_bundle: Path, tmp_path: Path, precision: Any
) -> None:
    out = tmp_path / "deep" / "out.onnx"
    written = pipeline.quantize_file(
        fashion_bundle / "fp32.onnx", precision, QuantizeConfig(), DataConfig(), out
    )
    assert written == out.stat().st_size
    assert out.read_bytes() == (fashion_bundle / f"{precision}.onnx").read_bytes()


def test_speed_only_graphs_calibrate_themselves(tiny_run: Finished, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    pipeline.quantize_file(
        tiny_run.directory / "fp32.onnx", "int8", QuantizeConfig(images=16), None, out
    )
    operators = {node.op_type for node in onnx.load(out).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


def unmarked(directory: Path) -> Path:
    """The fp32 graph as another tool would have written it."""
    model = onnx.load(directory / "fp32.onnx")
    del model.metadata_props[:]
    path = directory / "unmarked.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "case, error, message",
    [
        ("trained", DataError, "int8 with 0 calibration images"),
        ("too many", DataError, "int8 with 512 calibration images; expected at least 513"),
        ("unmarked", GraphError, "does not say how its images are preprocessed"),
        ("bytes", GraphError, "is not a valid ONNX model"),
        ("empty", GraphError, "is not a valid ONNX model"),
        ("cut", GraphError, "is not a valid ONNX model"),
        ("absent.onnx", GraphError, "does not exist; expected an ONNX file"),
        ("int8.onnx", GraphError, "int8.onnx is an int8 graph; expected an fp32 one"),
        ("fp16.onnx", GraphError, "fp16.onnx is an fp16 graph; expected an fp32 one"),
    ],
)
def test_what_cannot_be_quantized_writes_nothing(
    damaged: Path, case: str, error: type[Exception], message: str
) -> None:
    source = damaged / "fp32.onnx"
    images: DataConfig | None = DataConfig()
    if case == "trained":
        images = None
    elif case == "unmarked":
        source = unmarked(damaged)
    elif case in ("bytes", "empty", "cut"):
        content = {"bytes": b"not a graph", "empty": b"", "cut": source.read_bytes()[:-5000]}
        source.write_bytes(content[case])
    elif case.endswith(".onnx"):
        source = damaged / case
    config = QuantizeConfig(images=513 if case == "too many" else 512)
    out = damaged / "out.onnx"
    out.write_bytes(b"earlier")
    with pytest.raises(error, match=message):
        pipeline.quantize_file(source, "int8", config, images, out)
    assert out.read_bytes() == b"earlier"
