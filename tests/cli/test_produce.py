"""run, export, quantize and train, each once for real."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from densenet_deploy.bundle import MANIFEST, open_bundle
from densenet_deploy.checkpoint import read_info
from densenet_deploy.data import ImageSet
from tests.cli.conftest import Command
from tests.conftest import Finished

pytestmark = pytest.mark.usefixtures("one_thread")


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_run_prints_one_json_document(tiny_run: Finished) -> None:
    assert tiny_run.code == 0, tiny_run.err
    assert {"path", "bundle", "parity", "measurements", "skipped"} <= json.loads(
        tiny_run.out
    ).keys()
    for step in ("Exporting to ONNX", "Quantizing", "Building tensorrt-rtx", "Running", "Bench"):
        assert step in tiny_run.err, "progress, on standard error"
    assert "Traceback" not in tiny_run.err


def test_export_needs_no_argument(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped trained model, from any folder."""
    monkeypatch.chdir(tmp_path)
    done = command("export")
    assert done.code == 0, done.err
    opened = open_bundle(tmp_path / "work" / "fashion-mnist-tensorrt-rtx")
    assert opened.precisions == ("fp32", "fp16", "int8")
    assert not opened.manifest.speed_only and "speed only" not in done.out
    assert "rewrites: pool_before_conv x2, fold_preactivation x" in done.out
    for precision in opened.precisions:
        graph = opened.model(precision).relative_to(tmp_path)
        assert f"{precision}: {graph} ({graph.stat().st_size / 1e6:.2f} MB)" in done.out
    assert "BatchNormalization" not in operators(opened.model("fp32"))
    assert "QuantizeLinear" in operators(opened.model("int8"))


def test_export_of_a_model_without_weights_is_stamped_speed_only(
    command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--precision", "int8", "--target", "onnxruntime", "--batch", "1,2,4", "--out", out)
    done = command("export", "--model", "densenet-bc-10-4", *options, "-q")
    assert (done.code, done.err) == (0, "")
    assert "speed only: the weights are seeded noise; time it, do not trust its answers" in done.out
    manifest = open_bundle(out).manifest
    assert manifest.speed_only and manifest.model == "densenet-bc-10-4"
    assert manifest.name == "densenet-bc-10-4" and "speed only" in manifest.description
    assert (manifest.target, manifest.batch) == ("onnxruntime", (1, 2, 4))
    assert manifest.recipe["build"]["profiles"] == [[1, 2, 4]], (
        "no engine for what the graph refuses"
    )
    assert list(manifest.models) == ["int8"]
    assert manifest.calibration["source"].startswith("synthetic images")
    graph = onnx.load(out / "int8.onnx")
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert metadata["densenet_deploy.speed_only"] == "true"
    assert {"Max", "Conv"} <= set(operators(out / "int8.onnx"))  # ONNX Runtime clamps integers


def test_export_of_given_weights(command: Command, tmp_path: Path, tiny_run: Finished) -> None:
    weights, out = tiny_run.directory / "model.safetensors", tmp_path / "out"
    options = ("--weights", weights, "--data", "synthetic", "--precision", "fp16", "--out", out)
    done = command("export", *options, "--json", "-q")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert told["bundle"] == str(out)
    manifest = open_bundle(out).manifest
    assert told["manifest"]["recipe_digest"] == manifest.recipe_digest
    assert manifest.model == "densenet-bc-10-4", "the file itself says what it is"
    assert manifest.input.shape == ("batch", 1, 12, 12)
    assert manifest.speed_only, "and that it is noise"


@pytest.mark.parametrize("precision, operator", [("fp16", "Cast"), ("int8", "QuantizeLinear")])
def test_quantize(
    command: Command, tmp_path: Path, tiny_run: Finished, precision: str, operator: str
) -> None:
    graph, out = tiny_run.directory / "fp32.onnx", tmp_path / "out.onnx"
    options = ("--precision", precision, "--images", 16, "--out", out, "-q")
    done = command("quantize", graph, *options)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{precision}: {out} ({out.stat().st_size / 1e6:.2f} MB)\n"
    assert operator in operators(out) - operators(graph)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def small_fashion_mnist(tmp_path: Path, sample: tuple[ImageSet, ImageSet]) -> Path:
    """A folder that looks like Fashion-MNIST and holds 96 + 40 of its images."""
    folder = tmp_path / "data"
    folder.mkdir()
    for prefix, images, count in (("train", sample[0], 96), ("t10k", sample[1], 40)):
        pixels, labels = images.pixels[:count, ..., 0], images.labels[:count]
        write_idx(folder / f"{prefix}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return folder


def test_train_and_train_again(command: Command, tmp_path: Path, small_fashion_mnist: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'name = "small"\n'
        '[model]\nvariant = "densenet-bc-10-4"\nweights = ""\n'
        "[train]\nbatch_size = 32\ncompile = false\n"
        'precision = "fp32"\n'
    )
    out = tmp_path / "out"
    options: Any = (recipe, "--data-dir", small_fashion_mnist, "--out", out, "-q")
    done = command("train", *options, "--epochs", 1)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("epoch 1: loss ") and "% on 40 images\n" in done.out
    assert f"weights: {out / 'model.safetensors'}, log: {out / 'metrics.jsonl'}\n" in done.out
    info = read_info(out / "model.safetensors")
    assert info is not None and info.labels[9] == "Ankle boot"
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    before = (out / "model.safetensors").read_bytes()
    again = command("train", *options, "--epochs", 1)  # finished: nothing is left to do
    assert (again.code, again.out) == (0, done.out)
    assert (out / "model.safetensors").read_bytes() == before
    held_out = (*options[:-3], "--out", tmp_path / "other", "-q", "--set", "validation_images=20")
    done = command("train", *held_out, "--epochs", 1)
    assert done.code == 0 and "% on 20 images\n" in done.out


def test_what_was_trained_can_be_exported(
    command: Command, tmp_path: Path, small_fashion_mnist: Path
) -> None:
    """Recipe, weights and class names go from one command to the next."""
    recipe = tmp_path / "small.toml"
    text = 'name = "small"\nprecisions = ["int8"]\n[model]\nvariant = "densenet-bc-10-4"\n'
    recipe.write_text(text + "[train]\nbatch_size = 32\ncompile = false\n[quantize]\nimages = 64\n")
    options = ("--data-dir", small_fashion_mnist, "--out", tmp_path / "trained", "-q")
    assert command("train", recipe, *options, "--epochs", 1).code == 0
    weights = f'weights = "{tmp_path / "trained" / "model.safetensors"}"\n'
    recipe.write_text(text + weights + "[quantize]\nimages = 64\n")
    done = command("export", recipe, "--out", tmp_path / "bundle", "-q")
    assert (done.code, done.err) == (0, "")
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.name, manifest.speed_only) == ("small", False)
    assert len(manifest.labels) == 10
    assert manifest.calibration["source"] == "64 of Fashion-MNIST sample, 512 train images"
    assert (tmp_path / "bundle" / MANIFEST).is_file()
