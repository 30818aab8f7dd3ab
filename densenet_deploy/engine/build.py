"""Compiles an ONNX graph to an engine for TensorRT 10, TensorRT 11 or TensorRT-RTX.

Precision is in the graph, so the configuration has none. The builder runs in a child process: a
graph it cannot stomach may kill it with a signal, and takes nothing else along.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densenet_deploy import _tensorrt, errors
from densenet_deploy.engine.layers import EngineLayers, parse_build_log
from densenet_deploy.errors import BuildError, DeployError, GraphError
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import BuildConfig

LOG_LINES = 12
LOG_WIDTH = 240
KNOWN_CAUSES = {
    "SIGSEGV": "a quantization scale that is not a constant",
    "SIGKILL": "too little memory",
}


def build_engine(
    model: bytes | Path, config: BuildConfig, track: Track = silent, log: Path | None = None
) -> bytes:
    """Compiles a model; dimension 0 of every input is the batch.

    Args:
        model: A serialized ONNX model, or the path of one (whose weights may lie beside it).
        config: Backend, batch sizes and, for TensorRT-RTX, compute capabilities. TensorRT always
            compiles for the GPU of this machine.
        track: Is given the builder's steps, by phase name; their number is not known before.
        log: Where to keep the builder's log, also of a build that fails. It then names the engine's
            layers, which `layers.parse_build_log` reads; so does the engine.

    Returns:
        The serialized engine.

    Raises:
        GraphError: No such file.
        BuildError: The graph is not accepted, or the builder failed or died; with its log.
        BackendError: The backend cannot run here.
        MissingDependencyError: TensorRT-RTX is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="densenet-deploy-build-") as name:
        folder = Path(name)
        path = folder / "model.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        else:
            path = model.absolute()
            if not path.is_file():
                raise GraphError(f"no file {path}", expected="an ONNX model")
        engine, written = folder / "engine", log or folder / "log"
        written.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "model": str(path),
            "engine": str(engine),
            "config": dataclasses.asdict(config),
            "detailed": log is not None,
        }
        with _child(request, written) as process:
            for _ in track(_steps(process), f"Building {config.backend} engine"):
                pass
            status = process.wait()
        if status:
            raise BuildError(
                f"the {config.backend} builder {_ended(status)}; the end of its log:{_end(written)}"
            )
        return engine.read_bytes()


def build_widest(
    model: bytes | Path, config: BuildConfig, track: Track = silent, log: Path | None = None
) -> tuple[bytes, tuple[str, ...]]:
    """Compiles with the optional compute capabilities too, where the graph allows them.

    Takes what `build_engine` takes; the log is that of the last attempt.

    Returns:
        The engine, and the compute capabilities it was compiled for: none for TensorRT, which
        compiles for the GPU of this machine.

    Raises:
        DeployError: As `build_engine`.
    """
    if config.backend == "tensorrt":
        return build_engine(model, config, track, log), ()
    required = config.compute_capabilities
    wider = (*config.optional_compute_capabilities, *required)
    if wider != required:
        try:
            wide = dataclasses.replace(config, compute_capabilities=wider)
            return build_engine(model, wide, track, log), wider
        except BuildError:
            pass  # either an optional target's fault, or the next attempt says what is wrong
    return build_engine(model, config, track, log), required


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


@contextmanager
def _child(request: dict[str, Any], log: Path) -> Iterator[subprocess.Popen[str]]:
    """The builder's process; it does not outlive the block."""
    package_parent = str(Path(__file__).parents[2])
    search = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: a stray module in the working directory shall not shadow a library
    command = [sys.executable, "-P", "-m", "densenet_deploy.engine.process", json.dumps(request)]
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            encoding="utf-8",
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _steps(process: subprocess.Popen[str]) -> Iterator[str]:
    """Phase name of each step as the child finishes it; raises the error the child reports."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if "error" in event:
            kind: type[DeployError] = getattr(errors, event.pop("error"))
            raise kind(**event)
        yield event["step"]


def _ended(status: int) -> str:
    if status > 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    cause = f" (known cause: {KNOWN_CAUSES[name]})" if name in KNOWN_CAUSES else ""
    return f"was killed by {name}{cause}"


def _end(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace") as stream:
        lines = deque(stream, maxlen=LOG_LINES)
    return "".join(f"\n  {line.rstrip()[:LOG_WIDTH]}" for line in lines) + "\n"
