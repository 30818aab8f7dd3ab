"""What a recipe starts from: weights, the images that calibrate and test them, and labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from densenet_deploy import checkpoint, data, public_weights
from densenet_deploy.checkpoint import CheckpointInfo, LoadReport
from densenet_deploy.data import ImageSet
from densenet_deploy.errors import CheckpointError, DataError
from densenet_deploy.model import Network, build_network, create_model
from densenet_deploy.preprocess import IMAGENET, Preprocessing
from densenet_deploy.progress import Track, once, silent
from densenet_deploy.recipe import QuantizeConfig, Recipe
from densenet_deploy.spec import Architecture, variant

SELECTION_IMAGES = 2000
_TEST_IMAGES = 16  # synthetic ones
_BATCHNORM_IMAGES = 16
_SEEDED = "seeded weights"


@dataclass(frozen=True)
class Source:
    """A network with everything its artefact needs to know about it.

    Attributes:
        model: With its weights, in evaluation mode.
        preprocessing: From an image to its input.
        labels: Class names; empty where unknown.
        calibration: Training images; empty where there are none.
        rows: Which of the training images they are.
        selection: Other training images, to choose between ways to quantize; may be empty.
        test: Test images.
        training: How the weights came to be, for records.
        speed_only: The weights are seeded noise.
    """

    model: Network
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    calibration: ImageSet
    rows: tuple[int, ...]
    selection: ImageSet
    test: ImageSet
    training: dict[str, Any]
    speed_only: bool


@dataclass(frozen=True)
class Trained:
    """A network with its weights.

    Attributes:
        model: In evaluation mode.
        preprocessing: From an image to its input.
        labels: Class names; None where the weights do not say.
        training: How the weights came to be, for records.
        report: How the file was read.
    """

    model: Network
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    training: dict[str, Any]
    report: LoadReport


def prepare(recipe: Recipe, track: Track = silent) -> Source:
    """Loads weights and images; without weights, seeds and calibrates them.

    Raises:
        CheckpointError: The weights are missing or do not fit.
        DataError: The images are missing.
    """
    if not recipe.model.weights:
        return _seeded(recipe, track)
    loaded = load_model(recipe, track)
    preprocessing = loaded.preprocessing
    if recipe.data.name == "synthetic":  # never calibrates trained weights
        test, train = data.synthetic(_TEST_IMAGES, preprocessing), data.none(preprocessing)
    else:
        test = data.load(recipe.data, "test", preprocessing)
        wanted = recipe.quantize.images + SELECTION_IMAGES
        limit = wanted if recipe.data.name == "folder" else 0  # decoding files takes long
        train = data.load(recipe.data, "train", preprocessing, limit)
    calibration, rows, selection = draw(train, recipe.quantize)
    speed_only = _SEEDED in loaded.training  # the checkpoint of a speed-only bundle
    return Source(
        loaded.model,
        preprocessing,
        test.classes if loaded.labels is None else loaded.labels,
        calibration,
        rows,
        selection,
        test,
        loaded.training,
        speed_only,
    )


def load_model(recipe: Recipe, track: Track = silent) -> Trained:
    """The recipe's network with its weights, fetched where they are published ones.

    Raises:
        CheckpointError: The recipe has no weights, or they are missing or do not fit.
    """
    name = recipe.model.weights
    if not name:
        raise CheckpointError(f"{recipe.name} has no weights", remedy="name them with --weights")
    info: CheckpointInfo | None
    if public_weights.is_public(name):
        info, path = _published(recipe, track)
    else:
        path = weights_path(name)
        info = checkpoint.read_info(path)
    model = build_network(_architecture(recipe, path, info))
    report = checkpoint.load_weights(path, model)
    if info is None:
        preprocessing = preprocessing_for(recipe, model.spec.input_shape)
        return Trained(model.eval(), preprocessing, None, {"file": path.name}, report)
    return Trained(model.eval(), info.preprocessing, info.labels, info.training, report)


def _published(recipe: Recipe, track: Track) -> tuple[CheckpointInfo, Path]:
    """What a checkpoint of ours would say of published weights, and the fetched file."""
    weights = public_weights.describe(recipe.model.weights, recipe.model.variant)
    spec = variant(weights.model, recipe.model.input_shape, recipe.model.classes)
    path = public_weights.fetch(weights, track=track)
    training = {"weights": weights.name, "file": path.name, "url": weights.url}
    preprocessing = weights.preprocessing.at(*spec.input_shape[1:])
    return CheckpointInfo(spec, preprocessing, weights.labels, training), path


def draw(train: ImageSet, config: QuantizeConfig) -> tuple[ImageSet, tuple[int, ...], ImageSet]:
    """Calibration images drawn by the seed, their rows, and others for selection."""
    rows = train.draw(config.images, config.seed)
    others = np.setdiff1d(np.arange(len(train)), rows)[:SELECTION_IMAGES]
    calibration = train if len(rows) == len(train) else train.pick(rows)
    return calibration, tuple(map(int, rows)), train.pick(others)


def _architecture(recipe: Recipe, path: Path, info: CheckpointInfo | None) -> Architecture:
    if recipe.model.variant:
        return variant(recipe.model.variant, recipe.model.input_shape, recipe.model.classes)
    if info is None:
        raise CheckpointError(
            f"{path} does not say which architecture it belongs to",
            remedy="name it with --model, or model.variant in the recipe",
        )
    return info.spec


def _seeded(recipe: Recipe, track: Track) -> Source:
    config = recipe.model
    model = create_model(config.variant, config.input_shape, config.classes, config.seed)
    preprocessing = preprocessing_for(recipe, model.spec.input_shape)
    images = data.synthetic(max(recipe.quantize.images, 1), preprocessing, config.seed)
    others = data.synthetic(_TEST_IMAGES, preprocessing, config.seed + 2)
    normalising = images.take(min(len(images), _BATCHNORM_IMAGES))
    once(
        track,
        "Calibrating BatchNorm",
        lambda: calibrate_batchnorm(model, normalising, preprocessing),
    )
    test = data.synthetic(_TEST_IMAGES, preprocessing, config.seed + 1)
    training = {_SEEDED: config.seed}
    rows = tuple(range(len(images)))
    return Source(
        model.eval(), preprocessing, (), images, rows, others, test, training, speed_only=True
    )


def preprocessing_for(recipe: Recipe, input_shape: tuple[int, int, int]) -> Preprocessing:
    """Preprocessing of the data set or of ImageNet where the input shape fits, else a plain one.

    Raises:
        DataError: Images do not have so many channels.
    """
    known = data.PREPROCESSING.get(recipe.data.name)
    for candidate in filter(None, (known, IMAGENET)):
        if candidate.input_shape == input_shape:
            return replace(candidate, interpolation=recipe.data.interpolation)
    channels, height, width = input_shape
    if channels not in (1, 3):
        raise DataError(f"{channels} input channels", expected="1 (grayscale) or 3 (RGB)")
    half, quarter = (0.5,) * channels, (0.25,) * channels
    return Preprocessing(
        height, width, mean=half, std=quarter, interpolation=recipe.data.interpolation
    )


def weights_path(name: str) -> Path:
    """A shipped checkpoint's path by its name, or the path itself."""
    shipped = data.ASSETS / f"{name}.safetensors"
    return shipped if shipped.is_file() else Path(name)


def calibrate_batchnorm(
    model: nn.Module, images: ImageSet, preprocessing: Preprocessing, batch_size: int = 16
) -> None:
    """Sets BatchNorm statistics of untrained weights from images, so activations have unit scale.

    A net with seeded weights and default statistics overflows or dies out with depth, which would
    make timings and INT8 scales of it meaningless.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    training, threads = model.training, torch.get_num_threads()
    model.train()
    torch.set_num_threads(1)  # the sums, and so the bytes, shall not depend on the core count
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            inputs = preprocessing.normalise(images.pixels[start : start + batch_size])
            model(torch.from_numpy(inputs))
    model.train(training)
    torch.set_num_threads(threads)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
