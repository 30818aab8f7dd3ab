"""The only door to `tensorrt` and `tensorrt_rtx`: what their versions name differently ends here.

Covers TensorRT 10.x, 11.x and TensorRT-RTX. Their enum integers differ, so members are looked up
by name and never by value.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TextIO

from densenet_deploy import _cuda
from densenet_deploy.errors import BackendError, BuildError, MissingDependencyError

Backend = Literal["tensorrt-rtx", "tensorrt"]
TAIL_LINES = 30


def load(backend: Backend) -> ModuleType:
    """Imports the bindings of a backend once it is safe to make objects from them.

    TensorRT's Builder and Runtime crash the process without a CUDA driver, hence the device check;
    TensorRT-RTX compiles without one.

    Raises:
        MissingDependencyError: TensorRT-RTX is not installed.
        BackendError: TensorRT is not installed, too old or without a GPU; or the import failed.
    """
    name = backend.replace("-", "_")
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) != name:
            raise BackendError(f"{name} is installed but cannot be imported: {error}") from error
        if backend == "tensorrt-rtx":
            raise MissingDependencyError.of(name, "rtx", "building a TensorRT-RTX engine") from None
        raise BackendError(
            "tensorrt is not installed",
            expected="TensorRT 10.0 or newer on a machine with an NVIDIA GPU",
            remedy="install tensorrt there, or use the backend tensorrt-rtx, which compiles "
            "without a GPU",
        ) from None
    if backend == "tensorrt":
        _check_tensorrt(version(trt))
    return trt


def _check_tensorrt(found: str) -> None:
    if int(found.split(".")[0]) < 10:
        raise BackendError(f"TensorRT {found} is too old", expected="10.0 or newer")
    if reason := _cuda.why_no_device():
        raise BackendError(
            f"TensorRT {found} cannot run here: {reason}",
            expected="an NVIDIA GPU with its driver, and cuda-python",
            remedy="use the backend tensorrt-rtx, which compiles without a GPU",
        )


def open_library(name: str) -> bool:
    """Loads one of TensorRT's shared libraries into this process, where it serves all that need it.

    Args:
        name: Such as `libnvinfer.so.10`. Those of a wheel lie where no loader looks.

    Returns:
        Whether it was found.
    """
    wheel = importlib.util.find_spec("tensorrt_libs")
    folders = wheel.submodule_search_locations or () if wheel else ()
    for candidate in (*(str(Path(folder) / name) for folder in folders), name):
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        return True
    return False


def version(trt: ModuleType) -> str:
    """Version of loaded bindings, such as `1.7.1.116`."""
    return str(trt.__version__)


def network_flags(trt: ModuleType) -> int:
    """Flags of a strongly typed network: TensorRT 10 must opt in, newer ones know no other."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def compute_capability(trt: ModuleType, capability: str) -> Any:
    """TensorRT-RTX's enum member for a capability such as `8.6`.

    Raises:
        BuildError: The installed version has no such target; names those it has.
    """
    known = {
        f"{name[2:-1]}.{name[-1]}": member
        for name, member in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if capability not in known:
        raise BuildError(
            f"TensorRT-RTX {version(trt)} cannot compile for compute capability {capability!r}",
            expected=f"one of {', '.join(known)}",
        )
    return known[capability]


def collecting_logger(trt: ModuleType, echo: TextIO | None = None) -> Any:
    """An ILogger that keeps what was said.

    Args:
        trt: Loaded bindings.
        echo: Where every message is also written at once, so that it outlives a crash.

    Returns:
        The logger, with `errors` and `warnings` (lists of messages) and `tail` (the last lines of
        any severity).
    """
    base: Any = trt.ILogger
    severities = base.Severity

    class CollectingLogger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.tail: deque[str] = deque(maxlen=TAIL_LINES)

        def log(self, severity: Any, message: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                self.errors.append(message)
            elif severity == severities.WARNING:
                self.warnings.append(message)
            line = f"{severity.name.lower()}: {message}"
            self.tail.append(line)
            if echo is not None:
                echo.write(line + "\n")
                echo.flush()

    return CollectingLogger()


def activation_bytes(engine: Any) -> int:
    """Device memory a context computes in, over all profiles; `device_memory_size` before 10.3."""
    name = "device_memory_size_v2"
    return int(getattr(engine, name if hasattr(engine, name) else "device_memory_size"))


def context_in(trt: ModuleType, engine: Any, address: int) -> Any:
    """An execution context that computes in memory of the caller's; None if TensorRT refuses.

    Contexts may share it as long as they never run at once.
    """
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(strategy)
    if context is None:
        return None
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, activation_bytes(engine))
    else:  # before 10.3
        context.device_memory = address
    return context


def invalidity(trt: ModuleType, runtime: Any, plan: bytes) -> list[str]:
    """What TensorRT-RTX finds wrong with a plan, such as `MALFORMED_ENGINE`; others do not say."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, found = runtime.get_engine_validity(plan)
    members = trt.EngineInvalidityDiagnostics.__members__.items()
    return [name for name, bit in members if int(found) & int(bit)]
