"""Training curves: what a log may hold, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy.errors import DataError
from densenet_deploy.figures.training import SHIPPED, Epoch, _epoch, read_log, training
from tests.figures.conftest import Drawn


def record(epoch: int, **changed: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "loss": 1.0 / epoch,
        "train_top1": 50.0 + epoch,
        "evaluation_top1": 49.0 + epoch,
        "evaluation_images": 10,
        "learning_rate": 0.1,
        "seconds": 2.0,
    } | changed


def log(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def test_the_shipped_logs_are_the_default(drawn: Drawn) -> None:
    picture, files = training()
    assert files == SHIPPED
    runs = drawn(picture)["runs"]
    epochs = runs["fashion-mnist"]
    assert (len(epochs), len(runs["fashion-mnist-100"])) == (25, 30)
    assert epochs[0] == {
        **{"epoch": 1, "loss": 0.82849, "train_top1": 70.881},
        **{"evaluation_top1": 79.44, "learning_rate": 0.099893},
    }
    assert epochs[-1]["evaluation_top1"] == 94.77
    assert picture.lines[0] == ("fashion-mnist", "25", "0.1016", "96.47", "94.77")
    assert picture.lines[1][0::4] == ("fashion-mnist-100", "95.05")


def test_several_logs_lie_over_each_other(tmp_path_factory: Any, drawn: Drawn) -> None:
    folder = tmp_path_factory.mktemp("logs")
    one = log(folder / "one" / "metrics.jsonl", record(1), record(2))
    two = log(folder / "two" / "metrics.jsonl", record(1, evaluation_top1=None), record(3))
    three = log(folder / "three.jsonl", record(1))
    picture, files = training([one, two.parent, three])
    assert files == (one, two, three)
    runs = drawn(picture)["runs"]
    assert list(runs) == ["one", "two", "three"]
    assert [epoch["evaluation_top1"] for epoch in runs["two"]] == [None, 52.0]
    assert picture.title == "Training"


def test_many_long_logs(tmp_path_factory: Any, drawn: Drawn) -> None:
    folder = tmp_path_factory.mktemp("logs")
    long = [record(epoch, train_top1=50.0, evaluation_top1=60.0) for epoch in range(1, 60)]
    paths = [log(folder / f"run{index}.jsonl", *long) for index in range(9)]
    assert len(drawn(training(paths)[0])["runs"]) == 9


def test_logs_of_the_same_name_are_told_apart_by_path(tmp_path: Path) -> None:
    one, two = (
        log(tmp_path / "a" / "x.jsonl", record(1)),
        log(tmp_path / "b" / "x.jsonl", record(1)),
    )
    assert list(training([one, two])[0].data["runs"]) == [str(one), str(two)]
    with pytest.raises(DataError, match="named twice"):
        training([one, one])


def test_a_diverged_loss_is_a_gap(tmp_path_factory: Any, drawn: Drawn) -> None:
    path = tmp_path_factory.mktemp("logs") / "x.jsonl"
    log(path, record(1), record(2, loss=math.nan), record(3, loss=math.inf), record(4))
    losses = [epoch["loss"] for epoch in drawn(training([path])[0])["runs"]["x"]]
    assert losses == [1.0, None, None, 0.25]


def test_a_record_may_lack_an_accuracy_and_have_more(tmp_path: Path) -> None:
    path = log(tmp_path / "x.jsonl", {"epoch": 1, "loss": 2, "gradient_norm": [1, 2]})
    assert read_log(path) == [Epoch(1, 2.0, None, None, None)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no epoch"),
        ("\n\n", "holds no epoch"),
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 has no epoch and loss"),
        ('{"epoch": 1}', "no epoch and loss"),
        ('{"epoch": "1", "loss": 1}', "no epoch and loss"),
        ('{"epoch": true, "loss": 1}', "no epoch and loss"),
        ('{"epoch": 0, "loss": 1}', "no epoch and loss"),
        ('{"epoch": 1, "loss": "low"}', "loss is 'low'; expected a number"),
        ('{"epoch": 1, "loss": true}', "expected a number"),
        ('{"epoch": 1, "loss": 1, "train_top1": 101}', "expected a percentage"),
        ('{"epoch": 1, "loss": 1, "evaluation_top1": NaN}', "expected a percentage"),
        ('{"epoch": 2, "loss": 1}\n{"epoch": 2, "loss": 1}', "line 2: epoch 2 after 2"),
        ('{"epoch": 1, "loss": 1}\n{"epoch": 2, "lo', "line 2 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_malformed_logs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_log(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    binary = tmp_path / "x.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, reason in ((binary, "not UTF-8"), (tmp_path / "none", "No such file")):
        with pytest.raises(DataError, match=reason):
            read_log(path)
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        training([tmp_path])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
NAMES = st.sampled_from(["epoch", "loss", "train_top1", "evaluation_top1", "learning_rate", "x"])


@given(st.dictionaries(NAMES, VALUES) | VALUES)
def test_any_line_is_read_or_refused(value: Any) -> None:
    try:
        epoch = _epoch(json.dumps(value), "here")
    except DataError as error:
        assert "here" in str(error)
        return
    assert epoch.epoch == value["epoch"] >= 1
    for name in ("loss", "train_top1", "evaluation_top1", "learning_rate"):
        number = getattr(epoch, name)
        assert number is None or number == value[name]
