"""Whatever a user can get wrong: one clear sentence, exit 2, and earlier outputs untouched."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

from densenet_deploy._cuda import why_no_device
from densenet_deploy.bundle import MANIFEST
from tests.cli.conftest import Command
from tests.conftest import TINY, Finished


@dataclass(frozen=True)
class Place:
    """A folder with a good tiny bundle, good inputs and earlier outputs of every kind."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def change(self, name: str, content: str | bytes) -> Path:
        """Writes a file and gives its path."""
        path = self.path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def manifest(self, **changes: Any) -> Path:
        """The bundle, its manifest changed."""
        path = self.path / "bundle" / MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return self.path / "bundle"

    def file_record(self, name: str, **record: Any) -> Path:
        """The bundle, its manifest speaking of one more file."""
        files = json.loads((self.path / "bundle" / MANIFEST).read_text())["files"]
        return self.manifest(files=files | {name: record})


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def place(tiny_run: Finished, tmp_path: Path) -> Iterator[Place]:
    assert tiny_run.code == 0, tiny_run.err
    for name in ("bundle", "out"):
        shutil.copytree(tiny_run.directory, tmp_path / name)
    earlier = {name: f"earlier {name}".encode() for name in ("engine", "graph", "records")}
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    before = contents(tmp_path / "out")
    yield Place(tmp_path)
    assert contents(tmp_path / "out") == before
    assert {name: (tmp_path / name).read_bytes() for name in earlier} == earlier
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")], "litter"


Case = Callable[[Place], list[Any]]


def recipe(place: Place, old: str = "", new: str = "") -> Path:
    assert old in TINY
    return place.change("recipe.toml", TINY.replace(old, new))


def picture(place: Place) -> Path:
    return place / "bundle/samples/00-synthetic.png"


def cut(path: Path, rest: int = 100) -> Path:
    path.write_bytes(path.read_bytes()[:-rest])
    return path


def torch_file(place: Place, value: Any) -> Path:
    torch.save(value, place / "weights.pth")
    return place / "weights.pth"


def foreign(place: Place) -> Path:
    (place / "thesis").mkdir()
    place.change("thesis/chapter.tex", "years of work")
    return place / "thesis"


RECIPES: dict[str, tuple[Case, str]] = {
    "unknown key": (
        lambda p: ["run", recipe(p, "images = 16", "image = 16"), "--out", p / "out"],
        r"unknown key 'image' in quantize \(did you mean 'images'\?\); valid keys: images, seed",
    ),
    "unknown table": (
        lambda p: ["export", recipe(p, "[bench]", "[speed]"), "--out", p / "out"],
        r"unknown key 'speed' in the file.*valid keys: name, description, precisions, model",
    ),
    "missing name": (
        lambda p: ["train", recipe(p, 'name = "tiny"', ""), "--out", p / "out"],
        r"recipe\.toml: name is missing",
    ),
    "wrong type": (
        lambda p: ["run", recipe(p, "seconds = 0.02", 'seconds = "2"'), "--out", p / "out"],
        r"bench seconds is '2', expected a number",
    ),
    "wrong relation": (
        lambda p: ["export", recipe(p, "[export]\nbatch = [1, 2", "[export]\nbatch = [3, 2")],
        r"export: batch 3,2,4 must satisfy 1 <= min <= opt <= max",
    ),
    "engines beyond their graph": (
        lambda p: ["export", recipe(p, "profiles = [[1, 2, 4]]", "profiles = [[1, 2, 8]]")],
        r"build\.profiles 1\.\.8 exceed export\.batch 1\.\.4",
    ),
    "not TOML": (
        lambda p: ["run", p.change("recipe.toml", "name = "), "--out", p / "out"],
        r"recipe\.toml is not valid TOML: ",
    ),
    "not text": (
        lambda p: ["run", p.change("recipe.toml", b"\xff\xfe\x00"), "--out", p / "out"],
        r"recipe\.toml is not valid TOML: ",
    ),
    "no such recipe": (
        lambda p: ["run", "imagenet", "--out", p / "out"],
        r"no recipe 'imagenet'; expected a \.toml file or one of: densenet121, fashion-mnist",
    ),
    "no such recipe file": (
        lambda p: ["export", p / "absent.toml", "--out", p / "out"],
        r"no recipe '.*absent\.toml'; expected a \.toml file",
    ),
    "two channels": (
        lambda p: ["run", recipe(p, "[1, 12, 12]", "[2, 12, 12]"), "--out", p / "out"],
        r"2 input channels; expected 1 \(grayscale\) or 3 \(RGB\)",
    ),
    "too small an input": (
        lambda p: ["export", recipe(p, "[1, 12, 12]", "[1, 2, 2]"), "--out", p / "out"],
        r"input_shape \(1, 2, 2\) is too small",
    ),
}

CHECKPOINTS: dict[str, tuple[Case, str]] = {
    "missing": (
        lambda p: ["export", "--weights", p / "absent.safetensors", "--out", p / "out"],
        r"weights file .*absent\.safetensors does not exist\. Check the path",
    ),
    "cut": (
        lambda p: ["export", "--weights", cut(p / "bundle/model.safetensors"), "--out", p / "out"],
        r"model\.safetensors is not a valid safetensors file \(",
    ),
    "text": (
        lambda p: ["export", "--weights", p.change("w.safetensors", "x"), "--out", p / "out"],
        r"w\.safetensors is not a valid safetensors file",
    ),
    "empty": (
        lambda p: ["export", "--weights", p.change("w.safetensors", ""), "--out", p / "out"],
        r"w\.safetensors is not a valid safetensors file",
    ),
    "a pickle of anything": (
        lambda p: [
            *("export", "--model", "densenet-bc-10-4", "--out", p / "out"),
            *("--weights", torch_file(p, {"epoch": 3})),
        ],
        r"weights\.pth holds no plain state dict; expected name to tensor pairs",
    ),
    "another architecture": (
        lambda p: [
            *("export", "--model", "densenet-bc-16-4", "--out", p / "out"),
            *("--weights", p / "bundle/model.safetensors"),
        ],
        r"architecture: 30 missing: \S+, \S+ and others; 26 misshapen: .* others\. Check --model",
    ),
    "no word of its architecture": (
        lambda p: [
            *("export", "--out", p / "out"),
            *("--weights", torch_file(p, {"w": torch.zeros(1)})),
        ],
        r"does not say which architecture it belongs to\. Name it with --model",
    ),
    "images of another size": (
        lambda p: [
            *("export", "--weights", p / "bundle/model.safetensors", "--out", p / "out", "-q"),
            *("--data", "fashion-mnist"),
        ],
        r"pixels are uint8 .*28, 28, 1\); expected uint8 \(N, 12, 12, 1\)",
    ),
}

GRAPHS: dict[str, tuple[Case, str]] = {
    "quantize missing": (
        lambda p: ["quantize", p / "absent.onnx", "--out", p / "graph"],
        r"absent\.onnx does not exist; expected an ONNX file",
    ),
    "quantize cut": (
        lambda p: ["quantize", cut(p / "bundle/fp32.onnx"), "--out", p / "graph"],
        r"fp32\.onnx is not a valid ONNX model \(",
    ),
    "quantize text": (
        lambda p: ["quantize", p.change("x.onnx", "not a graph"), "--out", p / "graph"],
        r"x\.onnx is not a valid ONNX model \(",
    ),
    "quantize twice": (
        lambda p: ["quantize", p / "bundle/int8.onnx", "--out", p / "graph"],
        r"int8\.onnx is an int8 graph; expected an fp32 one",
    ),
    "build missing": (
        lambda p: ["build", p / "absent.onnx", "--out", p / "engine"],
        r"no file .*absent\.onnx; expected an ONNX model",
    ),
}

BUNDLES: dict[str, tuple[Case, str]] = {
    "wrong hash": (
        lambda p: ["bench", cut(p / "bundle/int8.onnx").parent, "--out", p / "records"],
        r"int8\.onnx has \d+ bytes, the manifest says \d+",
    ),
    "path that leaves": (
        lambda p: ["verify", p.file_record("../../etc/passwd", bytes=1, sha256="0")],
        r"path '\.\./\.\./etc/passwd' leaves the bundle",
    ),
    "wrong version": (
        lambda p: ["predict", p.manifest(schema_version=1), picture(p)],
        r"has schema version 1; expected 2\. Make the bundle again",
    ),
    "no bundle": (
        lambda p: ["predict", p / "absent", picture(p)],
        r"absent is not a bundle: it has no manifest\.json\. Make one with",
    ),
    "manifest is no JSON": (
        lambda p: ["report", p.change("bundle/manifest.json", "{").parent, "--out", p / "report"],
        r"manifest\.json is not JSON",
    ),
    "unknown key": (
        lambda p: ["verify", p.manifest(gpu="H100")],
        r"unknown key 'gpu' in the file.*valid keys: schema_version",
    ),
    "recipe of another version": (
        lambda p: ["verify", p.manifest(recipe={"name": "x", "magic": 1})],
        r"manifest\.json: unknown key 'magic'",
    ),
    "a precision it lacks": (
        lambda p: ["bench", p / "bundle", "--precision", "fp16", "--out", p / "records"],
        r"bundle has no fp16 graph; expected fp32, int8",
    ),
    "a precision nobody has": (
        lambda p: ["bench", p / "bundle", "--precision", "fp64", "--out", p / "records"],
        r"--precision 'fp64'; expected one of fp32, fp16, int8",
    ),
}

IMAGES: dict[str, tuple[Case, str]] = {
    "not an image": (
        lambda p: ["predict", p / "bundle", p.change("x.png", "not an image")],
        r"x\.png cannot be read as an image \(.*; expected a PNG, JPEG or other file",
    ),
    "cut image": (
        lambda p: ["predict", p / "bundle", cut(shutil.copy(picture(p), p / "x.png"), 30)],
        r"x\.png cannot be read as an image",
    ),
    "missing image": (
        lambda p: ["predict", p / "bundle", picture(p), p / "absent.png"],
        r"image .*absent\.png does not exist\. Check the path",
    ),
    "a folder": (
        lambda p: ["predict", p / "bundle", p / "bundle/samples"],
        r"samples cannot be read as an image",
    ),
}

BATCHES: dict[str, tuple[Case, str]] = {
    "bench above": (
        lambda p: ["bench", p / "bundle", "--batch", "2,5", "--out", p / "records"],
        r"batch size 5; expected 1 to 4\. Choose --batch within the bounds",
    ),
    "bench zero": (
        lambda p: ["bench", p / "bundle", "--batch", "0", "--out", p / "records"],
        r"batch_sizes must be positive",
    ),
    "bench text": (
        lambda p: ["bench", p / "bundle", "--batch", "one", "--out", p / "records"],
        r"--batch 'one'; expected integers separated by commas",
    ),
    "bench no time": (
        lambda p: ["bench", p / "bundle", "--seconds", "-1", "--out", p / "records"],
        r"seconds must be positive and finite",
    ),
    "bench threads": (
        lambda p: ["bench", p / "bundle", "--threads", "-2", "--out", p / "records"],
        r"threads must not be negative",
    ),
    "export order": (
        lambda p: ["export", "--batch", "8,4,1", "--out", p / "out"],
        r"batch 8,4,1 must satisfy 1 <= min <= opt <= max",
    ),
    "export count": (
        lambda p: ["export", "--batch", "1,8", "--out", p / "out"],
        r"--batch '1,8'; expected 3 integers separated by commas",
    ),
    "build text": (
        lambda p: ["build", p / "bundle/fp32.onnx", "--batch", "a,b,c", "--out", p / "engine"],
        r"--batch 'a,b,c'; expected 3 integers separated by commas",
    ),
    "quantize none": (
        lambda p: ["quantize", p / "bundle/fp32.onnx", "--images", "-1", "--out", p / "graph"],
        r"images and seed must not be negative",
    ),
}


def trained_graph(place: Place) -> Path:
    """An fp32 graph that does not say that its weights are noise."""
    model = onnx.load(place / "bundle/fp32.onnx")
    for entry in model.metadata_props:
        if entry.key == "densenet_deploy.speed_only":
            entry.value = "false"
    onnx.save(model, place / "trained.onnx")
    return place / "trained.onnx"


CALIBRATION: dict[str, tuple[Case, str]] = {
    "quantize without images": (
        lambda p: ["quantize", trained_graph(p), "--out", p / "graph", "-q"],
        r"int8 with 0 calibration images; expected at least 512 training images\. Name train",
    ),
    "quantize with an empty folder": (
        lambda p: [
            *("quantize", trained_graph(p), "--out", p / "graph", "-q"),
            *("--data", "folder", "--data-dir", p / "bundle"),
        ],
        r"no folder train in .*bundle; expected DIRECTORY/train/CLASS/image files",
    ),
    "export without images": (
        lambda p: [
            *("export", "--out", p / "out", "--weights", p / "bundle/model.safetensors", "-q"),
            *("--data", "synthetic", "--precision", "int8"),
        ],
        r"int8 with 0 calibration images; expected at least 512",
    ),
    "folder without its data set": (
        lambda p: ["export", "--data-dir", p / "bundle", "--out", p / "out"],
        r"--data-dir .* without --data\. Name the data set, such as folder",
    ),
    "data set that is not there": (
        lambda p: ["train", "--data-dir", p / "bundle", "--out", p / "new"],
        r"no Fashion-MNIST files in .*bundle; expected train-images-idx3-ubyte",
    ),
}

TARGETS: dict[str, tuple[Case, str]] = {
    "no such model": (
        lambda p: ["export", "--model", "vgg16", "--out", p / "out"],
        r"unknown model 'vgg16'; expected one of densenet121, .*densenet\[-b\|-c\|-bc\]",
    ),
    "unknown backend": (
        lambda p: ["verify", p / "bundle", "--backend", "tvm"],
        r"unknown backend 'tvm'; expected one of pytorch, onnxruntime,",
    ),
    "only the reference": (
        lambda p: ["verify", p / "bundle", "--backend", "pytorch"],
        r"nothing to compare on pytorch; expected a backend besides the reference",
    ),
    "reference in half": (
        lambda p: [
            *("predict", p / "bundle", picture(p), "--backend", "pytorch"),
            *("--precision", "int8"),
        ],
        r"pytorch runs fp32 only, not int8",
    ),
    "foreign folder": (
        lambda p: ["export", "--model", "densenet-bc-10-4", "--out", foreign(p), "-q"],
        r"thesis exists and holds other files; expected a new or empty directory",
    ),
    "capability": (
        lambda p: [
            *("build", p / "bundle/fp32.onnx", "--out", p / "engine", "-q"),
            *("--compute-capability", "9.0"),
        ],
        r"TensorRT-RTX .* cannot compile for compute capability '9\.0'; expected one of 7\.5, 8\.0",
    ),
}

NO_GPU: dict[str, tuple[Case, str]] = {
    "build": (
        lambda p: [
            *("build", p / "bundle/fp32.onnx", "--backend", "tensorrt", "--out", p / "engine"),
            "--quiet",
        ],
        r"tensorrt is not installed; expected TensorRT 10\.0 or newer on a machine|cannot run here",
    ),
    "verify": (
        lambda p: ["verify", p / "bundle", "--backend", "tensorrt"],
        r"tensorrt cannot run here: no CUDA device",
    ),
    "bench": (
        lambda p: ["bench", p / "bundle", "--backend", "onnxruntime-cuda", "--out", p / "records"],
        r"onnxruntime-cuda cannot run here: no CUDA device",
    ),
    "predict": (
        lambda p: ["predict", p / "bundle", picture(p), "--backend", "tensorrt-rtx"],
        r"tensorrt-rtx cannot run here: no CUDA device",
    ),
}

REPORTS: dict[str, tuple[Case, str]] = {
    "no records": (
        lambda p: ["report", p.change("records.json", '{"measurements": [{}]}')],
        r"records\.json holds no benchmark records \(KeyError\); expected a bundle, or a file",
    ),
    "not JSON": (
        lambda p: ["report", p.change("records.json", "latency: 3 ms")],
        r"records\.json holds no benchmark records",
    ),
    "wrong JSON": (
        lambda p: ["report", p.change("records.json", "[1, 2]")],
        r"records\.json holds no benchmark records",
    ),
    "missing": (
        lambda p: ["report", p / "absent.json"],
        r"absent\.json holds no benchmark records \(FileNotFoundError\)",
    ),
    "bundle without records": (
        lambda p: ["report", p.manifest(records={})],
        r"bundle has no records\. Make the bundle with: densenet-deploy run",
    ),
    "no document": (
        lambda p: ["report", p / "bundle", "--into", p / "absent.md"],
        r"absent\.md does not exist; expected a Markdown file",
    ),
    "no markers": (
        lambda p: ["report", p / "bundle", "--into", p.change("README.md", "# Title\n")],
        r"the document has no place for the table; expected <!-- results:begin --> \.\.\.",
    ),
}

ALL = {
    "recipe": RECIPES,
    "checkpoint": CHECKPOINTS,
    "graph": GRAPHS,
    "bundle": BUNDLES,
    "image": IMAGES,
    "batch": BATCHES,
    "calibration": CALIBRATION,
    "target": TARGETS,
    "report": REPORTS,
}


def refused(command: Command, place: Place, case: tuple[Case, str]) -> None:
    arguments, message = case
    before = contents(place.path)
    given = arguments(place)
    inputs = contents(place.path)
    said = command(*given).refusal()
    assert re.search(message, said), said
    assert contents(place.path) == inputs, "nothing was written anywhere"
    assert before.keys() <= inputs.keys()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{kind}: {name}")
        for kind, cases in ALL.items()
        for name, case in cases.items()
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_bad_input_is_refused(command: Command, place: Place, case: tuple[Case, str]) -> None:
    refused(command, place, case)


@pytest.mark.parametrize("case", NO_GPU.values(), ids=NO_GPU)
def test_without_a_gpu(command: Command, place: Place, case: tuple[Case, str]) -> None:
    if not why_no_device():
        pytest.skip("this machine has a GPU")
    refused(command, place, case)


def corrupt(place: Place) -> Path:
    return place.change("x.onnx", "not a graph")


@pytest.mark.parametrize(
    "name, message", [("text", "is not a valid ONNX model"), ("bounds", "1 <= min <= opt <= max")]
)
def test_an_engine_that_cannot_be_built_shows_the_builders_words(
    command: Command, place: Place, name: str, message: str
) -> None:
    """More than a sentence here: the builder's own log comes with it."""
    pytest.importorskip("tensorrt_rtx")
    graph = corrupt(place) if name == "text" else place / "bundle/fp32.onnx"
    options = ("--batch", "1,2,4" if name == "text" else "4,2,1", "--compute-capability", "8.6")
    done = command("build", graph, *options, "--out", place / "engine", "-q")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ") and message in done.err
    assert "Traceback" not in done.err


def test_a_missed_contract_exits_1_and_keeps_the_earlier_bundle(
    command: Command, place: Place
) -> None:
    strict = recipe(place, "max_abs = 1e-3", "max_abs = 1e-12")
    done = command("run", strict, "--out", place / "out", "--no-engines", "-q")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: tiny misses its contract: ")
    assert "fp32 on onnxruntime" in done.err and "allowed 1e-12" in done.err
    assert "Traceback" not in done.err


def test_several_mistakes_in_a_recipe_are_told_at_once(command: Command, place: Place) -> None:
    text = TINY.replace("images = 16", "image = 16").replace('name = "synthetic"', 'name = "mnist"')
    done = command("run", place.change("recipe.toml", text), "--out", place / "out")
    assert done.code == 2
    assert done.err.startswith("error: recipe.toml: 2 problems\n")
    assert "unknown key 'image'" in done.err and "data name is 'mnist'" in done.err


def test_a_picture_of_a_file_that_lies_about_its_size(command: Command, place: Place) -> None:
    Image.new("L", (9000, 9000)).save(place / "big.png")
    message = command("predict", place / "bundle", place / "big.png").refusal()
    assert "is 9000x9000 pixels; expected at most 64000000 pixels" in message
