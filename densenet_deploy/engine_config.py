"""How engines are compiled and run: what TensorRT 10, 11 and TensorRT-RTX can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EngineBackend = Literal["tensorrt-rtx", "tensorrt"]
Profile = tuple[int, int, int]
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
ProfilingVerbosity = Literal["layer-names", "detailed", "none"]
EngineWeights = Literal["embedded", "refittable", "stripped"]


def check_batch(batch: tuple[int, int, int]) -> None:
    """Raises ValueError unless 1 <= min <= opt <= max."""
    low, best, high = batch
    if not 1 <= low <= best <= high:
        raise ValueError(f"batch {low},{best},{high} must satisfy 1 <= min <= opt <= max")


@dataclass(frozen=True)
class BuildConfig:
    """How an engine is compiled. It has no precision: that lives in the graph.

    `engine/options.py` says which versions have which option. Values other than the defaults are
    refused where the backend or its version lacks them.

    Attributes:
        backend: `tensorrt-rtx` (compiles without a GPU) or `tensorrt`.
        profiles: (min, opt, max) batch size of each optimization profile; several make batch
            buckets, and a request runs in the tightest one that holds it.
        compute_capabilities: Targets of a TensorRT-RTX engine, such as `8.6`; ones the graph does
            not allow make the build fail.
        optional_compute_capabilities: Targets to add where the graph allows: TensorRT-RTX has no
            fp32 matrix product for 7.5, which the classifier of all but fp16 graphs needs.
        workspace_mib: Most scratch memory of a layer in MiB; 0 for the builder's default, all.
        optimization_level: 0 (fast build) to 5 (fast engine); 3 is the builder's default.
        timing_cache: Keep measured kernel times for later builds on the same GPU.
        hardware_compatibility: Which other GPUs a TensorRT engine runs on.
        version_compatible: Whether later TensorRT versions may run the engine.
        tf32: Compute fp32 matrix products with ten bits of mantissa.
        profiling_verbosity: What the engine can tell about its layers.
        weights: `embedded`; `refittable`, which may be replaced later; or `stripped`, which are put
            in from the graph when the engine is loaded.
    """

    backend: EngineBackend = "tensorrt-rtx"
    profiles: tuple[Profile, ...] = ((1, 8, 64),)
    compute_capabilities: tuple[str, ...] = ("8.0", "8.6", "8.9", "12.0")
    optional_compute_capabilities: tuple[str, ...] = ("7.5",)
    workspace_mib: int = 0
    optimization_level: int = 3
    timing_cache: bool = True
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    tf32: bool = False
    profiling_verbosity: ProfilingVerbosity = "detailed"
    weights: EngineWeights = "embedded"

    def __post_init__(self) -> None:
        if not self.profiles:
            raise ValueError("profiles must hold at least one (min, opt, max)")
        for profile in self.profiles:
            check_batch(profile)
        if self.workspace_mib < 0:
            raise ValueError("workspace_mib must not be negative")
        if not 0 <= self.optimization_level <= 5:
            raise ValueError("optimization_level must be in 0..5")

    @property
    def batch(self) -> tuple[int, int]:
        """Least and most images of one request over all profiles."""
        return min(low for low, _, _ in self.profiles), max(high for *_, high in self.profiles)


@dataclass(frozen=True)
class RunConfig:
    """How a graph or engine runs on a GPU; `engine/options.py` says which backends have what.

    Attributes:
        device: Index of the GPU.
        contexts: Requests that run at once on one GPU engine.
        cuda_graph: Capture each batch size once and replay it.
        runtime_cache: Keep the kernels TensorRT-RTX compiles on the device for the next process.
        dynamic_shapes: When TensorRT-RTX compiles kernels for a batch size it meets: `lazy` in the
            background, `eager` before the first run, `none` never.
    """

    device: int = 0
    contexts: int = 1
    cuda_graph: bool = True
    runtime_cache: bool = True
    dynamic_shapes: Literal["lazy", "eager", "none"] = "lazy"

    def __post_init__(self) -> None:
        if self.device < 0 or self.contexts < 1:
            raise ValueError("device must not be negative and contexts must be positive")
