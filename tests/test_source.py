"""What a recipe starts from: trained weights with real images, or seeded ones, and never a mix."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from densenet_deploy import data
from densenet_deploy.choose import choose_recipe
from densenet_deploy.data import ASSETS
from densenet_deploy.errors import CheckpointError, DataError, RecipeError
from densenet_deploy.model import create_model
from densenet_deploy.preprocess import CIFAR10, FASHION_MNIST, IMAGENET
from densenet_deploy.recipe import DataConfig, ModelConfig, Recipe
from densenet_deploy.source import Source, load_model, prepare, preprocessing_for, weights_path
from tests.conftest import Finished
from tests.test_checkpoint import legacy_names, randomise

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = ASSETS / "fashion-mnist.safetensors"
TINY = ModelConfig("densenet-bc-10-4", (1, 12, 12), 5, weights="", seed=3)
SYNTHETIC = DataConfig(name="synthetic")


def recipe(model: ModelConfig = TINY, data: DataConfig = SYNTHETIC, images: int = 40) -> Recipe:
    made = Recipe("made here", model=model, data=data)
    return replace(made, quantize=replace(made.quantize, images=images))


def test_the_shipped_weights_come_with_all_they_need(fashion_recipe: Recipe) -> None:
    source = prepare(fashion_recipe)
    assert not source.speed_only
    assert not source.model.training
    assert source.preprocessing == FASHION_MNIST
    assert len(source.labels) == 10 and source.labels == source.test.classes
    assert (len(source.calibration), len(source.test)) == (512, 100)
    assert "train" in source.calibration.source and "test" in source.test.source
    assert source.training
    published = load_file(SHIPPED)
    for name, tensor in source.model.state_dict().items():
        torch.testing.assert_close(tensor, published[name], rtol=0, atol=0)


def test_calibration_images_are_drawn_by_seed_and_selection_takes_others(
    fashion_recipe: Recipe,
) -> None:
    def drawn(seed: int) -> Source:
        config = replace(fashion_recipe.quantize, images=100, seed=seed)
        return prepare(replace(fashion_recipe, quantize=config))

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first.rows == again.rows != other.rows
    assert len(first.calibration) == 100 and len(first.selection) == 412
    used = {image.tobytes() for image in first.calibration.pixels}
    assert not used & {image.tobytes() for image in first.selection.pixels}
    everything = data.load(fashion_recipe.data, "train", FASHION_MNIST)
    np.testing.assert_array_equal(first.calibration.pixels, everything.pixels[list(first.rows)])


def test_all_images_calibrate_where_there_are_no_more(fashion_recipe: Recipe) -> None:
    source = prepare(fashion_recipe)
    assert source.rows == tuple(range(512)) and len(source.selection) == 0


def test_a_path_means_the_same_as_the_name(tmp_path: Path, fashion_recipe: Recipe) -> None:
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes(SHIPPED.read_bytes())
    # and without a variant the file's header says what it is
    model = replace(fashion_recipe.model, weights=str(copy), variant="")
    source = prepare(replace(fashion_recipe, model=model))
    assert source.model.spec == prepare(fashion_recipe).model.spec
    assert weights_path("fashion-mnist") == SHIPPED
    assert weights_path(str(copy)) == copy


def test_synthetic_images_never_calibrate_trained_weights(fashion_recipe: Recipe) -> None:
    source = prepare(replace(fashion_recipe, data=SYNTHETIC))
    assert len(source.calibration) == 0
    assert len(source.test) == 16 and source.test.labels.max() == -1
    assert not source.speed_only
    assert len(source.labels) == 10


def test_without_weights_it_is_for_speed_only() -> None:
    source = prepare(recipe())
    assert source.speed_only
    assert not source.model.training
    assert source.labels == ()
    assert source.training == {"seeded weights": 3}
    assert source.model.spec.input_shape == (1, 12, 12) and source.model.spec.classes == 5
    assert (len(source.calibration), len(source.test)) == (40, 16)
    assert not np.array_equal(source.calibration.pixels[:16], source.test.pixels)


def test_seeded_weights_are_the_same_every_time_and_differ_by_seed() -> None:
    first, again = prepare(recipe()), prepare(recipe())
    other = prepare(recipe(replace(TINY, seed=4)))
    for name, tensor in first.model.state_dict().items():
        torch.testing.assert_close(tensor, again.model.state_dict()[name], rtol=0, atol=0)
    np.testing.assert_array_equal(first.calibration.pixels, again.calibration.pixels)
    weight = "features.conv0.weight"
    assert not torch.equal(first.model.state_dict()[weight], other.model.state_dict()[weight])
    assert not np.array_equal(first.test.pixels, other.test.pixels)


def test_batchnorm_of_seeded_weights_is_calibrated() -> None:
    """Every normalised activation has about mean 0 and deviation 1 on the images it was set by."""
    source = prepare(recipe(replace(TINY, variant="densenet-bc-40-12"), images=32))
    seen: dict[str, tuple[float, float]] = {}

    def note(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            seen[name] = (float(output.mean().abs()), float(output.std()))

        return hook

    for name, module in source.model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(note(name))
    inputs = source.preprocessing.normalise(source.calibration.pixels)
    with torch.inference_mode():
        logits = source.model(torch.from_numpy(inputs))
    assert len(seen) == 39
    for name, (mean, deviation) in seen.items():
        assert mean < 0.1 and 0.8 < deviation < 1.2, name
    assert float(logits.std()) > 0.01


def test_no_calibration_images_still_give_batchnorm_its_statistics() -> None:
    source = prepare(recipe(images=0))
    means = [
        module.running_mean.abs().max()
        for module in source.model.modules()
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None
    ]
    assert min(means) > 0


def test_a_speed_only_checkpoint_stays_one(tiny_run: Finished) -> None:
    weights = str(tiny_run.directory / "model.safetensors")
    source = prepare(recipe(ModelConfig("", (1, 12, 12), 10, weights)))
    assert source.speed_only
    assert len(source.calibration) == 0


def test_weights_that_are_not_there() -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors does not exist\. Check"):
        prepare(recipe(replace(TINY, weights="absent.safetensors")))
    with pytest.raises(CheckpointError, match="cifar-mnist does not exist"):
        prepare(recipe(replace(TINY, weights="cifar-mnist")))


def test_weights_of_another_architecture(fashion_recipe: Recipe) -> None:
    model = replace(fashion_recipe.model, variant="densenet-bc-100-12")
    with pytest.raises(CheckpointError, match="does not fit this architecture"):
        prepare(replace(fashion_recipe, model=model))
    with pytest.raises(RecipeError, match="unknown model 'vgg16'"):
        prepare(recipe(replace(TINY, variant="vgg16")))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Weights as another tool saves them: names and tensors, no header of ours."""
    path = tmp_path / "foreign.safetensors"
    save_file(create_model("densenet-bc-10-4", (1, 28, 28), 10).state_dict(), path)
    return path


def test_foreign_weights_take_the_data_sets_preprocessing_and_labels(foreign: Path) -> None:
    model = ModelConfig("densenet-bc-10-4", (1, 28, 28), 10, str(foreign))
    source = prepare(recipe(model, DataConfig(test_images=5)))
    assert source.preprocessing == FASHION_MNIST
    assert source.labels[0] == "T-shirt/top"
    assert source.training == {"file": "foreign.safetensors"}
    assert not source.speed_only


def test_foreign_weights_do_not_say_what_they_are(foreign: Path) -> None:
    model = ModelConfig("", (1, 28, 28), 10, str(foreign))
    with pytest.raises(CheckpointError, match=r"does not say which architecture.*\. Name it with"):
        prepare(recipe(model))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in torchvision's place and form; the cache is this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state = randomise(models.densenet121()).state_dict()
    torch.save(legacy_names(state), tmp_path / "made.pth")
    digest = sha256((tmp_path / "made.pth").read_bytes()).hexdigest()
    file = (tmp_path / "made.pth").rename(tmp_path / f"densenet121-{digest[:8]}.pth")
    entry = models.DenseNet121_Weights.IMAGENET1K_V1
    monkeypatch.setattr(entry.value, "url", file.as_uri())


@pytest.mark.usefixtures("published")
def test_published_weights_bring_their_preprocessing_and_labels() -> None:
    entry = models.DenseNet121_Weights.IMAGENET1K_V1
    source = prepare(choose_recipe("", "densenet121", "torchvision:IMAGENET1K_V1"))
    assert source.preprocessing == IMAGENET
    assert source.labels == tuple(entry.meta["categories"])
    assert source.training["weights"] == f"torchvision:{entry}"
    assert source.training["url"] == entry.url
    assert not source.speed_only and not source.model.training
    # for another input the share that the crop leaves out stays
    model = ModelConfig("densenet121", (3, 112, 112), 1000, f"torchvision:{entry}")
    smaller = load_model(recipe(model))
    assert smaller.preprocessing == replace(IMAGENET, height=112, width=112, resize=128)
    assert len(smaller.report.renamed) == 580
    with pytest.raises(CheckpointError, match=r"classifier\.bias \(\(1000,\), expected"):
        load_model(recipe(replace(model, classes=10)))


def test_a_model_without_weights_is_not_trained() -> None:
    with pytest.raises(CheckpointError, match=r"made here has no weights\. Name them with --w"):
        load_model(recipe())


def test_images_that_are_not_there(fashion_recipe: Recipe, tmp_path: Path) -> None:
    for config in (
        DataConfig(directory=str(tmp_path)),
        DataConfig(name="folder", directory=str(tmp_path)),
        DataConfig(test_images=100_000),
    ):
        with pytest.raises(DataError):
            prepare(replace(fashion_recipe, data=config))


def test_preprocessing_is_the_data_sets_where_the_shape_fits() -> None:
    cifar = recipe(data=DataConfig(name="cifar10"))
    assert preprocessing_for(cifar, (3, 32, 32)) == CIFAR10
    assert preprocessing_for(cifar, (3, 224, 224)) == IMAGENET
    assert preprocessing_for(recipe(), (3, 224, 224)) == IMAGENET
    for shape in ((3, 32, 40), (1, 28, 28)):
        assert preprocessing_for(recipe(), shape).input_shape == shape
    with pytest.raises(DataError, match=r"2 input channels; expected 1 \(grayscale\) or 3"):
        prepare(recipe(replace(TINY, input_shape=(2, 12, 12))))
