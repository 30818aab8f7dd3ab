"""Compiles an ONNX graph to an engine for TensorRT 10, TensorRT 11 or TensorRT-RTX.

Precision is in the graph, so the configuration has none. The builder runs in a child process: a
graph it cannot stomach may kill it with a signal, and takes nothing else along.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy import _cuda, _tensorrt, errors
from densenet_deploy.engine import cache as engine_cache
from densenet_deploy.engine import failure
from densenet_deploy.engine.layers import EngineLayers, parse_build_log
from densenet_deploy.engine.process import STOP_SECONDS
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import BuildError, DeployError, GraphError
from densenet_deploy.progress import Track, silent


@dataclass(frozen=True)
class Built:
    """An engine, and how it came about.

    Attributes:
        plan: The serialized engine.
        version: Of the builder.
        compute_capabilities: Those it was compiled for; for TensorRT, that of its GPU.
        cached: It came from the build cache.
        timing_cache: What the timing cache did: `hit`, `extended` or `missed`; empty where none
            was used.
    """

    plan: bytes
    version: str
    compute_capabilities: tuple[str, ...]
    cached: bool = False
    timing_cache: str = ""


def build_engine(
    model: bytes | Path, config: BuildConfig, track: Track = silent, log: Path | None = None
) -> bytes:
    """Compiles a model; dimension 0 of every input is the batch. No cache is read or written.

    Args:
        model: A serialized ONNX model, or the path of one (whose weights may lie beside it).
        config: Backend, batch sizes and, for TensorRT-RTX, compute capabilities. TensorRT always
            compiles for the GPU of this machine.
        track: Is given the builder's steps, by phase name; their number is not known before.
        log: Where to keep the builder's log, also of a build that fails. It names the engine's
            layers, which `layers.parse_build_log` reads.

    Returns:
        The serialized engine.

    Raises:
        GraphError: No such file.
        BuildError: The graph or an option is not accepted, or the builder failed or died; with
            its log, and the layer it was at where that is known.
        BackendError: The backend cannot run here.
        MissingDependencyError: TensorRT-RTX is not installed.
    """
    return _compile(model, config, track, log)[0]


def build_widest(
    model: bytes | Path,
    config: BuildConfig,
    track: Track = silent,
    log: Path | None = None,
    cache: Path | None = None,
    device: int = 0,
) -> Built:
    """Compiles with the optional compute capabilities too, where the graph allows them.

    Takes what `build_engine` takes; the log is that of the last attempt.

    Args:
        model: See `build_engine`.
        config: See `build_engine`.
        track: See `build_engine`.
        log: See `build_engine`; that of the build long ago, for an engine from the cache.
        cache: Folder of the build cache and of timing caches, such as `default_cache()`; by
            default nothing is looked up or kept.
        device: Index of the GPU that TensorRT compiles for.

    Raises:
        DeployError: As `build_engine`; or the cache folder cannot be made.
    """
    version, target = engine_version(config.backend), _target(config, device)
    if cache is None:
        return _widest(model, config, version, target, track, log, device=device)
    if isinstance(model, Path):
        _require(model)
    engine_cache.prepare(cache)
    identity = engine_cache.identify(model, config, version, target)
    if found := engine_cache.find(cache, identity):
        entry, plan, text = found
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(text, encoding="utf-8")
        return Built(plan, version, entry.record.compute_capabilities, cached=True)
    timing = _timing_file(cache, config, version, target)
    with tempfile.TemporaryDirectory(prefix="densenet-deploy-log-") as folder:
        written = log or Path(folder) / "log"
        built = _widest(model, config, version, target, track, written, timing, device)
        # A file that changed during the build: nobody knows which of its states was compiled
        if engine_cache.identify(model, config, version, target) == identity:
            name = model.name if isinstance(model, Path) else ""
            content, targets = written.read_bytes(), built.compute_capabilities
            try:
                engine_cache.store(cache, identity, name, built.plan, content, targets)
            except OSError as error:  # a full disk, say: the engine is there all the same
                warnings.warn(f"the engine is not kept in {cache}: {error}", stacklevel=2)
    return built


def _widest(
    model: bytes | Path,
    config: BuildConfig,
    version: str,
    target: dict[str, str],
    track: Track,
    log: Path | None,
    timing: Path | None = None,
    device: int = 0,
) -> Built:
    if config.backend == "tensorrt":
        plan, outcome = _compile(model, config, track, log, timing, device)
        return Built(plan, version, (target["compute_capability"],), timing_cache=outcome)
    required = config.compute_capabilities
    wider = (*config.optional_compute_capabilities, *required)
    if wider != required:
        with suppress(BuildError):  # an optional target's fault, or the next attempt says what
            wide = dataclasses.replace(config, compute_capabilities=wider)
            return Built(_compile(model, wide, track, log)[0], version, wider)
    return Built(_compile(model, config, track, log)[0], version, required)


def _target(config: BuildConfig, device: int) -> dict[str, str]:
    """The GPU that TensorRT compiles for; TensorRT-RTX is told its targets."""
    if config.backend == "tensorrt-rtx":
        return {}
    return {
        "gpu": _cuda.device_name(device),
        "compute_capability": _cuda.compute_capability(device),
        "driver": _cuda.driver_version(),
    }


def _timing_file(
    cache: Path, config: BuildConfig, version: str, target: dict[str, str]
) -> Path | None:
    if config.backend == "tensorrt-rtx" or not config.timing_cache:
        return None
    return engine_cache.timing_file(cache, version, target)


def compile_layers(model: bytes, capability: str = "8.9") -> tuple[bytes, EngineLayers]:
    """Compiles a model with TensorRT-RTX for one compute capability and the static batch 1.

    Returns:
        The engine, and its kernels with the sizes of what they read and write.

    Raises:
        DeployError: As `build_engine`.
    """
    config = BuildConfig("tensorrt-rtx", ((1, 1, 1),), (capability,), ())
    with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
        log = Path(folder) / "build.log"
        engine = build_engine(model, config, log=log)
        return engine, parse_build_log(log.read_text(encoding="utf-8", errors="replace"))


def engine_version(backend: _tensorrt.Backend) -> str:
    """Version of the installed backend, which an engine is bound to.

    Raises:
        BackendError: The backend cannot run here.
        MissingDependencyError: TensorRT-RTX is not installed.
    """
    return _tensorrt.version(_tensorrt.load(backend))


def _require(model: Path) -> None:
    if not model.is_file():
        raise GraphError(f"no file {model}", expected="an ONNX model")


def _compile(
    model: bytes | Path,
    config: BuildConfig,
    track: Track,
    log: Path | None,
    timing: Path | None = None,
    device: int = 0,
) -> tuple[bytes, str]:
    """The engine, and what the timing cache did."""
    with tempfile.TemporaryDirectory(prefix="densenet-deploy-build-") as name:
        folder = Path(name)
        path = folder / "model.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        else:
            path = model.absolute()
            _require(path)
        engine, written = folder / "engine", log or folder / "log"
        written.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "model": str(path),
            "engine": str(engine),
            "config": dataclasses.asdict(config),
            "timing_cache": str(timing or ""),
            "device": device,
        }
        facts: dict[str, str] = {}
        with _child(request, written) as process:
            steps = _steps(process, written, facts)
            for _ in track(steps, f"Building {config.backend} engine"):
                pass
            status = process.wait()
        if status:
            raise failure.died(config.backend, status, written)
        return engine.read_bytes(), facts.get("timing_cache", "")


@contextmanager
def _child(request: dict[str, Any], log: Path) -> Iterator[subprocess.Popen[str]]:
    """The builder's process; it does not outlive the block, nor this process."""
    package_parent = str(Path(__file__).parents[2])
    search = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: a stray module in the working directory shall not shadow a library
    command = [sys.executable, "-P", "-m", "densenet_deploy.engine.process", json.dumps(request)]
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            encoding="utf-8",
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which closes the input
        ) as process,
    ):
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """Asks the builder to give up; it ends itself if it cannot in time. A second Ctrl-C kills."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.close()
        process.stdout.close()  # nobody reads it any more, and a full pipe would hold the builder
        process.wait(STOP_SECONDS + 1)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()


def _steps(process: subprocess.Popen[str], log: Path, facts: dict[str, str]) -> Iterator[str]:
    """Phase name of each step as the child finishes it; raises the error the child reports.

    What else the child tells is put into `facts`.
    """
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if "error" in event:
            kind: type[DeployError] = getattr(errors, event.pop("error"))
            error = kind(**event)
            raise failure.with_place(error, log) if isinstance(error, BuildError) else error
        if "step" in event:
            yield event["step"]
        else:
            facts.update(event)
