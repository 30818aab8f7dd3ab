"""Runners: the same verbs on every backend.

`open_runner` gives a context manager whose `run` maps normalised images to logits. A backend that
cannot run here says why; none falls back to another silently.
"""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

from densenet_deploy import _cuda
from densenet_deploy.bundle import Bundle
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.environment import package_version
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime.providers import why_no_tensorrt
from densenet_deploy.runtime.runner import Infer, Runner
from densenet_deploy.runtime.torch_forms import FORMS, Form

# Each opens its library only when asked to run.
_MODULES = {
    "pytorch": "pytorch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    **dict.fromkeys(("onnxruntime-cuda", "onnxruntime-tensorrt"), "onnxruntime"),
    **dict.fromkeys(tuple(FORMS)[1:], "pytorch"),
    **dict.fromkeys(("tensorrt", "tensorrt-rtx"), "tensorrt"),
}
DEFAULT_RUN = RunConfig()
BACKENDS = tuple(_MODULES)
_DISTRIBUTIONS = {
    **dict.fromkeys(FORMS, ("torch",)),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    **dict.fromkeys(("onnxruntime-cuda", "onnxruntime-tensorrt"), ("onnxruntime-gpu",)),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt_rtx"),
}
_CPU_BACKENDS = ("pytorch", "onnxruntime", "openvino")
# What a bundle is for; PyTorch on a GPU is there to be compared with.
DEPLOYED = tuple(name for name in BACKENDS if name not in tuple(FORMS)[1:])
GPU_BACKENDS = tuple(name for name in BACKENDS if name not in _CPU_BACKENDS)


def why_unavailable(backend: str) -> str:
    """Why a backend cannot run here, as a clause; empty if it can.

    Raises:
        BackendError: There is no backend of this name.
    """
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}", expected=f"one of {', '.join(BACKENDS)}")
    if backend in GPU_BACKENDS and (reason := _cuda.why_no_device()):
        return reason
    names = _DISTRIBUTIONS[backend]
    if not any(package_version(name) for name in names):
        return f"{names[-1]} is not installed"
    if backend in FORMS:
        return _why_no_torch(FORMS[backend])
    if backend == "onnxruntime-tensorrt":
        return why_no_tensorrt()
    if _MODULES[backend] == "tensorrt" and not package_version("cuda-bindings"):
        return "cuda-python is not installed"
    return ""


def _why_no_torch(form: Form) -> str:
    if not package_version("safetensors"):
        return "safetensors is not installed"
    if form.device == "cuda" and (version := package_version("torch")).endswith("+cpu"):
        return f"torch {version} is built for CPUs alone"
    if form.compile and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "torch.compile needs a C compiler, and neither gcc nor clang is installed"
    return ""


def runs(backend: str, precision: Precision) -> bool:
    """Whether a backend has this precision at all: on the CPU PyTorch is the fp32 reference."""
    return backend not in FORMS or precision in FORMS[backend].precisions


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
        raise BackendError(
            f"{backend} runs {' and '.join(FORMS[backend].precisions)} only, not {precision}"
        )
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
    if backend in FORMS:
        raise BackendError(f"{backend} runs no ONNX", expected="onnxruntime or openvino")
    infer: Infer = _module(backend).open_graph(path, backend, threads)
    return infer


def _require(backend: str) -> None:
    if reason := why_unavailable(backend):
        raise BackendError(f"{backend} cannot run here: {reason}")


def _module(backend: str) -> ModuleType:
    return import_module(f"densenet_deploy.runtime.{_MODULES[backend]}")
