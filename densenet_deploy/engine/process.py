"""The child process of `build`: compiles one ONNX file and reports by JSON lines.

Run as `python -m densenet_deploy.engine.process REQUEST`. Standard output carries one line for
each finished step (`{"step": phase}`), then what became of the timing cache or an error the user
can act on; standard error is the builder's log. The end of standard input asks it to stop, and
comes by itself when the parent dies: no build outlives the command that wanted it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from densenet_deploy import _cuda, _tensorrt, schema
from densenet_deploy.engine import options
from densenet_deploy.engine.setters import Site
from densenet_deploy.engine.timing import TimingCache
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import BuildError, DeployError

STOP_SECONDS = 5.0  # for the builder to notice; it asks between steps, and some take long


def compile_engine(
    model: Path,
    config: BuildConfig,
    on_step: Callable[[str], None],
    timing: TimingCache | None = None,
    stopped: Callable[[], bool] = lambda: False,
    device: int = 0,
) -> bytes:
    """Parses and compiles in this process.

    Args:
        model: ONNX file; its weights may lie in files beside it.
        config: What to compile for.
        on_step: Called with the name of the phase of each finished step.
        timing: Timing cache to use, where the configuration and the backend have one.
        stopped: Asked after each step; the builder gives up once it is true.
        device: Index of the GPU that TensorRT compiles for.

    Raises:
        BuildError: Carries the parser's errors or the builder's log, or names the options that
            the installed version lacks.
        BackendError: The backend cannot run here.
    """
    trt = _tensorrt.load(config.backend)
    version = _tensorrt.version(trt)
    options.check(config, config.backend, version)
    if device:  # the first one is current anyway, and TensorRT-RTX needs none
        _cuda.use_device(device)
    logger = _tensorrt.collecting_logger(trt, sys.stderr)
    subject = f"{config.backend} {version} cannot"
    builder = trt.Builder(logger)
    network = builder.create_network(_tensorrt.network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise BuildError.collect(f"{subject} parse the model", [_describe(e) for e in errors])

    settings = builder.create_builder_config()
    settings.progress_monitor = _monitor(trt, on_step, stopped)
    site = Site(trt, settings, builder, network, timing)
    options.apply(config, config.backend, site)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise BuildError.collect(f"{subject} build the engine", logger.errors or [*logger.tail])
    if timing:
        timing.save(settings)
    return bytes(plan)


def _describe(error: Any) -> str:
    node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
    return f"{node}{error.desc().strip()}"


def _monitor(trt: ModuleType, on_step: Callable[[str], None], stopped: Callable[[], bool]) -> Any:
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None: ...

        def step_complete(self, phase: str, step: int) -> bool:
            on_step(phase)
            return not stopped()

        def phase_finish(self, phase: str) -> None: ...

    return Monitor()


def main() -> None:
    """Serves the request in `sys.argv[1]`, as `build` writes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    with contextlib.suppress(ImportError):  # POSIX only: a crash shall leave no core file
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints belongs to the log

    def tell(**event: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # a parent that died has closed its input too
            events.write(json.dumps(event) + "\n")
            events.flush()

    stop = threading.Event()
    threading.Thread(target=_await_stop, args=(stop,), daemon=True).start()
    request = json.loads(sys.argv[1])
    problems: list[str] = []
    config = schema.read(BuildConfig, request["config"], "", problems)
    assert config is not None, problems
    timing = TimingCache(Path(request["timing_cache"])) if request["timing_cache"] else None
    try:
        plan = compile_engine(
            Path(request["model"]),
            config,
            lambda phase: tell(step=phase),
            timing,
            stop.is_set,
            request["device"],
        )
        Path(request["engine"]).write_bytes(plan)
        if timing:
            tell(timing_cache=timing.outcome)
    except DeployError as error:
        kind = type(error).__name__
        tell(error=kind, found=error.found, expected=error.expected, remedy=error.remedy)
    except MemoryError:  # what a library's std::bad_alloc becomes in Python
        tell(error=BuildError.__name__, found=f"the {config.backend} builder ran out of memory")


def _await_stop(stop: threading.Event) -> None:
    """Waits for the end of standard input, then for the builder to give up; at last ends both."""
    while os.read(0, 1):
        pass
    stop.set()
    time.sleep(STOP_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
