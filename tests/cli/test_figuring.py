"""figure: every name, its two files, and refusals that leave the files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from densenet_deploy.data import ASSETS
from tests.cli.conftest import Command
from tests.figures.test_memory import SWEEP, results

NAMES = (
    *("table2", "table3", "accuracy", "small-nets", "wide-nets"),
    *("feature-reuse", "training", "memory"),
)


def test_names_are_listed_with_a_sentence_each(command: Command) -> None:
    done = command("figure")
    assert (done.code, done.err) == (0, "")
    listed = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert tuple(name for name, _ in listed) == NAMES
    assert all(sentence.endswith(".") for _, sentence in listed)
    assert len({sentence for _, sentence in listed}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure(command: Command, tmp_path: Path, name: str) -> None:
    done = command("figure", name, "--out", tmp_path)
    assert (done.code, done.err) == (0, "")
    png, data = tmp_path / f"{name}.png", tmp_path / f"{name}.json"
    assert sorted(tmp_path.iterdir()) == [data, png]
    assert done.out.endswith(f"{png}\n{data}\n")
    said = json.loads(data.read_text(encoding="utf-8"))
    assert done.out.startswith(said["title"]) and said["caption"] in done.out


@pytest.mark.parametrize("name", NAMES)
def test_help_is_in_words(command: Command, name: str) -> None:
    done = command("figure", name, "--help")
    options = done.out.partition("Options:\n")[2]
    assert done.code == 0 and "--out PATH" in options and "--json" in options
    assert "<list[" not in options and "range>" not in options, "a type of Python's"


def test_a_table_is_printed_whole(command: Command, tmp_path: Path) -> None:
    out = command("figure", "table2", "--out", tmp_path).out
    (line,) = (line for line in out.splitlines() if "densenet-bc-190-40" in line)
    assert line.split() == [
        *("DenseNet-BC", "(k", "=", "40)", "190", "25.6M", "-", "3.46", "-", "17.18", "-"),
        *("densenet-bc-190-40", "25,624,430", "9,301,945,740", "yes"),
    ]


def test_json_says_what_the_file_holds(command: Command, tmp_path: Path) -> None:
    picture = tmp_path / "deep" / "three.png"
    done = command("figure", "table3", "--out", picture, "--json")
    told = json.loads(done.out)
    assert told.pop("files") == [str(picture), str(picture.with_suffix(".json"))]
    assert told == json.loads(picture.with_suffix(".json").read_text())


def test_the_usual_place(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("figure", "wide-nets").code == 0
    assert (tmp_path / "work" / "figures" / "wide-nets.png").is_file()


def test_feature_reuse_of_a_file(command: Command, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    shutil.copyfile(ASSETS / "fashion-mnist.safetensors", weights)
    done = command("figure", "feature-reuse", weights, "--out", tmp_path / "out", "--json")
    told, default = (
        json.loads(done.out),
        command("figure", "feature-reuse", "--json", "--out", tmp_path),
    )
    assert told["weights"] == "mine.safetensors"
    assert told["blocks"] == json.loads(default.out)["blocks"]


def test_two_logs(command: Command, tmp_path: Path) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    log.parent.mkdir()
    shutil.copyfile(ASSETS / "fashion-mnist.training.jsonl", log)
    shipped = ASSETS / "fashion-mnist.training.jsonl"
    done = command("figure", "training", log.parent, shipped, "--out", tmp_path, "--json")
    assert list(json.loads(done.out)["runs"]) == ["run", "fashion-mnist"]


def test_measured_memory(command: Command, tmp_path: Path) -> None:
    path = results(tmp_path / "training-memory.json", SWEEP)
    done = command("figure", "memory", path, "--out", tmp_path / "out", "--json")
    assert len(json.loads(done.out)["measured"]) == 2


def test_bad_input_leaves_what_was_drawn(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("feature-reuse", "training", "memory"):
        assert command("figure", name, "--out", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\0" * 50)
    text = tmp_path / "text.jsonl"
    text.write_text("not a log")
    for name, given, said in (
        ("feature-reuse", damaged, "is not a valid safetensors file"),
        ("feature-reuse", tmp_path / "none", "does not exist"),
        ("training", text, "line 1 is not JSON"),
        ("memory", text, "holds no memory against depth"),
    ):
        refusal = command("figure", name, given, "--out", out).refusal()
        assert said in refusal and str(given) in refusal
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_results_are_not_replaced_by_their_own_figure(command: Command, tmp_path: Path) -> None:
    path = results(tmp_path / "memory.json", SWEEP)
    before = path.read_bytes()
    refusal = command("figure", "memory", path, "--out", tmp_path).refusal()
    assert "is the file it is drawn from" in refusal
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_usage(command: Command, tmp_path: Path) -> None:
    assert command("figure", "nonsense").code == 2
    refusal = command("figure", "table2", "--out", tmp_path / "x.pdf").refusal()
    assert "expected a directory or a .png file" in refusal
    done = command("figure", "feature-reuse", "--model", "nonsense", "--out", tmp_path)
    assert (done.code, done.out) == (2, "") and "unknown model 'nonsense'" in done.err
    assert list(tmp_path.iterdir()) == []
