"""What a recipe starts from: weights, the images that calibrate and test them, and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densenet_deploy import checkpoint, data
from densenet_deploy.data import ImageSet
from densenet_deploy.export import calibrate_batchnorm
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.preprocess import IMAGENET, Preprocessing
from densenet_deploy.recipe import Recipe
from densenet_deploy.spec import variant

_TEST_IMAGES = 16  # synthetic ones
_BATCHNORM_IMAGES = 32


@dataclass(frozen=True)
class Source:
    """A network with everything its artefact needs to know about it.

    Attributes:
        model: With its weights, in evaluation mode.
        preprocessing: From an image to its input.
        labels: Class names; empty where unknown.
        calibration: Training images; empty where there are none.
        test: Test images.
        speed_only: The weights are seeded noise.
    """

    model: DenseNet
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    calibration: ImageSet
    test: ImageSet
    speed_only: bool


def prepare(recipe: Recipe) -> Source:
    """Loads weights and images; without weights, seeds and calibrates them.

    Raises:
        CheckpointError: The weights are missing or do not fit.
        DataError: The images are missing.
    """
    if not recipe.model.weights:
        return _seeded(recipe)
    path = weights_path(recipe.model.weights)
    info = checkpoint.read_info(path)
    if info is not None and not recipe.model.variant:
        spec = info.spec
    else:
        spec = variant(recipe.model.variant, recipe.model.input_shape, recipe.model.classes)
    model = DenseNet(spec)
    checkpoint.load_weights(path, model)
    preprocessing = info.preprocessing if info else preprocessing_for(recipe, spec.input_shape)
    if recipe.data.name == "synthetic":  # never calibrates trained weights
        test = data.synthetic(_TEST_IMAGES, preprocessing)
        calibration = data.none(preprocessing)
    else:
        test = data.load(recipe.data, "test", preprocessing)
        calibration = data.load(recipe.data, "train", preprocessing)
    labels = info.labels if info else test.classes
    return Source(model.eval(), preprocessing, labels, calibration, test, speed_only=False)


def _seeded(recipe: Recipe) -> Source:
    config = recipe.model
    model = create_model(config.variant, config.input_shape, config.classes, config.seed)
    preprocessing = preprocessing_for(recipe, model.spec.input_shape)
    images = data.synthetic(max(recipe.quantize.images, 1), preprocessing, config.seed)
    calibrate_batchnorm(model, images.take(min(len(images), _BATCHNORM_IMAGES)), preprocessing)
    test = data.synthetic(_TEST_IMAGES, preprocessing, config.seed + 1)
    return Source(model.eval(), preprocessing, (), images, test, speed_only=True)


def preprocessing_for(recipe: Recipe, input_shape: tuple[int, int, int]) -> Preprocessing:
    known = data.PREPROCESSING.get(recipe.data.name)
    for candidate in filter(None, (known, IMAGENET)):
        if candidate.input_shape == input_shape:
            return candidate
    channels, height, width = input_shape
    return Preprocessing(height, width, mean=(0.5,) * channels, std=(0.25,) * channels)


def weights_path(name: str) -> Path:
    """A shipped checkpoint's path by its name, or the path itself."""
    shipped = data.ASSETS / f"{name}.safetensors"
    return shipped if shipped.is_file() else Path(name)
