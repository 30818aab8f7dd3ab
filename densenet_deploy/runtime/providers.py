"""ONNX Runtime's GPU execution providers: their options, and what each needs to be installed.

None is told a precision: the CUDA provider runs what the graph says, and the TensorRT provider
builds a strongly typed network as long as no precision option is set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from densenet_deploy import _tensorrt
from densenet_deploy.engine.cache import default_cache
from densenet_deploy.engine_config import Profile, RunConfig
from densenet_deploy.environment import package_version
from densenet_deploy.files import sha256

_TENSORRT_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")


@dataclass(frozen=True)
class Shapes:
    """What a graph is asked with.

    Attributes:
        name: Of the input.
        image: (C, H, W).
        batch: (min, opt, max).
    """

    name: str
    image: tuple[int, ...]
    batch: Profile


def cuda_options(config: RunConfig) -> dict[str, str]:
    """Options of the CUDA provider. Its default is TF32: less exact than the graph says."""
    return {
        "device_id": str(config.device),
        "use_tf32": "0",
        "enable_cuda_graph": _flag(config.cuda_graph),
    }


def tensorrt_options(model: Path, config: RunConfig, shapes: Shapes | None) -> dict[str, str]:
    """Options of the TensorRT provider.

    It names a cached engine after the model's file name and its nodes, not its weights, so each
    file's content gets a folder of its own; without a profile it would build again for every
    larger batch.

    Args:
        model: ONNX file.
        config: `runtime_cache` keeps engines and kernel times for the next process.
        shapes: Of the one optimization profile; None for the shapes it meets.
    """
    options = {
        "device_id": str(config.device),
        "trt_cuda_graph_enable": _flag(config.cuda_graph),
        "trt_engine_cache_enable": _flag(config.runtime_cache),
        "trt_timing_cache_enable": _flag(config.runtime_cache),
    }
    if config.runtime_cache:
        root = default_cache() / "onnxruntime-tensorrt"
        engines, timings = root / sha256(model)[:32], root / "timing"
        for folder in (engines, timings):  # ONNX Runtime makes no parents
            folder.mkdir(parents=True, exist_ok=True)
        options |= {
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_path": str(timings),
        }
    if shapes:
        for bound, size in zip(("min", "opt", "max"), shapes.batch, strict=True):
            dimensions = "x".join(map(str, (size, *shapes.image)))
            options[f"trt_profile_{bound}_shapes"] = f"{shapes.name}:{dimensions}"
    return options


def why_no_tensorrt() -> str:
    """Why the TensorRT provider cannot load here, as a clause; empty if it can, and then it will.

    The provider is linked with one major version of TensorRT, and its own file says which.
    """
    libraries = linked_tensorrt()
    if not libraries:
        return "this onnxruntime has no TensorRT execution provider"
    missing = next((name for name in libraries if not _tensorrt.open_library(name)), "")
    if not missing:
        return ""
    found = next(filter(None, map(package_version, _TENSORRT_PACKAGES)), "")
    major = "".join(filter(str.isdigit, missing))
    reason = f"it needs TensorRT {major} ({missing}), "
    if not found:
        return reason + "which is not installed"
    return (
        f"{reason}and {found} is installed: run it from an environment of its own with "
        "bench --python"
    )


def linked_tensorrt() -> list[str]:
    """TensorRT's libraries that the installed provider is linked with, each after its needs.

    Returns:
        Such as `libnvinfer.so.10` and `libnvonnxparser.so.10`; nothing where there is no provider.
    """
    spec = find_spec("onnxruntime")  # does not import it
    if spec is None or spec.origin is None:
        return []
    linked = re.compile(rb"(?:lib)?nv(?:infer|onnxparser)(?:\.so\.|_)\d+(?:\.dll)?\b")
    names: set[str] = set()
    for file in (Path(spec.origin).parent / "capi").glob("*onnxruntime_providers_tensorrt.*"):
        names |= {name.decode() for name in linked.findall(file.read_bytes())}
    return sorted(names)


def _flag(value: bool) -> str:
    return "1" if value else "0"
