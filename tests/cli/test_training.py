"""What train's options make of a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from densenet_deploy import launch
from densenet_deploy.cli import training
from densenet_deploy.cli.training import _chosen
from densenet_deploy.errors import RecipeError
from densenet_deploy.schedule import learning_rate
from tests.cli.conftest import Command


@pytest.mark.parametrize("name", ["fashion-mnist", "paper/densenet-40-12/c10"])
def test_a_recipe_that_is_shortened_keeps_its_warm_up_in_proportion(name: str) -> None:
    whole, short = (_chosen(name, epochs, [], "").train for epochs in (None, 5))
    for share in (0.0, 0.02, 0.04, 0.25, 0.5, 0.6, 0.75, 0.9, 0.999):
        expected = learning_rate(whole, share * whole.epochs)
        assert learning_rate(short, share * 5) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("precision=bf16", "precision", "bf16"),
        ('precision = "fp16"', "precision", "fp16"),
        ("initialisation=fan-in", "initialisation", "fan-in"),
        ("memory_efficient=false", "memory_efficient", False),
        ("learning_rate=1", "learning_rate", 1.0),
        ("weight_decay=5e-4", "weight_decay", 5e-4),
        ("drops=[0.25, 0.5]", "drops", (0.25, 0.5)),
        ("accumulate=8", "accumulate", 8),
    ],
)
def test_a_published_recipe_is_varied(setting: str, key: str, value: Any) -> None:
    published = _chosen("paper/densenet121/imagenet", None, [], "")
    varied = _chosen("paper/densenet121/imagenet", None, [setting], "")
    assert varied == replace(published, train=replace(published.train, **{key: value}))
    assert varied != published and type(getattr(varied.train, key)) is type(value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["precision"], r"--set precision; expected KEY=VALUE"),
        (["precison=fp32"], r"--set: unknown key 'precison' .*precision"),
        (["precision=fp64"], r"--set: train precision is 'fp64', expected .*fp16"),
        (["epochs=many"], r"--set: train epochs is 'many', expected an integer"),
        (["accumulate=7"], r"--set: train: accumulate must divide batch_size 256"),
        (["sede=1", "flip=maybe"], r"--set: 2 problems"),
        (["epochs=1\ngarbage = ["], r"--set: train epochs is"),
    ],
)
def test_what_cannot_be_set_is_said(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _chosen("paper/densenet121/imagenet", None, settings, "")


def test_epochs_shorten_what_is_set() -> None:
    short = _chosen("fashion-mnist", 10, ["epochs=40", "warmup_epochs=2"], "").train
    assert (short.epochs, short.warmup_epochs) == (10, 0.5)


def test_every_process_is_told_everything(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What several processes are started with means the same recipe."""
    given: list[Any] = []
    monkeypatch.setattr(launch, "launch", lambda *arguments: given.append(arguments) or 0)
    options = ("--set", "precision=fp32", "--epochs", 3, "--set", "drops=[0.5]", "--device", "cpu")
    done = command("train", "fashion-mnist", *options, "--processes", 2, "-q", "--out", "here")
    assert (done.code, done.err) == (0, "")
    ((arguments, processes, _),) = given
    assert processes == 2
    kept: list[Any] = []
    monkeypatch.setattr(training, "_train", lambda *arguments: kept.append(arguments))
    for once in (arguments, ["train", "fashion-mnist", *options, "-q", "--out", "here"]):
        assert command(*once).code == 0
    assert kept[0] == kept[1] and kept[0][0].train.drops == (0.5,)
