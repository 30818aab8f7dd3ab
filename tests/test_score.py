"""An accuracy suite from its file to verdicts, on few images of the sample in the package."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densenet_deploy import score as scoring
from densenet_deploy.choose import find_recipe
from densenet_deploy.errors import BackendError, DataError, RecipeError
from densenet_deploy.recipe import DataConfig
from densenet_deploy.score import Scores, score
from densenet_deploy.source import prepare
from densenet_deploy.suite import AccuracyContract, AccuracySuite

pytestmark = pytest.mark.usefixtures("one_thread")
TEST_IMAGES, IMAGES = 150, 24
RECIPE = """
name = "few"
description = "The shipped weights, calibrated on few images"

[quantize]
images = 24
batch_size = 12
method = "minmax"
"""


@pytest.fixture(scope="module")
def few_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "few.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def suite_of(recipe: Path | str, **changes: Any) -> AccuracySuite:
    """A contract that only nonsense breaks."""
    suite = AccuracySuite(
        name="small",
        recipe=str(recipe),
        targets=("openvino", "tensorrt-rtx"),
        seeds=(0, 1),
        contract=AccuracyContract(mean_drop=5, upper_drop=20, agreement=90, agreement_goal=100),
        data=DataConfig(test_images=TEST_IMAGES),
        threads=1,
    )
    return replace(suite, **changes)


@pytest.fixture(scope="module")
def found(few_recipe: Path) -> Scores:
    return score(suite_of(few_recipe))


def test_every_target_is_scored_with_every_seed(found: Scores) -> None:
    rows = [(one.target, one.seed) for one in found.scored]
    assert rows == [(t, s) for t in ("openvino", "tensorrt-rtx") for s in (0, 1)]
    assert [mean.target for mean in found.averaged] == ["openvino", "tensorrt-rtx"]
    assert [one.seed for one in found.averaged[1].scored] == [0, 1]
    assert found and all(mean.verdict == "pass" for mean in found.averaged)
    assert len({one.graph_sha256 for one in found.scored}) == 4
    assert len(found.records) == 6 and found.records[2] is found.averaged[0]


def test_the_shipped_weights_stay_close(found: Scores) -> None:
    for one in found.scored:
        assert one.drop.images == TEST_IMAGES and one.agreement > 95 and one.sqnr > 15
        assert 0 < one.divergence < 0.05 and one.nonfinite == 0
        assert one.top1 == pytest.approx(found.reference["top1"] - one.drop.points)


def test_the_reference_is_as_accurate_as_pytorch(found: Scores) -> None:
    recipe = find_recipe("fashion-mnist")
    source = prepare(replace(recipe, data=DataConfig(test_images=TEST_IMAGES)))
    with torch.inference_mode():
        images = torch.from_numpy(source.preprocessing.normalise(source.test.pixels))
        answers = source.model(images).argmax(1).numpy()
    assert found.reference["top1"] == pytest.approx(100 * (answers == source.test.labels).mean())
    digest = hashlib.sha256(source.test.pixels.tobytes()).hexdigest()
    assert found.reference["images"]["pixels_sha256"] == digest


def test_each_seed_draws_its_own_training_images(found: Scores, sample: Any) -> None:
    train = sample[0]
    for record in found.calibrations:
        order = np.random.default_rng(record["seed"]).permutation(len(train))
        rows = np.sort(order[:IMAGES])
        assert record["rows"] == rows.tolist() and record["images"] == IMAGES
        assert record["pixels_sha256"] == hashlib.sha256(train.pixels[rows].tobytes()).hexdigest()


def test_the_record_is_json(found: Scores) -> None:
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["schema_version"] == 1 and told["passed"] is True
    assert told["suite"]["kind"] == "accuracy" and told["environment"]["cores"]
    assert told["model"]["speed_only"] is False and told["model"]["quantize"]["images"] == IMAGES
    for row in told["results"]:
        assert row["backend"] == ("openvino" if row["target"] == "openvino" else "onnxruntime")
        assert len(row["graph_sha256"]) == 64 and row["quantize_seconds"] > 0
    assert [row["verdict"] for row in told["means"]] == ["pass", "pass"]


def test_other_seeds_than_the_suites_decide_no_mean(few_recipe: Path) -> None:
    strict = AccuracyContract(mean_drop=-50, upper_drop=100, agreement=0)
    made = score(suite_of(few_recipe, contract=strict), ["onnxruntime"], [5, 5])
    assert [(one.target, one.seed) for one in made.scored] == [("onnxruntime", 5)]
    assert [mean.verdict for mean in made.averaged] == ["not decided"] and made
    complete = replace(made.averaged[0], complete=True)  # no drop is as low as that
    assert complete.verdict == "fail" and not replace(made, averaged=(complete,))


def test_what_cannot_be_scored(
    few_recipe: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no labels"):
        score(suite_of(tiny_recipe))
    with pytest.raises(DataError, match="no Fashion-MNIST files"):
        score(suite_of(few_recipe, data=DataConfig(sample=False, directory=str(tmp_path))))
    with pytest.raises(RecipeError, match="unknown model 'vgg16'"):
        score(suite_of("vgg16"))
    monkeypatch.setattr(scoring, "why_unavailable", lambda backend: f"no {backend}")
    with pytest.raises(BackendError, match="small: onnxruntime cannot run here"):
        score(suite_of(few_recipe))
