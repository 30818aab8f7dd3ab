"""DenseNet from training to verified, measured deployment.

Importing this package costs nothing heavy: each name below opens its module when first used, and
torch, onnx or a backend only where that module needs it. The stages that share their name with
their module are reached through it, such as `densenet_deploy.quantize.quantize`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densenet_deploy.bench import measure as measure
    from densenet_deploy.bundle import Bundle as Bundle
    from densenet_deploy.bundle import open_bundle as open_bundle
    from densenet_deploy.classifier import classify as classify
    from densenet_deploy.engine.build import build_engine as build_engine
    from densenet_deploy.errors import DeployError as DeployError
    from densenet_deploy.export import export_onnx as export_onnx
    from densenet_deploy.model import DenseNet as DenseNet
    from densenet_deploy.model import create_model as create_model
    from densenet_deploy.pipeline import export_bundle as export_bundle
    from densenet_deploy.pipeline import run as run
    from densenet_deploy.recipe import Recipe as Recipe
    from densenet_deploy.recipe import load_recipe as load_recipe
    from densenet_deploy.runtime import open_runner as open_runner
    from densenet_deploy.verify import compare as compare

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle",
    "DenseNet": "model",
    "DeployError": "errors",
    "Recipe": "recipe",
    "build_engine": "engine.build",
    "classify": "classifier",
    "compare": "verify",
    "create_model": "model",
    "export_bundle": "pipeline",
    "export_onnx": "export",
    "load_recipe": "recipe",
    "measure": "bench",
    "open_bundle": "bundle",
    "open_runner": "runtime",
    "run": "pipeline",
}
__all__ = sorted(_HOMES)


_STAGES = ("bench", "quantize", "report", "rewrite", "train", "verify")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _STAGES:  # modules, such as densenet_deploy.quantize.quantize
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
