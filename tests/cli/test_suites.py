"""suite, for real on a tiny net."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from densenet_deploy.compete import Competition
from densenet_deploy.inference_memory import InferenceMemory, Inferred
from densenet_deploy.inference_suite import InferenceMemorySuite
from densenet_deploy.training_memory import TrainingMemory
from densenet_deploy.training_suite import TrainingMemorySuite
from tests.cli.conftest import Command
from tests.test_compete import judged, suite_of
from tests.test_study import write as write_study
from tests.test_training_memory import saved

pytestmark = pytest.mark.usefixtures("one_thread")
SUITE = """
kind = "latency"
name = "small"
description = "A small suite"
models = ["{model}"]
batch_sizes = [1, 2]
threads = 1
pairs = 20

[[sides]]
name = "plain"
graph = "plain"
backend = "onnxruntime"

[[sides]]
name = "ours"
graph = "fp32"
backend = "openvino"

[[comparisons]]
candidate = "ours"
baseline = "plain"
batch_sizes = [1]
floor = 1e-6
goal = 1e6

[[comparisons]]
candidate = "ours"
baseline = "plain"
batch_sizes = [2]
floor = 1e6
"""


@pytest.fixture
def suite(tiny_recipe: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SUITE.format(model=tiny_recipe), encoding="utf-8")
    return path


def test_claims_that_hold_and_fail(command: Command, suite: Path, tmp_path: Path) -> None:
    done = command("suite", suite, "--out", tmp_path / "my-machine", "-q")
    assert (done.code, done.err) == (1, "")  # one floor fails
    title, header, _, first, second, *rest = done.out.splitlines()
    assert title.strip() == "A small suite; 20 pairs, 1 threads"
    assert header.split()[:6] == ["model", "batch", "candidate", "ms", "over", "ms"]
    assert first.split()[1:3] == ["1", "ours"] and first.split()[4] == "plain"
    assert first.split()[-5:-1] == ["0.00", "pass", "1000000.00", "fail"]
    assert second.split()[-5:-1] == ["1000000.00", "fail", "-", "-"]
    assert float(first.split()[-1]) > 0.999
    assert all("did not settle" in line for line in rest)
    told = json.loads((tmp_path / "my-machine" / "small.json").read_text(encoding="utf-8"))
    assert [claim["verdict"] for claim in told["comparisons"]] == ["pass", "fail"]
    assert [claim["goal_verdict"] for claim in told["comparisons"]] == ["fail", None]
    assert told["passed"] is False


def test_another_model_as_json(command: Command, suite: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "found.json", "densenet-bc-10-4"
    done = command(
        *("suite", suite, "--model", model, "--batch", "3", "--pairs", "1"),
        *("--out", out, "--json", "-q"),
    )
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert json.loads(out.read_text(encoding="utf-8")) == told
    assert {(side["model"], side["batch"]) for side in told["sides"]} == {(model, 3)}
    assert [(claim["floor"], claim["verdict"]) for claim in told["comparisons"]] == [(None, None)]


def test_what_the_table_warns_of(
    command: Command, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = judged(None, None)
    candidate = replace(one.candidate, samples=replace(one.candidate.samples, steady=False))
    records = (replace(one, candidate=candidate),)
    made = Competition(suite_of("net"), 1, 2, 1, (), (candidate,), records)
    monkeypatch.setattr("densenet_deploy.compete.compete", lambda *_: made)
    done = command("suite", suite, "--pairs", "2")
    assert done.code == 0
    assert done.out.splitlines()[-2:] == [
        "net, batch 1: fp32 on onnxruntime did not settle",
        "a trial: fewer than 20 pairs decide nothing",
    ]


ACCURACY = """
kind = "accuracy"
name = "few"
recipe = "fashion-mnist"
targets = ["onnxruntime", "openvino"]
seeds = [0, 1]
threads = 1

[data]
sample = true
test_images = 100

[contract]
mean_drop = 5
upper_drop = 20
agreement = {agreement}
"""
RECIPE = """
name = "fashion-mnist"
[quantize]
images = 16
method = "minmax"
"""


@pytest.fixture
def accuracy(tmp_path: Path) -> Path:
    recipe, path = tmp_path / "recipe.toml", tmp_path / "few.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    text = ACCURACY.replace('"fashion-mnist"', f'"{recipe}"')
    path.write_text(text.format(agreement=90), encoding="utf-8")
    return path


def test_an_accuracy_suite(command: Command, accuracy: Path, tmp_path: Path) -> None:
    done = command(
        *("suite", accuracy, "--target", "openvino", "--out", tmp_path / "my-machine", "-q")
    )
    assert (done.code, done.err) == (0, "")
    title, header, _, *rows = done.out.splitlines()
    told = json.loads((tmp_path / "my-machine" / "few.json").read_text(encoding="utf-8"))
    top1 = f"{told['reference']['top1']:.2f}"
    assert title.strip() == f"few; 100 images, fp32 {top1} %"
    assert header.split()[:4] == ["target", "backend", "seed", "top-1"]
    assert [row.split()[:3] for row in rows] == [
        ["openvino", "openvino", label] for label in ("0", "1", "mean")
    ]
    assert [row.split()[-2:] for row in rows] == [["pass", "-"]] * 3
    assert [row["seed"] for row in told["results"]] == [0, 1]
    assert rows[2].split()[6] == f"{told['means'][0]['agreement']:.2f}"


def test_a_broken_contract_exits_1(command: Command, accuracy: Path) -> None:
    text = accuracy.read_text(encoding="utf-8")
    strict = text.replace("upper_drop = 20", "upper_drop = -50")
    accuracy.write_text(strict, encoding="utf-8")
    done = command("suite", accuracy, "--target", "onnxruntime", "--seed", "0", "-q")
    assert (done.code, done.err) == (1, "")
    *_, failure, trial = done.out.splitlines()
    assert failure.startswith("onnxruntime, seed 0: top-1 ") and "allowed -50" in failure
    assert trial == "a trial: the mean of other seeds than the suite's decides nothing"


def test_all_images_from_a_directory(command: Command, accuracy: Path, tmp_path: Path) -> None:
    """--data-dir names the whole data set, whatever the suite says."""
    found = command("suite", accuracy, "--data-dir", tmp_path).refusal()
    assert f"no Fashion-MNIST files in {tmp_path}" in found


TRAFFIC = """
kind = "traffic"
name = "moved"
models = ["{model}"]
graphs = ["plain-fp16", "int8"]

[[limits]]
graph = "int8"
megabytes = 1e-3
goal = 100
"""


def test_a_traffic_suite(command: Command, tiny_recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    path = tmp_path / "moved.toml"
    path.write_text(TRAFFIC.format(model=tiny_recipe), encoding="utf-8")
    done = command("suite", path, "--out", tmp_path / "found.json", "-q")
    assert (done.code, done.err) == (1, "")
    title, header, _, plain, int8, failure = done.out.splitlines()
    assert title.strip().startswith("moved; tensorrt-rtx 1.")
    assert header.split()[:6] == ["model", "graph", "MB", "in", "MB", "out"]
    assert plain.split()[1] == "plain-fp16" and plain.split()[-5:-1] == ["-", "-", "-", "-"]
    assert int8.split()[1] == "int8" and int8.split()[-5:-1] == ["0.00", "fail", "100.00", "pass"]
    assert ", int8: " in failure and "MB, allowed 0.001" in failure
    told = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [row["verdict"] for row in told["results"]] == [None, "fail"]
    other = command("suite", path, "--model", "densenet-bc-10-4", "--json", "-q")
    rows = json.loads(other.out)["results"]
    assert other.code == 0 and {row["model"] for row in rows} == {"densenet-bc-10-4"}
    assert {row["verdict"] for row in rows} == {None}


def test_options_of_another_kind(command: Command, suite: Path, accuracy: Path) -> None:
    found = command("suite", accuracy, "--pairs", "3").refusal()
    refused = "--pairs with few, a suite of accuracy; expected a suite of latency or embedding or "
    assert found.startswith(refused)
    found = command("suite", accuracy, "--model", "densenet121").refusal()
    assert "expected a suite of latency or traffic or embedding or training-accuracy" in found
    assert "expected a suite of accuracy" in command("suite", suite, "--seed", "0").refusal()
    assert "expected a suite of accuracy" in command("suite", suite, "--data-dir", "x").refusal()
    found = command("suite", accuracy, "--target", "cuda").refusal()
    assert "--target 'cuda'; expected one of tensorrt, tensorrt-rtx, onnxruntime" in found


def test_bad_input(command: Command, suite: Path) -> None:
    assert "no suite 'nothing'; expected" in command("suite", "nothing").refusal()
    assert "unknown model 'vgg16'" in command("suite", suite, "--model", "vgg16").refusal()
    assert "--batch '0'" in command("suite", suite, "--batch", "0").refusal()
    assert "--batch 'x'" in command("suite", suite, "--batch", "x").refusal()


MEMORY = """
kind = "training-memory"
name = "held"
limits = [{ model = "densenet-bc-16-4", batch = 2, held = 0.5, goal = 0.1, seconds = 0.5 }]
"""


def test_a_training_memory_suite(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "held.toml"
    path.write_text(MEMORY, encoding="utf-8")

    def found(suite: TrainingMemorySuite, *asked: object) -> TrainingMemory:
        assert asked[:2] == (["densenet-bc-16-4"], 20)
        one = saved(suite.limits[0])
        return TrainingMemory(suite, 1, 20, (one,), (one,))

    monkeypatch.setattr("densenet_deploy.training_memory.measure_memory", found)
    asked = ("suite", path, "--model", "densenet-bc-16-4", "--pairs", "20", "-q")
    done = command(*asked, "--out", tmp_path)
    assert (done.code, done.err) == (1, "")  # the step takes as long as a naive one
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["held;", "20", "pairs,", "1", "threads"]
    row = next(line for line in lines if line[:1] == ["densenet-bc-16-4"])
    assert row[1:9] == ["2", "0.0", "0.0", "0.200", "0.50", "pass", "0.10", "fail"]
    assert row[9:] == ["0.40", "1.00", "[1.00,", "1.00]", "0.50", "fail"]
    swept = [line for line in lines if line[:1] == ["densenet-bc-16-4"]][1]
    assert swept[1:] == ["2", "0.0", "0.0", "0.200", "0.0", "0.0", "1000", "1000", "1.00"]
    told = json.loads((tmp_path / "held.json").read_text(encoding="utf-8"))
    assert [point["depth"] for point in told["points"]] == [16] * 4 and not told["passed"]
    assert "a suite of latency or training-speed" in command(*asked, "--batch", "2").refusal()


INFERENCE = """
kind = "inference-memory"
name = "held"
models = ["resnet50"]
"""


def test_an_inference_memory_suite(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "held.toml"
    path.write_text(INFERENCE, encoding="utf-8")

    def found(suite: InferenceMemorySuite, *asked: object) -> InferenceMemory:
        assert (suite.batch_sizes, asked[:2]) == ((1, 8, 32), (["net"], (8,)))
        sizes = (None, 10**6, 2 * 10**6)
        inferred = (Inferred("net", "openvino", 8, fixed, *sizes) for fixed in (False, True))
        return InferenceMemory(suite, 1, tuple(inferred))

    monkeypatch.setattr("densenet_deploy.inference_memory.measure_inference", found)
    asked = ("suite", path, "--model", "net", "--batch", "8", "-q")
    done = command(*asked, "--out", tmp_path)
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    for axis in ("any", "fixed"):
        assert ["net", "openvino", "8", axis, "unknown", "1.0", "2.0"] in lines
    told = json.loads((tmp_path / "held.json").read_text(encoding="utf-8"))
    assert [one["fixed"] for one in told["inferred"]] == [False, True]
    assert "--pairs with held" in command(*asked, "--pairs", "2").refusal()


SPEED = """
kind = "training-speed"
name = "steps"

[[comparisons]]
model = "densenet-bc-10-4"
candidate = "memory-efficient"
baseline = "naive"
batch_sizes = [1]
precisions = ["fp32"]
input_shape = [1, 8, 8]
floor = 1e-6
"""


def test_a_training_speed_suite(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "steps.toml"
    path.write_text(SPEED, encoding="utf-8")
    done = command("suite", path, "--batch", "2", "--pairs", "1", "--out", tmp_path, "-q")
    assert (done.code, done.err) == (0, "")
    title, header, _, row, trial = done.out.splitlines()
    assert title.strip().startswith("steps; 1 pairs, ")
    assert header.split()[:4] == ["model", "batch", "precision", "candidate"]
    cells = row.split()
    assert cells[:4] == ["densenet-bc-10-4", "2", "fp32", "memory-efficient"]
    assert cells[5] == "naive" and cells[-4:] == ["-", "-", "-", "-"]  # another batch size
    assert trial == "a trial: fewer than 20 pairs decide nothing about time"
    told = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))
    assert [step["mode"] for step in told["steps"]] == ["memory-efficient", "naive"]
    refused = command("suite", path, "--batch", "0").refusal()
    assert "expected positive integers" in refused


def test_a_study(command: Command, tmp_path: Path) -> None:
    paths = write_study(tmp_path)
    suite = tmp_path / "learn.toml"
    suite.write_text(
        f'kind = "training-accuracy"\nname = "learn"\nrecipes = {paths}\nseeds = [0, 1]\n',
        encoding="utf-8",
    )
    runs, out = tmp_path / "runs", tmp_path / "found.json"
    done = command("suite", suite, "--runs", runs, "--seed", "1", "--out", out, "-q")
    assert (done.code, done.err) == (0, "")
    title, header, _, dense, residual = done.out.splitlines()
    assert title.strip() == "learn; last epoch" and header.split()[0] == "model"
    told = json.loads(out.read_text(encoding="utf-8"))
    for line, record in zip((dense, residual), told["recipes"], strict=True):
        name, parameters, _, seed, top1, mean, std, *_ = line.split()
        assert (name, seed, std) == (record["model"], "1", "-")
        assert parameters == f"{record['parameters']:,}"
        assert top1 == mean == f"{record['mean_top1']:.2f}"
    assert sorted(path.name for path in runs.iterdir()) == ["dense-seed1", "residual-seed1"]
    again = command(
        "suite", suite, "--runs", runs, "--seed", "1", "--model", paths[1], "--json", "-q"
    )
    (record,) = json.loads(again.out)["recipes"]
    assert record == told["recipes"][1]
    assert "--pairs with learn" in command("suite", suite, "--pairs", "3").refusal()


RIVAL = """
kind = "latency"
name = "rivals"
models = ["{model}"]
batch_sizes = [1]
threads = 1

[[sides]]
name = "ours"
graph = "fp32"
backend = "onnxruntime"

[[sides]]
name = "theirs"
graph = "plain"
backend = "onnxruntime"
model = "{rival}"

[[comparisons]]
candidate = "ours"
baseline = "theirs"
"""


def test_networks_are_told_beside_their_latencies(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "rivals.toml"
    path.write_text(RIVAL.format(model="densenet-bc-10-4", rival="resnet-preact-8-4"), "utf-8")
    done = command("suite", path, "--pairs", "1", "-q")
    assert (done.code, done.err) == (0, "")
    header, _, ours, theirs = done.out.splitlines()[-5:-1]
    assert header.split() == ["model", "parameters", "MACs", "graph", "MB"]
    assert ours.split()[:4] == ["densenet-bc-10-4", "2,666", "1,242,714", "fp32-onnxruntime"]
    assert theirs.split()[:2] == ["resnet-preact-8-4", "5,166"] and theirs.split()[3] == "plain"
    path.write_text(RIVAL.format(model="densenet-bc-10-4", rival="resnet18"), "utf-8")
    found = command("suite", path).refusal()
    assert "resnet18 takes images of (3, 224, 224), densenet-bc-10-4 of (3, 32, 32)" in found
