"""A study from its file to a table, for real on two tiny networks and few images."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy import study as studying
from densenet_deploy.checkpoint import read_info
from densenet_deploy.environment import cpu_name, software
from densenet_deploy.errors import DataError, RecipeError
from densenet_deploy.recipe import load_recipe
from densenet_deploy.spec import variant
from densenet_deploy.study import Study, check_alike, study
from densenet_deploy.study_suite import StudySuite

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORKS = {"dense": "densenet-bc-10-4", "residual": "resnet-preact-8-4"}
RECIPE = """
name = "{name}"

[model]
variant = "{variant}"
input_shape = [1, 28, 28]
weights = ""

[data]
name = "fashion-mnist"
train_images = 64
test_images = 50

[train]
epochs = 2
batch_size = 32
precision = "fp32"
flip = false
shift = 0
"""


def write(folder: Path, **changes: str) -> list[str]:
    """The recipes of the study, with some text replaced in the second."""
    paths = []
    for name, network in NETWORKS.items():
        text = RECIPE.format(name=name, variant=network)
        for before, after in changes.items() if paths else ():
            assert before in text
            text = text.replace(before, after)
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        paths.append(str(folder / f"{name}.toml"))
    return paths


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def suite(place: Path) -> StudySuite:
    return StudySuite("tiny", tuple(write(place)), (0, 5))


@pytest.fixture(scope="module")
def found(suite: StudySuite, place: Path) -> Study:
    return study(suite, place / "runs")


def test_every_network_is_trained_from_every_seed(found: Study, place: Path) -> None:
    assert [one.spec.name for one in found.learned] == list(NETWORKS.values())
    for one in found.learned:
        assert [run.seed for run in one.runs] == [0, 5]
        assert one.runs[0].log != one.runs[1].log
        for run in one.runs:
            folder = place / "runs" / f"{one.recipe.name}-seed{run.seed}"
            lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            assert [json.loads(line) for line in lines] == list(run.log)
            assert run.top1 == run.log[1]["evaluation_top1"] and len(run.log) == 2
            assert {record["evaluation_images"] for record in run.log} == {50}
            info = read_info(folder / "model.safetensors")
            assert info is not None and info.spec == one.spec
            assert info.training["config"]["seed"] == run.seed
            assert info.training["images"].startswith("64 of ")
            assert run.trained_by == (software() | {"device": cpu_name()},)


def test_the_record_holds_every_log_and_their_statistics(found: Study) -> None:
    told = json.loads(json.dumps(found.to_dict()))
    assert bool(found) and told["schema_version"] == 2 and told["environment"]["cores"]
    for record in told["recipes"]:
        spec = variant(record["model"], (1, 28, 28), 10)
        assert (record["parameters"], record["macs"]) == (spec.parameters, spec.macs)
        top1 = [run["log"][-1]["evaluation_top1"] for run in record["runs"]]
        assert record["mean_top1"] == pytest.approx(sum(top1) / 2)
        assert record["std_top1"] == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
        assert record["recipe"]["data"]["train_images"] == 64


def test_what_was_trained_is_not_trained_again(
    found: Study, suite: StudySuite, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = place / "runs" / "residual-seed5" / "model.safetensors"
    before = weights.read_bytes()
    monkeypatch.setattr("densenet_deploy.train._Learner.step", lambda *_: pytest.fail("trained"))
    again = study(suite, place / "runs", recipes=suite.recipes[1:], seeds=(5,))
    assert [run.log for one in again.learned for run in one.runs] == [found.learned[1].runs[1].log]
    assert weights.read_bytes() == before
    assert again.suite.seeds == (5,) and again.suite.recipes == suite.recipes[1:]
    assert again.learned[0].std is None and again.to_dict()["recipes"][0]["std_top1"] is None


def test_one_seed_of_all_networks_comes_first(
    suite: StudySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int, str]] = []

    def train(recipe: Any, out: Path, track: Any) -> list[dict[str, Any]]:
        trained.append((recipe.name, recipe.train.seed, recipe.data.directory))
        return [{"evaluation_top1": float(len(trained)), "seconds": 1.5}] * 2

    monkeypatch.setattr(studying, "train_model", train)
    monkeypatch.setattr(studying, "_trained_by", lambda folder: ())
    found = study(suite, tmp_path, seeds=(1, 2, 3), directory="there")
    order = [(name, seed, "there") for seed in (1, 2, 3) for name in NETWORKS]
    assert trained == order
    assert [one.mean for one in found.learned] == [3, 4]
    assert found.learned[0].std == statistics.stdev([1, 3, 5])
    assert found.learned[0].runs[0].seconds == 3


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("epochs = 2", "epochs = 3", "residual differs from dense in train.epochs"),
        ("train_images = 64", "", "residual differs from dense in data.train_images"),
    ],
)
def test_recipes_that_differ_in_more_than_models(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    suite = StudySuite("tiny", tuple(write(tmp_path, **{before: after})), (0,))
    with pytest.raises(RecipeError, match=f"{message}; expected recipes that differ in their mod"):
        study(suite, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_what_is_named_twice_is_refused(suite: StudySuite, tmp_path: Path) -> None:
    for repeated in ({"seeds": (1, 1)}, {"recipes": (suite.recipes[0],) * 2}):
        with pytest.raises(RecipeError, match="must not be empty, and each be named once"):
            study(suite, tmp_path / "runs", **repeated)  # type: ignore[arg-type]
    paths = write(tmp_path, residual="dense")
    with pytest.raises(RecipeError, match="dense is the name of two recipes"):
        study(suite, tmp_path / "runs", recipes=paths)
    assert not (tmp_path / "runs").exists()


def test_a_published_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(recipe: Any, out: Path, track: Any) -> list[dict[str, Any]]:
        trained.append(recipe.model.variant)
        return [{"evaluation_top1": 1.0, "seconds": 1.0}]

    monkeypatch.setattr(studying, "train_model", train)
    monkeypatch.setattr(studying, "_trained_by", lambda folder: ())
    nets = ("densenet-40-12", "densenet-100-12")
    study(StudySuite("small", tuple(f"paper/{net}/c10" for net in nets), (0,)), tmp_path)
    assert trained == list(nets)


def test_nothing_is_selected(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path)[0])
    for changes in ({"validation_images": 8}, {"validation_images": 8, "select": "best"}):
        chosen = replace(recipe, train=replace(recipe.train, **changes))  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match="dense holds out validation images or selects"):
            check_alike([chosen, chosen])


def test_too_few_images(tmp_path: Path) -> None:
    paths = write(tmp_path, **{"train_images = 64": "train_images = 513"})
    with pytest.raises(DataError, match=r"fewer than data\.train_images = 513"):
        study(StudySuite("tiny", (paths[1],), (0,)), tmp_path / "runs")
