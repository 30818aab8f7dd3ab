"""suite, for real on a tiny net."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from densenet_deploy.compete import Competition
from tests.cli.conftest import Command
from tests.test_compete import judged, suite_of

pytestmark = pytest.mark.usefixtures("one_thread")
SUITE = """
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
    made = Competition(suite_of("net"), 1, 2, (), (candidate,), records)
    monkeypatch.setattr("densenet_deploy.compete.compete", lambda *_: made)
    done = command("suite", suite, "--pairs", "2")
    assert done.code == 0
    assert done.out.splitlines()[-2:] == [
        "net, batch 1: fp32 on onnxruntime did not settle",
        "a trial: fewer than 20 pairs decide nothing",
    ]


def test_bad_input(command: Command, suite: Path) -> None:
    assert "no suite 'nothing'; expected" in command("suite", "nothing").refusal()
    assert "unknown model 'resnet50'" in command("suite", suite, "--model", "resnet50").refusal()
    assert "--batch '0'" in command("suite", suite, "--batch", "0").refusal()
    assert "--batch 'x'" in command("suite", suite, "--batch", "x").refusal()
