"""inspect, of every kind of argument."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from densenet_deploy.engine.layers import parse_build_log
from densenet_deploy.engine.why_slow import why_slow
from densenet_deploy.export import to_bytes
from densenet_deploy.inspection import inspect_model
from densenet_deploy.recipe import load_recipe
from densenet_deploy.rewrite import RULES
from tests.cli.conftest import Command
from tests.graphs import graph, normal
from tests.test_inspection import almost, export_once

__all__ = ["export_once"]
pytestmark = pytest.mark.usefixtures("one_thread", "export_once")

TENSOR = (
    " {{ Name: {name}, Dimensions: [1,32,8,8], Strides: [2048,64,8,1], Datatype: {dtype}, "
    "Format: row-major linear }}"
)
LAYER = (
    "Name: features.conv0, LayerType: correlation, Inputs: [{input}], Constants: [], "
    "Outputs: [{output}], TacticName: tactic, StreamId: 0, "
    "Metadata: [ONNX Layer: features.conv0]"
)
LOG = "[V] Layers:\n{layer}\n\nI/O Tensors:\n"


def build_log(path: Path) -> Path:
    tensors = {"input": TENSOR.format(name="images", dtype="Int8")}
    tensors["output"] = TENSOR.format(name="features.conv0", dtype="Half")
    path.write_text(LOG.format(layer=LAYER.format(**tensors)), encoding="utf-8")
    return path


def test_a_recipe(command: Command, tiny_recipe: Path) -> None:
    done = command("inspect", tiny_recipe, "--target", "openvino", "-q")
    assert (done.code, done.err) == (0, "")
    expected = inspect_model(load_recipe(str(tiny_recipe)), "openvino")
    assert done.out == f"{expected.summary()}\n"
    assert done.out.startswith("tiny, fp32 for openvino, costs of one image\n")
    assert done.out.count("\nequal: ") == 2


def test_int8_as_json(command: Command, tiny_recipe: Path) -> None:
    done = command(
        *("inspect", tiny_recipe, "--precision", "int8"), *("--target", "onnxruntime", "--json")
    )
    assert done.code == 0 and "Exporting to ONNX" in done.err and "int8" in done.err
    told = json.loads(done.out)
    assert (told["precision"], told["target"], told["passed"]) == ("int8", "onnxruntime", True)
    assert [item["passed"] for item in told["certificates"]] == [True, True]
    assert told["steps"][-1]["rule"] == "quantize" and len(told["blocks"]) == 3


def test_a_wrong_rewrite_fails(
    command: Command, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "tensorrt", (almost,))
    done = command("inspect", tiny_recipe, "--target", "tensorrt", "-q")
    assert (done.code, done.err) == (1, "")
    assert "NOT EQUAL" in done.out


def test_an_onnx_file(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(to_bytes(graph("y = Conv(x, w)", {"w": normal(4, 4, 1, 1)})))
    done = command("inspect", path, "--target", "onnxruntime", "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{path}: fp32, opset 20, x float (N, 4, 8, 8) -> y float (")
    told = json.loads(command("inspect", path, "--json", "-q").out)
    assert told["costs"]["macs"] == 4 * 4 * 64 and told["target"] == "tensorrt"


def test_a_build_log(command: Command, tmp_path: Path) -> None:
    path = build_log(tmp_path / "engine.log")
    layers = parse_build_log(path.read_text(encoding="utf-8"))
    done = command("inspect", path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(layers.summary())
    assert done.out.endswith(f"1 ONNX nodes run in 1 kernels\nlayers by the build log {path}\n")
    assert "Int8 input: 1 of 1 convolutions" in done.out
    told = json.loads(command("inspect", path, "--json").out)
    assert layers.to_dict().items() <= told.items() and len(told["layers"]) == 1
    (line, *others) = command("inspect", path, "--kernels").out.splitlines()
    assert line.split()[:3] == ["features.conv0", "convolution", "Int8>Half"]
    assert "\n".join(others) + "\n" == done.out


def test_an_engine_and_its_log(command: Command, tmp_path: Path) -> None:
    log, plan = build_log(tmp_path / "engine.log"), tmp_path / "engine.plan"
    plan.write_bytes(b"vtrt")
    assert command("inspect", plan, "--log", log).out == command("inspect", log).out
    refusal = command("inspect", log, "--profile", 1).refusal()
    assert refusal == "the engine has no optimization profile 1; expected 0."


def test_why_slow(command: Command, tmp_path: Path) -> None:
    log = build_log(tmp_path / "engine.log")
    layers = parse_build_log(log.read_text(encoding="utf-8"))
    done = command("doctor", "why-slow", log)
    assert (done.code, done.err) == (0, ""), "it informs"
    assert done.out == f"{why_slow(layers).summary()}\nlayers by the build log {log}\n"
    assert "Int8 convolutions that write Half" in done.out
    told = json.loads(command("doctor", "why-slow", log, "--json").out)
    assert told == {"source": f"the build log {log}", **why_slow(layers).to_dict()}
    assert [one["cause"] for one in told["findings"]] == ["half-output"]
    refusal = command("doctor", "why-slow", tmp_path).refusal()
    assert refusal.startswith(f"{tmp_path} is a directory; expected an engine, its build log")


def test_what_is_nothing(command: Command, tmp_path: Path) -> None:
    kinds = "expected a recipe, an architecture, an .onnx file, an engine, its build log, or the "
    refusal = command("inspect", "vgg16").refusal()
    assert refusal.startswith(f"there is no 'vgg16'; {kinds}")
    assert "Name one, or list architectures with: densenet-deploy models" in refusal
    (tmp_path / "int8.onnx").touch()
    refusal = command("inspect", tmp_path).refusal()
    assert refusal.startswith(f"{tmp_path} is a directory; expected an engine, its build log")
    assert refusal.endswith(f"Name a file in it: {tmp_path / 'int8.onnx'}.")
    assert "depth 41 does not fit" in command("inspect", "densenet-41-12").refusal()
    assert "unknown model 'densenet122'" in command("inspect", "densenet122").refusal()
    assert "none.toml" in command("inspect", tmp_path / "none.toml").refusal()
    missing = tmp_path / "none.onnx"
    assert (
        f"{missing} does not exist; expected an ONNX file" in command("inspect", missing).refusal()
    )


def test_files_of_another_kind(command: Command, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\xff\x00")
    refusal = command("inspect", picture).refusal()
    assert refusal.startswith(f"{picture} has no layer list; expected an engine, its build log")
    assert "Write a build log with: densenet-deploy build ... --log build.log" in refusal
    log = build_log(tmp_path / "log")
    log.write_text(log.read_text(encoding="utf-8").replace("I/O Tensors", ""), encoding="utf-8")
    assert "the layer list of the build log has no end" in command("inspect", log).refusal()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    assert "is not a valid ONNX model" in command("inspect", broken).refusal()


@pytest.mark.parametrize(
    ("option", "value"), [("--target", "tpu"), ("--precision", "fp16"), ("--batch", "1")]
)
def test_wrong_options(command: Command, option: str, value: str) -> None:
    done = command("inspect", "densenet121", option, value)
    assert done.code == 2 and done.out == "" and option in done.err
