"""torchvision's own classifiers, to compare with."""

from __future__ import annotations

from torch import nn

from densenet_deploy.errors import RecipeError


def torchvision_model(name: str) -> nn.Module:
    """torchvision's model of this name, with the weights it starts from.

    Raises:
        RecipeError: It has none.
    """
    from torchvision import models

    if not in_torchvision(name):
        raise RecipeError(f"torchvision has no model {name!r}")
    model: nn.Module = models.get_model(name, weights=None)
    return model


def in_torchvision(name: str) -> bool:
    """Whether torchvision has a classifier of this name."""
    from torchvision import models

    return name in models.list_models(module=models)
