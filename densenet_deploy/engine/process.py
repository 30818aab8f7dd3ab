"""The child process of `build`: compiles one ONNX file and reports by JSON lines.

Run as `python -m densenet_deploy.engine.process REQUEST`. Standard output carries one line for
each finished step (`{"step": phase}`) and for an error the user can act on; standard error is the
builder's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from densenet_deploy import _tensorrt, schema
from densenet_deploy.errors import BuildError, DeployError
from densenet_deploy.recipe import BuildConfig, Profile


def compile_engine(
    model: Path, config: BuildConfig, on_step: Callable[[str], None], detailed: bool = False
) -> bytes:
    """Parses and compiles in this process.

    Args:
        model: ONNX file; its weights may lie in files beside it.
        config: What to compile for.
        on_step: Called with the name of the phase of each finished step.
        detailed: Log the engine's layers, and keep what they do in the engine for an inspector.

    Raises:
        BuildError: Carries the parser's errors or the builder's log.
        BackendError: The backend cannot run here.
    """
    trt = _tensorrt.load(config.backend)
    logger = _tensorrt.collecting_logger(trt, sys.stderr)
    subject = f"{config.backend} {_tensorrt.version(trt)} cannot"
    builder = trt.Builder(logger)
    network = builder.create_network(_tensorrt.network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise BuildError.collect(f"{subject} parse the model", [_describe(e) for e in errors])

    settings = builder.create_builder_config()
    settings.progress_monitor = _monitor(trt, on_step)
    if detailed:
        settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(settings, "num_compute_capabilities"):
        _set_targets(trt, settings, config.compute_capabilities)
    _add_profiles(builder, settings, network, config.profiles)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise BuildError.collect(f"{subject} build the engine", logger.errors or [*logger.tail])
    return bytes(plan)


def _describe(error: Any) -> str:
    node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
    return f"{node}{error.desc().strip()}"


def _set_targets(trt: ModuleType, settings: Any, capabilities: tuple[str, ...]) -> None:
    targets = [_tensorrt.compute_capability(trt, capability) for capability in capabilities]
    settings.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not settings.set_compute_capability(target, index):
            raise BuildError(f"TensorRT-RTX refused compute capability {capabilities[index]}")


def _add_profiles(builder: Any, settings: Any, network: Any, profiles: tuple[Profile, ...]) -> None:
    """Optimization profiles over every input with a dynamic batch (dimension 0)."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    if problems := _misfits(shapes, profiles):
        raise BuildError.collect("the model does not fit the batch sizes", problems)
    dynamic = {name: shape for name, shape in shapes.items() if shape[:1] == (-1,)}
    if not dynamic:
        return
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for name, shape in dynamic.items():
            profile.set_shape(name, *((size, *shape[1:]) for size in sizes))
        if settings.add_optimization_profile(profile) < 0:
            raise BuildError(f"the builder refused an optimization profile of batch {sizes}")


def _misfits(shapes: dict[str, tuple[int, ...]], profiles: tuple[Profile, ...]) -> list[str]:
    problems = []
    for name, shape in shapes.items():
        if -1 in shape[1:]:
            problems.append(f"input {name!r} has shape {shape}; only dimension 0 may be dynamic")
        elif shape and shape[0] != -1 and profiles != ((shape[0],) * 3,):
            asked = " and ".join(",".join(map(str, sizes)) for sizes in profiles)
            problems.append(
                f"input {name!r} has the static batch size {shape[0]}, the configuration "
                f"asks for {asked} (min, opt, max)"
            )
    return problems


def _monitor(trt: ModuleType, on_step: Callable[[str], None]) -> Any:
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None: ...

        def step_complete(self, phase: str, step: int) -> bool:
            on_step(phase)
            return True

        def phase_finish(self, phase: str) -> None: ...

    return Monitor()


def main() -> None:
    """Serves the request in `sys.argv[1]`: {"model", "engine", "config", "detailed"}."""
    with contextlib.suppress(ImportError):  # POSIX only: a crash shall leave no core file
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints belongs to the log

    def tell(**event: str) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    request = json.loads(sys.argv[1])
    problems: list[str] = []
    config = schema.read(BuildConfig, request["config"], "", problems)
    assert config is not None, problems
    try:
        plan = compile_engine(
            Path(request["model"]),
            config,
            lambda phase: tell(step=phase),
            request["detailed"],
        )
        Path(request["engine"]).write_bytes(plan)
    except DeployError as error:
        kind = type(error).__name__
        tell(error=kind, found=error.found, expected=error.expected, remedy=error.remedy)


if __name__ == "__main__":
    main()
