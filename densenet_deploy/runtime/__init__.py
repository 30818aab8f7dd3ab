"""Runners: the same verbs on every backend.

`open_runner` gives a context manager whose `run` maps normalised images to logits. A backend that
cannot run here says why; none falls back to another silently.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from densenet_deploy import _cuda
from densenet_deploy.bundle import Bundle
from densenet_deploy.environment import package_version
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision, RunConfig
from densenet_deploy.runtime.runner import Infer, Runner

# Each opens its library only when asked to run.
_MODULES = {
    "pytorch": "pytorch",
    "onnxruntime": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime",
    "openvino": "openvino",
}
DEFAULT_RUN = RunConfig()
BACKENDS = (*_MODULES, "tensorrt", "tensorrt-rtx")
_DISTRIBUTIONS = {
    "pytorch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt_rtx"),
}
_NEEDS_GPU = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


def why_unavailable(backend: str) -> str:
    """Why a backend cannot run here, as a clause; empty if it can.

    Raises:
        BackendError: There is no backend of this name.
    """
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}", expected=f"one of {', '.join(BACKENDS)}")
    if backend in _NEEDS_GPU and (reason := _cuda.why_no_device()):
        return reason
    names = _DISTRIBUTIONS[backend]
    if not any(package_version(name) for name in names):
        return f"{names[-1]} is not installed"
    if backend == "pytorch" and not package_version("safetensors"):
        return "safetensors is not installed"
    if backend not in _MODULES:
        return "this version builds engines but does not run them yet"
    return ""


def runs(backend: str, precision: Precision) -> bool:
    """Whether a backend has this precision at all: PyTorch is the fp32 reference alone."""
    return backend != "pytorch" or precision == "fp32"


def open_runner(
    bundle: Bundle,
    backend: str,
    precision: Precision,
    threads: int = 0,
    config: RunConfig = DEFAULT_RUN,
) -> Runner:
    """Loads one graph of a bundle on a backend.

    Args:
        bundle: A verified bundle.
        backend: One of `BACKENDS`.
        precision: One the bundle has.
        threads: CPU threads; 0 for all cores.
        config: Of a GPU backend; a CPU has nothing of it.

    Raises:
        BackendError: The backend cannot run here, or refuses the model.
        BundleError: The bundle has no such precision.
    """
    _require(backend)
    if not runs(backend, precision):
        raise BackendError(f"{backend} runs fp32 only, not {precision}")
    runner: Runner = _module(backend).open_model(bundle, backend, precision, threads, config)
    return runner


def open_graph(path: Path, backend: str, threads: int = 0) -> Infer:
    """Loads an ONNX file that belongs to no bundle, with the settings of `open_runner`.

    Args:
        path: Of a graph with one input (N, C, H, W) and one output (N, classes), both float32.
        backend: One of `BACKENDS` that runs ONNX.
        threads: CPU threads; 0 for all cores.

    Returns:
        A function from normalised images to logits.

    Raises:
        BackendError: The backend cannot run here, runs no ONNX, or refuses the graph.
    """
    _require(backend)
    if backend == "pytorch":
        raise BackendError("pytorch runs no ONNX", expected="onnxruntime or openvino")
    infer: Infer = _module(backend).open_graph(path, backend, threads)
    return infer


def _require(backend: str) -> None:
    if reason := why_unavailable(backend):
        raise BackendError(f"{backend} cannot run here: {reason}")


def _module(backend: str) -> ModuleType:
    return import_module(f"densenet_deploy.runtime.{_MODULES[backend]}")
