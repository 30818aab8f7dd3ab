"""Accuracy of a recipe's trained weights on its test images, in PyTorch."""

from __future__ import annotations

from densenet_deploy.errors import BackendError, DataError
from densenet_deploy.evaluate import Accuracy, Crops, evaluate, test_images
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import Recipe
from densenet_deploy.source import Trained, load_model


def evaluate_recipe(
    recipe: Recipe,
    crops: Crops = 1,
    batch_size: int = 50,
    device: str = "cpu",
    track: Track = silent,
) -> tuple[Accuracy, Trained]:
    """What the weights reach, and what they are.

    Args:
        recipe: Names weights and labelled images.
        crops: See `evaluate.evaluate`.
        batch_size: Crops that are computed at once.
        device: By torch's name.
        track: Progress reporter.

    Raises:
        DataError: No labelled images are named, or theirs are not the network's classes.
        CheckpointError: No weights are named, or they are missing or do not fit.
        BackendError: torch cannot use `device`.
    """
    if recipe.data.name == "synthetic":
        raise DataError("no labelled images", remedy="name them with --data and --data-dir")
    trained = load_model(recipe, track)
    try:
        trained.model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise BackendError(f"device {device}: {str(error).splitlines()[0]}") from None
    images = test_images(recipe.data, trained.preprocessing)
    classes = trained.model.spec.classes
    if images.classes and len(images.classes) != classes:
        raise DataError(
            f"{images.source} have {len(images.classes)} classes",
            expected=f"the network's {classes}",
        )
    accuracy = evaluate(trained.model, images, trained.preprocessing, batch_size, crops, track)
    return accuracy, trained
