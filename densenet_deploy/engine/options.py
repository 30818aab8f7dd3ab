"""Every build and run option: what TensorRT calls it, which versions have it and how it is set.

One table serves the builder, the refusals and the documentation, and tests compare it with the
real bindings. There is no precision in it: that lives in the graph.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from densenet_deploy import _cuda
from densenet_deploy.engine import setters
from densenet_deploy.engine_config import BuildConfig, EngineBackend, RunConfig
from densenet_deploy.errors import BackendError, BuildError

TITLES: Mapping[EngineBackend, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
OLDEST: Mapping[EngineBackend, str] = {"tensorrt": "10.0", "tensorrt-rtx": "1.4"}
_BOTH = OLDEST
_TENSORRT: Mapping[EngineBackend, str] = {"tensorrt": OLDEST["tensorrt"]}
_RTX: Mapping[EngineBackend, str] = {"tensorrt-rtx": OLDEST["tensorrt-rtx"]}


@dataclass(frozen=True)
class Option:
    """One option of `BuildConfig` or `RunConfig`, or one value of it.

    Attributes:
        name: The field.
        names: What setting it uses, below the module; the first says where it is set.
        since: First version that has it, of each backend that does.
        meaning: For people.
        set: Sets a value.
        values: Values of the field that this is about; empty for all.
        needs_gpu: Backends that build with it only where there is a GPU, and why.
        instead: What to do for a backend that lacks it.
    """

    name: str
    names: tuple[str, ...]
    since: Mapping[EngineBackend, str]
    meaning: str
    set: Callable[[setters.Site, Any], None]
    values: tuple[Any, ...] = ()
    needs_gpu: Mapping[EngineBackend, str] = field(default_factory=dict)
    instead: Mapping[EngineBackend, str] = field(default_factory=dict)

    def covers(self, value: Any) -> bool:
        """Whether a value of the field needs this option."""
        return not self.values or value in self.values


_ON_DEVICE: Mapping[EngineBackend, str] = {
    "tensorrt-rtx": "it compiles replaceable weights on the device"
}
_HARDWARE = "IBuilderConfig.hardware_compatibility_level"
_TARGETS: Mapping[EngineBackend, str] = {"tensorrt-rtx": "name the GPUs in compute_capabilities"}

BUILD_OPTIONS = (
    Option(
        "profiles",
        (
            "IBuilderConfig.add_optimization_profile",
            "Builder.create_optimization_profile",
            "IOptimizationProfile.set_shape",
        ),
        _BOTH,
        "Smallest, usual and largest batch of each optimization profile",
        setters.set_profiles,
    ),
    Option(
        "compute_capabilities",
        (
            "IBuilderConfig.set_compute_capability",
            "IBuilderConfig.num_compute_capabilities",
            "ComputeCapability",
        ),
        _RTX,
        "GPUs the engine is compiled for",
        setters.set_compute_capabilities,
        instead={"tensorrt": "TensorRT compiles for the GPU of this machine"},
    ),
    Option(
        "workspace_mib",
        ("IBuilderConfig.set_memory_pool_limit", "MemoryPoolType.WORKSPACE"),
        _BOTH,
        "Most scratch memory of a layer, in MiB; 0 for all there is",
        setters.set_workspace,
    ),
    Option(
        "optimization_level",
        ("IBuilderConfig.builder_optimization_level",),
        _BOTH,
        "0 builds fast, 5 searches longest for a fast engine",
        setters.set_optimization_level,
    ),
    Option(
        "timing_cache",
        (
            "IBuilderConfig.set_timing_cache",
            "IBuilderConfig.get_timing_cache",
            "IBuilderConfig.create_timing_cache",
            "ITimingCache.combine",
            "ITimingCache.serialize",
        ),
        _TENSORRT,
        "Kernel times measured by earlier builds on this GPU; TensorRT-RTX measures none",
        setters.set_timing_cache,
        values=(True,),
    ),
    Option(
        "hardware_compatibility",
        (_HARDWARE, "HardwareCompatibilityLevel.AMPERE_PLUS"),
        _TENSORRT,
        "The engine runs on every GPU from Ampere on",
        setters.set_hardware_compatibility,
        values=("ampere-plus",),
        instead=_TARGETS,
    ),
    Option(
        "hardware_compatibility",
        (_HARDWARE, "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"),
        {"tensorrt": "10.12"},
        "The engine runs on every GPU of the same compute capability",
        setters.set_hardware_compatibility,
        values=("same-compute-capability",),
        instead=_TARGETS,
    ),
    Option(
        "version_compatible",
        ("BuilderFlag.VERSION_COMPATIBLE",),
        _TENSORRT,
        "Later versions run the engine too",
        setters.flag("VERSION_COMPATIBLE"),
        values=(True,),
        instead={"tensorrt-rtx": "build again with the version that runs it"},
    ),
    Option(
        "tf32",
        ("BuilderFlag.TF32",),
        _BOTH,
        "fp32 products with ten bits of mantissa; TensorRT's own default is on",
        setters.set_tf32,
    ),
    Option(
        "profiling_verbosity",
        (
            "IBuilderConfig.profiling_verbosity",
            "ProfilingVerbosity.DETAILED",
            "ProfilingVerbosity.LAYER_NAMES_ONLY",
            "ProfilingVerbosity.NONE",
        ),
        _BOTH,
        "What engine and build log tell about layers",
        setters.set_profiling_verbosity,
    ),
    Option(
        "weights",
        ("BuilderFlag.REFIT",),
        _BOTH,
        "The weights may be replaced later",
        setters.flag("REFIT"),
        values=("refittable",),
        needs_gpu=_ON_DEVICE,
    ),
    Option(
        "weights",
        ("BuilderFlag.STRIP_PLAN",),
        _BOTH,
        "The weights are left out, and put in from the graph when the engine is loaded",
        setters.flag("STRIP_PLAN"),
        values=("stripped",),
        needs_gpu=_ON_DEVICE,
    ),
)

RUN_OPTIONS = (
    Option(
        "cuda_graph",
        ("IRuntimeConfig.cuda_graph_strategy", "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE"),
        _RTX,
        "Each batch size is captured once and replayed; on TensorRT by this package",
        setters.set_cuda_graph,
        values=(True,),
    ),
    Option(
        "runtime_cache",
        (
            "IRuntimeConfig.set_runtime_cache",
            "IRuntimeConfig.get_runtime_cache",
            "IRuntimeConfig.create_runtime_cache",
            "IRuntimeCache.deserialize",
            "IRuntimeCache.serialize",
        ),
        _RTX,
        "Kernels compiled on the device are kept; TensorRT compiles none there",
        setters.set_runtime_cache,
        values=(True,),
    ),
    Option(
        "dynamic_shapes",
        (
            "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
            "DynamicShapesKernelSpecializationStrategy.LAZY",
            "DynamicShapesKernelSpecializationStrategy.EAGER",
            "DynamicShapesKernelSpecializationStrategy.NONE",
        ),
        _RTX,
        "When kernels are compiled for a batch size that is met",
        setters.set_dynamic_shapes,
    ),
)
OPTIONS = BUILD_OPTIONS + RUN_OPTIONS


def apply(config: BuildConfig | RunConfig, backend: EngineBackend, site: setters.Site) -> None:
    """Sets every option that the backend has; `check` refuses those it lacks.

    Raises:
        BuildError: The builder refused a value.
    """
    for option in _options(config):
        value = getattr(config, option.name)
        if backend in option.since and option.covers(value):
            option.set(site, value)


def check(config: BuildConfig | RunConfig, backend: EngineBackend, version: str) -> None:
    """Refuses options that the backend, its version or this machine lacks.

    Defaults are never refused: where a backend has no timing cache, none is used.

    Args:
        config: What is asked for.
        backend: Who is to do it.
        version: Its version, such as `10.16.1.11`.

    Raises:
        BuildError: A BuildConfig asks for something that is not there; names all of it at once.
        BackendError: A RunConfig does.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    problems = []
    for option in _options(config):
        value = getattr(config, option.name)
        if value == defaults[option.name] or not option.covers(value):
            continue
        if problem := _lack(option, backend, version):
            problems.append(f"{option.name} {_text(value)}: {problem}")
    if problems:
        kind = BuildError if isinstance(config, BuildConfig) else BackendError
        raise kind.collect(f"{TITLES[backend]} {version} lacks what was asked for", problems)


def _lack(option: Option, backend: EngineBackend, version: str) -> str:
    """Why a backend of this version cannot do it here, as clauses; empty if it can."""
    title = f"{TITLES[backend]} {version}"
    since = option.since.get(backend)
    if since is None or _numbers(version) < _numbers(since):
        owners = " and ".join(f"{TITLES[b]} {v} or newer" for b, v in option.since.items())
        verb = "has" if len(option.since) == 1 else "have"
        instead = option.instead.get(backend) if since is None else None
        return f"{title} has no such option; {owners} {verb} it" + (
            f"; {instead}" if instead else ""
        )
    if backend in option.needs_gpu and (reason := _cuda.why_no_device()):
        return f"{title} needs a GPU for it, since {option.needs_gpu[backend]}; here is {reason}"
    return ""


def changed(config: dict[str, Any]) -> list[str]:
    """Build options that are not default, such as `optimization_level 5`.

    Profiles and compute capabilities are no options to choose between and are left out.
    """
    defaults = dataclasses.asdict(BuildConfig())
    names = {option.name for option in BUILD_OPTIONS} - {"profiles", "compute_capabilities"}
    shown = [name for name in config if name in names and config[name] != defaults[name]]
    return [f"{name} {_text(config[name])}" for name in shown]


def options_table() -> str:
    """The options in Markdown, a row each; `default` is the configuration's."""
    rows = [
        "| option | default | TensorRT | TensorRT-RTX | set by | what it does |",
        "|---" * 6 + "|",
    ]
    for config, options in ((BuildConfig(), BUILD_OPTIONS), (RunConfig(), RUN_OPTIONS)):
        for option in options:
            only = " ".join(f"`{_text(value)}`" for value in option.values)
            named = f"`{option.name}`" + (f" {only}" if only else "")
            cells = [named, f"`{_text(getattr(config, option.name))}`"]
            cells += [_availability(option, backend) for backend in TITLES]
            rows.append(f"| {' | '.join([*cells, f'`{option.names[0]}`', option.meaning])} |")
    return "\n".join(rows) + "\n"


def _availability(option: Option, backend: EngineBackend) -> str:
    since = option.since.get(backend)
    if since is None:
        return "no"
    return since + (", with a GPU" if backend in option.needs_gpu else "")


def _options(config: BuildConfig | RunConfig) -> tuple[Option, ...]:
    return BUILD_OPTIONS if isinstance(config, BuildConfig) else RUN_OPTIONS


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _text(value: Any) -> str:
    """A value as TOML writes it, without quotes."""
    return json.dumps(value).replace('"', "")
