"""A builder without a GPU: it takes what the real one takes, records it, and can be told to fail.

build = Build(surface, inputs={"image": (-1, 3, 224, 224)})
sys.modules["tensorrt"] = build.module()
build.network_flags, build.config        # what the code under test did
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from tests.bindings.checked import checked_module
from tests.bindings.surface import Surface


@dataclass
class Build:
    """What a build meets: the parser's errors, what the builder says, whether it ends well."""

    surface: Surface
    inputs: Mapping[str, tuple[int, ...]]
    errors: tuple[ParserError, ...] = ()
    says: tuple[tuple[str, str], ...] = ()
    kernels: frozenset[bytes] = frozenset({b"kernel"})
    fails: bool = False
    network_flags: int = field(init=False)
    config: IBuilderConfig = field(init=False)

    def module(self) -> ModuleType:
        """The bindings, for `sys.modules`."""
        bound = {"_build": self}
        classes = [type(cls.__name__, (cls,), bound) for cls in (Builder, OnnxParser)]
        return checked_module(self.surface, classes)


class Builder:
    _build: Build

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self._build.network_flags = flags
        return INetworkDefinition([ITensor(*item) for item in self._build.inputs.items()])

    def create_builder_config(self) -> IBuilderConfig:
        self._build.config = IBuilderConfig(self._build.surface)
        return self._build.config

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: IBuilderConfig) -> IHostMemory | None:
        severities = self._build.surface.enum("ILogger.Severity")
        for severity, message in self._build.says:
            self._logger.log(severities[severity], message)
        if config._timing_cache is not None:
            config._timing_cache._kernels |= self._build.kernels
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        going_on = all(monitor.step_complete("Building", step) for step in range(2))
        monitor.phase_finish("Building")
        return IHostMemory(b"plan") if going_on and not self._build.fails else None


OF_ANOTHER_GPU = b"of-another-gpu"  # in a timing cache: it does not fit


class IBuilderConfig:
    def __init__(self, surface: Surface) -> None:
        self.progress_monitor: Any = None
        self.builder_optimization_level = 3
        self.profiling_verbosity = surface.enum("ProfilingVerbosity").LAYER_NAMES_ONLY
        self.hardware_compatibility_level = surface.enum("HardwareCompatibilityLevel").NONE
        self.flags = 1 << int(surface.enum("BuilderFlag").TF32)
        self.num_compute_capabilities = 0
        self._targets: dict[int, str] = {}
        self._limits: dict[str, int] = {}
        self._profiles: list[dict[str, tuple[Any, ...]]] = []
        self._timing_cache: ITimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << int(flag))

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._limits[pool.name] = pool_size

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        self._targets[index] = compute_capability.name
        return index < self.num_compute_capabilities

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        fits = ignore_mismatch or OF_ANOTHER_GPU not in cache._kernels
        self._timing_cache = cache if fits else self._timing_cache
        return fits

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timing_cache


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._kernels = set(data.split())

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._kernels |= input_cache._kernels
        return True

    def serialize(self) -> IHostMemory:
        return IHostMemory(b" ".join(sorted(self._kernels)))


class IHostMemory(bytes):
    """What the real one is to a reader: a buffer."""


class INetworkDefinition:
    def __init__(self, inputs: list[ITensor]) -> None:
        self.num_inputs = len(inputs)
        self.get_input = inputs.__getitem__


@dataclass
class ITensor:
    name: str
    shape: tuple[int, ...]


class OnnxParser:
    _build: Build

    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self.num_errors = 0

    def parse_from_file(self, model: str) -> bool:
        self.num_errors = len(self._build.errors)
        return not self.num_errors

    def get_error(self, index: int) -> ParserError:
        return self._build.errors[index]


class ParserError:
    def __init__(self, description: str, node: str = "", operator: str = "") -> None:
        self.desc = lambda: description
        self.node_name = lambda: node
        self.node_operator = lambda: operator
