"""How each build and run option is set on TensorRT's objects; `options` says who has which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from densenet_deploy import _tensorrt
from densenet_deploy.engine.profiles import add_profiles
from densenet_deploy.engine.timing import TimingCache
from densenet_deploy.errors import BuildError


@dataclass(frozen=True)
class Site:
    """The objects of TensorRT that options are set on.

    Attributes:
        trt: The loaded bindings.
        settings: An IBuilderConfig, or the IRuntimeConfig of an engine that is to run.
        builder: The IBuilder, to build.
        network: The parsed network, to build.
        timing: The timing cache file, if one is used.
    """

    trt: ModuleType
    settings: Any
    builder: Any = None
    network: Any = None
    timing: TimingCache | None = None


def set_profiles(site: Site, value: Any) -> None:
    add_profiles(site.builder, site.network, site.settings, value)


def set_compute_capabilities(site: Site, value: Any) -> None:
    targets = [_tensorrt.compute_capability(site.trt, capability) for capability in value]
    site.settings.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not site.settings.set_compute_capability(target, index):
            raise BuildError(f"TensorRT-RTX refused compute capability {value[index]}")


def set_workspace(site: Site, value: Any) -> None:
    if value:
        site.settings.set_memory_pool_limit(site.trt.MemoryPoolType.WORKSPACE, value * 2**20)


def set_optimization_level(site: Site, value: Any) -> None:
    site.settings.builder_optimization_level = value


def set_timing_cache(site: Site, value: Any) -> None:
    if site.timing:
        site.timing.load(site.settings)


def set_hardware_compatibility(site: Site, value: Any) -> None:
    levels = site.trt.HardwareCompatibilityLevel
    site.settings.hardware_compatibility_level = getattr(levels, _member(value))


def set_tf32(site: Site, value: Any) -> None:
    change = site.settings.set_flag if value else site.settings.clear_flag
    change(site.trt.BuilderFlag.TF32)


def set_profiling_verbosity(site: Site, value: Any) -> None:
    name = "LAYER_NAMES_ONLY" if value == "layer-names" else _member(value)
    site.settings.profiling_verbosity = getattr(site.trt.ProfilingVerbosity, name)


def flag(name: str) -> Callable[[Site, Any], None]:
    """Sets a builder flag, whatever the value."""
    return lambda site, value: site.settings.set_flag(getattr(site.trt.BuilderFlag, name))


def set_runtime_cache(site: Site, value: Any) -> None:
    site.settings.set_runtime_cache(site.settings.create_runtime_cache())


def set_cuda_graph(site: Site, value: Any) -> None:
    site.settings.cuda_graph_strategy = site.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE


def set_dynamic_shapes(site: Site, value: Any) -> None:
    strategies = site.trt.DynamicShapesKernelSpecializationStrategy
    chosen = getattr(strategies, _member(value))
    site.settings.dynamic_shapes_kernel_specialization_strategy = chosen


def _member(value: str) -> str:
    return value.upper().replace("-", "_")
