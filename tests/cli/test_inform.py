"""models and doctor: exact numbers, and what this machine really can do."""

from __future__ import annotations

import json
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy import _cuda, environment
from densenet_deploy.cli import inform
from densenet_deploy.published import published_recipes
from densenet_deploy.runtime import BACKENDS, why_unavailable
from tests.cli.conftest import Command


def test_models_have_the_exact_parameters_and_macs(
    command: Command, counts: dict[str, Any]
) -> None:
    listed = json.loads(command("models", "--json").out)
    published = {
        entry["variant"]: entry
        for entry in counts["configurations"]
        if entry.get("variant") in listed
        and entry["classes"] == listed[entry["variant"]]["classes"]
    }
    assert {"densenet121", "densenet161", "densenet169", "densenet201"} < published.keys()
    assert len(published) >= 15
    for name, entry in published.items():
        assert listed[name]["parameters"] == entry["parameters"], name
        assert listed[name]["macs"] == entry["macs"], name
        assert listed[name]["block_layers"] == entry["block_layers"], name


def test_models_table_is_not_cut(command: Command) -> None:
    done = command("models")
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if line.startswith("densenet121 "))
    assert line.split() == [
        *("densenet121", "121", "32", "6,12,24,16", "3x224x224", "1000"),
        *("7,978,856", "2,834,161,664"),
    ]
    assert "densenet[-b|-c|-bc]-DEPTH-GROWTH" in done.out


def test_published_recipes_are_listed_with_their_schedules(command: Command) -> None:
    done = command("models", "--recipes")
    assert done.code == 0
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.startswith("paper/")}
    assert len(rows) == len(published_recipes())
    assert "0.1, a tenth from 150, 225" in rows["paper/densenet-bc-100-12/c10+"]
    assert rows["paper/densenet-bc-100-12/c10+"].split()[1:3] == ["300", "64"]
    assert rows["paper/densenet-bc-100-12/c10+"].split()[-2:] == ["0", "4.51"]
    assert "a tenth from 30, 60, 90" in rows["paper/densenet161/imagenet"]
    assert "0.1, cosine" in rows["paper/densenet264-k48/imagenet-cosine"]
    assert rows["paper/densenet-bc-190-40/svhn"].split()[-1] == "-"


def test_published_recipes_as_json_are_whole(command: Command) -> None:
    told = json.loads(command("models", "--recipes", "--json").out)
    assert told.keys() == published_recipes().keys()
    found = told["paper/densenet-40-12/c100"]
    assert (found["error"], found["source"]) == (27.55, "arXiv 1608.06993v5, table 2")
    recipe = published_recipes()["paper/densenet-40-12/c100"].recipe
    expected = recipe.to_dict()
    for part in ("model", "data", "train"):
        assert found[part] == json.loads(json.dumps(expected[part]))


def test_doctor_gives_a_reason_for_everything_that_does_not_work(command: Command) -> None:
    told = json.loads(command("doctor", "--json").out)
    assert told["run"] == {name: why_unavailable(name) for name in BACKENDS}
    assert told["build"].keys() == {"tensorrt-rtx", "tensorrt"}
    assert (told["build"]["tensorrt-rtx"] == "") == (find_spec("tensorrt_rtx") is not None)
    assert told["environment"]["cores"] >= 1
    text = command("doctor").out
    for name, reason in told["run"].items():
        assert f"run {name}: {'no: ' + reason if reason else 'yes'}\n" in text
    for name, reason in told["build"].items():
        assert f"build {name} engines: {'no: ' + reason if reason else 'yes'}\n" in text


def test_doctor_tells_versions_and_what_the_caches_hold(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inform, "default_cache", lambda: tmp_path)
    (tmp_path / "timing").mkdir()
    (tmp_path / "timing" / "one.cache").write_bytes(b"12345")
    told = json.loads(command("doctor", "--json").out)
    assert told["cache"] == {"folder": str(tmp_path), "engines": 0, "bytes": 5}
    assert told["environment"]["packages"].items() <= told["packages"].items()
    for name, found in told["packages"].items():
        assert metadata.version(name) == found
    assert told["no_gpu"] == _cuda.why_no_device()
    text = command("doctor").out
    assert (f"GPU: {told['no_gpu']}\n" in text) == bool(told["no_gpu"])
    assert f"cache: {tmp_path}, 0 engines, 0.00 MB\n" in text


def test_doctor_lists_gpus(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"name": "NVIDIA L4", "compute_capability": "8.9", "driver": "580.65"}
    monkeypatch.setattr(environment, "gpus", lambda: [gpu])
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "")
    text = command("doctor").out
    assert "GPU 0: name NVIDIA L4, compute capability 8.9, driver 580.65\n" in text
    assert "GPU: " not in text
