"""The contract between languages: what is written is read back, what was touched is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    Bundle,
    EngineRecord,
    is_bundle,
    open_bundle,
    write_manifest,
)
from densenet_deploy.data import ImageSet
from densenet_deploy.errors import BundleError
from densenet_deploy.files import replacing_directory
from densenet_deploy.preprocess import FASHION_MNIST
from densenet_deploy.recipe import Recipe

Table = dict[str, Any]


def manifest_of(directory: Path) -> Table:
    return dict(json.loads((directory / MANIFEST).read_text(encoding="utf-8")))


def edit(directory: Path, change: Callable[[Table], Any]) -> None:
    """Applies a change to the manifest as an attacker or a broken tool would."""
    table = manifest_of(directory)
    change(table)
    (directory / MANIFEST).write_text(json.dumps(table), encoding="utf-8")


def rehash(directory: Path, name: str) -> None:
    """Makes the manifest agree with a file that was changed."""
    content = (directory / name).read_bytes()
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(directory, lambda table: table["files"].update({name: record}))


def refusal(directory: Path) -> str:
    """What `open_bundle` says, which is one sentence where one thing is wrong."""
    with pytest.raises(BundleError) as caught:
        open_bundle(directory)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    return message


def test_an_export_says_what_it_is(bundle: Bundle, fashion_recipe: Recipe) -> None:
    manifest = bundle.manifest
    assert (manifest.schema_version, manifest.name) == (SCHEMA_VERSION, "fashion-mnist")
    assert manifest.model == "densenet-bc-40-12"
    assert not manifest.speed_only
    assert (manifest.batch, manifest.target) == ((1, 8, 64), "tensorrt-rtx")
    assert manifest.input.shape == ("batch", 1, 28, 28)
    assert manifest.output.shape == ("batch", 10)
    assert manifest.preprocessing == FASHION_MNIST
    assert len(manifest.labels) == 10 and manifest.labels[9] == "Ankle boot"
    assert bundle.precisions == ("fp32", "fp16", "int8")
    assert manifest.recipe_digest == fashion_recipe.digest
    assert manifest.calibration["images"] == 512
    assert "512 train images" in manifest.calibration["source"]
    assert set(manifest.rewrites) == {"fold_preactivation", "pool_before_conv"}


def test_a_backend_gets_the_graph_made_for_it(bundle: Bundle) -> None:
    own, main = bundle.model("int8", "onnxruntime"), bundle.model("int8")
    assert own != main == bundle.model("int8", "tensorrt-rtx")
    assert own.read_bytes() != main.read_bytes()
    # the CPU runtimes take the same form, and compute fp16 in fp32 anyway
    assert bundle.model("int8", "openvino") == own
    assert bundle.model("fp16", "openvino") == bundle.model("fp16")
    assert "onnxruntime/int8" in bundle.identity()["graphs_sha256"]


def test_a_graph_for_a_backend_needs_one_for_all(damaged: Path) -> None:
    edit(damaged, lambda table: table["lowered"].update({"openvino": {"int4": "int8.onnx"}}))
    assert "openvino has a graph of its own for 'int4', which models lacks" in refusal(damaged)


def test_every_file_is_listed_with_its_true_hash(bundle: Bundle) -> None:
    present = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()}
    assert present == {*bundle.manifest.files, MANIFEST}
    for name, record in bundle.manifest.files.items():
        content = (bundle.path / name).read_bytes()
        assert record.bytes == len(content)
        assert record.sha256 == hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    assert bundle.digest == digest
    graphs = bundle.identity()["graphs_sha256"]
    assert graphs["int8"] == hashlib.sha256(bundle.model("int8").read_bytes()).hexdigest()


def test_golden_and_samples_are_the_test_images(
    bundle: Bundle, sample: tuple[ImageSet, ImageSet]
) -> None:
    inputs, logits = bundle.golden()
    _, test = sample
    pixels = test.pixels[:4].astype(np.float64)
    expected = ((pixels / 255 - 0.2860) / 0.3530).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(inputs, expected, atol=1e-6)
    assert (logits.shape, logits.dtype) == ((4, 10), np.float32)
    np.testing.assert_array_equal(bundle.sample_pixels(), test.pixels[:16])
    first = bundle.manifest.samples[0]
    assert first.endswith(f"{bundle.manifest.labels[test.labels[0]].lower().replace(' ', '-')}.png")
    with Image.open(bundle.file(first)) as image:
        assert (image.size, image.mode) == ((28, 28), "L")


def test_no_absolute_path_of_the_machine_is_shipped(bundle: Bundle) -> None:
    machine = [str(place).encode() for place in (Path.home(), Path.cwd(), bundle.path.parent)]
    for path in bundle.path.rglob("*"):
        if path.is_file():
            assert not any(place in path.read_bytes() for place in machine if len(place) > 4), path


def test_written_manifest_is_read_back_equal(damaged: Path) -> None:
    (damaged / "engine.plan").write_bytes(b"plan")
    (damaged / "records.json").write_text("{}")
    engine = EngineRecord(
        "engine.plan", "tensorrt-rtx", "fp16", "1.7", ((1, 2, 3),), ("8.6", "12.0")
    )
    changed = dataclasses.replace(
        open_bundle(damaged).manifest,
        name="näme",
        engines=(engine,),
        records={"run": "records.json"},
        speed_only=True,
    )
    written = write_manifest(damaged, changed)
    assert open_bundle(damaged) == written
    assert written.manifest.engines == (engine,)
    assert {"engine.plan", "records.json"} <= written.manifest.files.keys()


def test_a_missing_precision_names_those_there_are(damaged: Path) -> None:
    edit(damaged, lambda table: table["models"].pop("fp16"))
    opened = open_bundle(damaged)
    assert opened.precisions == ("fp32", "int8")
    with pytest.raises(BundleError, match=r"has no fp16 graph; expected fp32, int8\.$"):
        opened.model("fp16")


def test_changed_byte(damaged: Path) -> None:
    content = bytearray((damaged / "int8.onnx").read_bytes())
    content[1000] ^= 1
    (damaged / "int8.onnx").write_bytes(content)
    assert re.search(r"int8\.onnx does not have the SHA-256", refusal(damaged))


def test_truncated_file(damaged: Path) -> None:
    size = (damaged / "fp32.onnx").stat().st_size
    os.truncate(damaged / "fp32.onnx", size - 1)
    message = refusal(damaged)
    assert f"fp32.onnx has {size - 1} bytes, the manifest says {size}" in message


def test_missing_file(damaged: Path) -> None:
    (damaged / "golden" / "input.npy").unlink()
    assert "golden/input.npy is missing" in refusal(damaged)


def test_several_damages_are_reported_together(damaged: Path) -> None:
    (damaged / "fp16.onnx").unlink()
    (damaged / "int8.onnx").write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        open_bundle(damaged)
    message = str(caught.value)
    assert "2 problems" in message
    assert "fp16.onnx is missing" in message and "int8.onnx has 0 bytes" in message


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "1", None, 1.5, [1]])
def test_schema_version(damaged: Path, version: Any) -> None:
    edit(damaged, lambda table: table.update(schema_version=version))
    message = refusal(damaged)
    assert f"has schema version {version!r}; expected {SCHEMA_VERSION}" in message
    assert "Make the bundle again" in message


def test_a_float_is_no_schema_version(damaged: Path) -> None:
    edit(damaged, lambda table: table.update(schema_version=2.0))  # equals 2
    assert "schema_version is 2.0" in refusal(damaged)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,  # deeper than any parser's stack
        b'{"schema_version": ' + b"9" * 10_000 + b"}",  # beyond Python's limit of digits
    ],
    ids=["empty", "cut", "utf-16", "deep", "digits"],
)
def test_manifest_that_is_not_json(damaged: Path, content: bytes) -> None:
    (damaged / MANIFEST).write_bytes(content)
    assert "manifest.json is not JSON" in refusal(damaged)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "1"])
def test_manifest_that_is_json_but_no_table(damaged: Path, content: str) -> None:
    (damaged / MANIFEST).write_text(content)
    assert "schema version None" in refusal(damaged)


def test_huge_manifest_is_not_read(damaged: Path) -> None:
    size = 17 * 2**20
    os.truncate(damaged / MANIFEST, size)  # sparse
    assert f"is {size} bytes; expected a manifest" in refusal(damaged)


def test_not_a_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        message = refusal(path)
        assert "is not a bundle: it has no manifest.json. Make one with" in message
    (tmp_path / "file").write_text("x")
    assert "is not a bundle" in refusal(tmp_path / "file")


def test_unknown_and_missing_keys_and_wrong_types_at_once(damaged: Path) -> None:
    def change(table: Table) -> None:
        table["target_gpu"] = "H100"
        table["preprocessing"]["std"] = ["a"]
        del table["golden"]

    edit(damaged, change)
    with pytest.raises(BundleError) as caught:
        open_bundle(damaged)
    message = str(caught.value)
    assert "unknown key 'target_gpu'" in message and "valid keys: schema_version" in message
    assert "preprocessing std[0] is 'a', expected a number" in message
    assert "golden is missing" in message


LEAVING = [
    "../outside",
    "golden/../../outside",
    "..",
    "/etc/hostname",
    "..\\outside",
    "golden\\..\\..\\outside",
    "C:/outside",
    "C:outside",
    "//server/share",
    "fp32.onnx:stream",
    ".",
    "",
    "a\0b",
]


@pytest.mark.parametrize("name", LEAVING)
def test_path_that_leaves_the_bundle(damaged: Path, name: str) -> None:
    outside = damaged.parent / "outside"
    outside.write_bytes(b"secret")
    record = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}  # a true hash of it

    def change(table: Table) -> None:
        table["files"][name] = record
        table["weights"] = name

    edit(damaged, change)
    assert f"path {name!r} leaves the bundle" in refusal(damaged)


@pytest.mark.parametrize("kind", ["file", "directory", "chain"])
def test_symlink_that_leaves_the_bundle(damaged: Path, kind: str) -> None:
    outside = damaged.parent / "outside"
    if kind == "directory":
        shutil.move(damaged / "golden", outside)
        (damaged / "golden").symlink_to(outside, target_is_directory=True)
    else:
        shutil.move(damaged / "fp32.onnx", outside)
        target = Path("..") / "outside"
        if kind == "chain":
            (damaged / "link").symlink_to(target)
            target = Path("link")
        (damaged / "fp32.onnx").symlink_to(target)
    with pytest.raises(BundleError, match=r"(fp32\.onnx|golden/input\.npy) links outside"):
        open_bundle(damaged)


def test_symlink_inside_the_bundle_is_fine(damaged: Path) -> None:
    (damaged / "fp32.onnx").rename(damaged / "graph.onnx")
    (damaged / "fp32.onnx").symlink_to("graph.onnx")
    assert open_bundle(damaged).model("fp32").is_file()


@pytest.mark.parametrize("name", ["loop", "x" * 5000, "golden", "\ud800"])
def test_name_that_is_no_readable_file(damaged: Path, name: str) -> None:
    (damaged / "loop").symlink_to("loop")
    edit(damaged, lambda table: table["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    assert re.search("is missing|cannot be read", refusal(damaged))


def test_a_pipe_is_not_waited_for(damaged: Path) -> None:
    (damaged / "fp32.onnx").unlink()
    os.mkfifo(damaged / "fp32.onnx")
    assert "fp32.onnx is missing" in refusal(damaged)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(weights="other.safetensors"),
        lambda table: table["golden"].update(input="other.npy"),
        lambda table: table["models"].update(fp16="other.onnx"),
        lambda table: table["samples"].append("samples/other.png"),
        lambda table: table["records"].update(run="other.json"),
        lambda table: table["files"].pop("model.safetensors"),
    ],
    ids=["weights", "golden", "model", "sample", "record", "unhashed"],
)
def test_file_that_is_used_but_has_no_hash(damaged: Path, change: Callable[[Table], Any]) -> None:
    edit(damaged, change)
    assert re.search(r"'[\w./]*(other|model)\.\w+' is used but has no hash", refusal(damaged))


def test_model_of_no_precision(damaged: Path) -> None:
    edit(damaged, lambda table: table["models"].update(bf16="fp16.onnx"))
    assert "'bf16' is not a precision" in refusal(damaged)


def test_golden_without_output(damaged: Path) -> None:
    edit(damaged, lambda table: table["golden"].pop("output"))
    assert "golden output is missing" in refusal(damaged)


@pytest.mark.parametrize("batch", [[0, 1, 2], [4, 2, 8], [1, 8, 4], [-1, 1, 1]])
def test_batch_bounds_that_hold_for_no_batch(damaged: Path, batch: list[int]) -> None:
    edit(damaged, lambda table: table.update(batch=batch))
    assert "does not satisfy 1 <= min <= opt <= max" in refusal(damaged)


def test_labels_that_are_not_one_for_each_class(damaged: Path) -> None:
    edit(damaged, lambda table: table["labels"].pop())
    assert "9 labels do not name outputs of shape (10,)" in refusal(damaged)


def test_input_shape_that_preprocessing_does_not_make(damaged: Path) -> None:
    edit(damaged, lambda table: table["preprocessing"].update(height=27))
    assert "is not what preprocessing makes, (1, 27, 28)" in refusal(damaged)


class Exploit:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_pickled_objects_are_not_executed(damaged: Path) -> None:
    traces = [damaged / "executed", damaged / "executed-too"]
    np.save(damaged / "golden" / "input.npy", np.array([Exploit(traces[0])]), allow_pickle=True)
    rehash(damaged, "golden/input.npy")
    with pytest.raises(BundleError, match=r"input\.npy is not a readable \.npy file \(Object arr"):
        open_bundle(damaged).golden()
    (damaged / "golden" / "input.npy").write_bytes(pickle.dumps(Exploit(traces[1])))
    rehash(damaged, "golden/input.npy")
    with pytest.raises(BundleError, match=r"is not a readable \.npy file"):
        open_bundle(damaged).golden()
    assert not any(trace.exists() for trace in traces)


@pytest.mark.parametrize("content", ["empty", "cut", "float64", "archive"])
def test_golden_file_that_is_no_float32_array(damaged: Path, content: str) -> None:
    path = damaged / "golden" / "output.npy"
    if content == "empty":
        path.write_bytes(b"")
    elif content == "cut":
        os.truncate(path, path.stat().st_size - 8)
    elif content == "float64":
        np.save(path, np.zeros((4, 10)))
    else:
        np.savez(damaged / "archive.npz", np.zeros(3, np.float32))
        (damaged / "archive.npz").replace(path)
    rehash(damaged, "golden/output.npy")
    with pytest.raises(BundleError, match=r"output\.npy (is not a readable|holds no float32)"):
        open_bundle(damaged).golden()


def test_manifest_of_a_missing_file_is_not_written(damaged: Path) -> None:
    manifest = open_bundle(damaged).manifest
    before = (damaged / MANIFEST).read_bytes()
    (damaged / "fp16.onnx").unlink()
    (damaged / "samples" / "00-ankle-boot.png").unlink()
    with pytest.raises(BundleError, match=r"lacks fp16\.onnx, samples/00-ankle-boot\.png\.$"):
        write_manifest(damaged, manifest)
    assert (damaged / MANIFEST).read_bytes() == before


def test_manifest_that_would_be_refused_is_not_written(damaged: Path) -> None:
    manifest = dataclasses.replace(open_bundle(damaged).manifest, labels=("one", "two"))
    before = (damaged / MANIFEST).read_bytes()
    with pytest.raises(BundleError, match="2 labels do not name outputs"):
        write_manifest(damaged, manifest)
    assert (damaged / MANIFEST).read_bytes() == before


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_an_export_that_fails_keeps_the_earlier_bundle(damaged: Path) -> None:
    manifest, before = open_bundle(damaged).manifest, contents(damaged)
    with (
        pytest.raises(BundleError, match="lacks"),
        replacing_directory(damaged, is_bundle) as staging,
    ):
        (staging / "fp32.onnx").write_bytes(b"new")
        write_manifest(staging, manifest)
    assert contents(damaged) == before
    assert list(damaged.parent.iterdir()) == [damaged]
    open_bundle(damaged)


def test_only_a_manifest_of_ours_makes_a_folder_replaceable(bundle: Bundle, tmp_path: Path) -> None:
    assert is_bundle(bundle.path)
    for text in ("{}", "[]", "not json", '{"manifest_version": 3, "name": "a browser extension"}'):
        (tmp_path / MANIFEST).write_text(text)
        assert not is_bundle(tmp_path)
