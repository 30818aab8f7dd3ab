"""What `_tensorrt.py` smooths over, on every version: each branch meets the version it is for."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from densenet_deploy import _cuda, _tensorrt
from densenet_deploy.errors import BackendError, BuildError
from tests.bindings.checked import checked, checked_module, simulated
from tests.bindings.surface import Surface


class ICudaEngine:
    """An engine whose contexts need 100 bytes."""

    device_memory_size = device_memory_size_v2 = 100

    def __init__(self, refuses: bool = False) -> None:
        self._refuses = refuses
        self._strategies: list[str] = []

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        self._strategies.append(strategy.name)
        return None if self._refuses else IExecutionContext()


class IExecutionContext:
    """A context that knows where it was told to compute."""

    device_memory = 0
    _memory = (0, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)


class Runtime:
    """A runtime that finds two things wrong."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        names = self._surface.enum("EngineInvalidityDiagnostics")
        found = int(names["UNSUPPORTED_CC"]) | int(names["OLD_CUDA_DRIVER"])
        return self._surface.enum("EngineValidity")["INVALID"], found


def installed(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = checked_module(surface)
    monkeypatch.setitem(sys.modules, surface.backend.replace("-", "_"), module)
    return module


def test_tensorrt_is_opened_only_where_there_is_a_device(
    surface: Surface, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = installed(surface, monkeypatch)
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "")
    assert _tensorrt.load(surface.backend) is module
    assert _tensorrt.version(module) == surface.version
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "no driver")
    if surface.backend == "tensorrt-rtx":
        assert _tensorrt.load(surface.backend) is module
    else:
        with pytest.raises(BackendError, match=f"TensorRT {surface.version} .*no driver"):
            _tensorrt.load(surface.backend)


def test_the_logger_sorts_by_severity(surface: Surface) -> None:
    logger = _tensorrt.collecting_logger(checked_module(surface))
    for severity in surface.enum("ILogger.Severity"):
        logger.log(severity, severity.name)
    assert logger.errors == ["INTERNAL_ERROR", "ERROR"]
    assert logger.warnings == ["WARNING"]
    assert list(logger.tail)[-1] == "verbose: VERBOSE"


def test_compute_capabilities_of_rtx(surface: Surface) -> None:
    if surface.backend != "tensorrt-rtx":
        assert not surface.has("ComputeCapability")
        return
    trt = checked_module(surface)
    assert _tensorrt.compute_capability(trt, "12.1") is trt.ComputeCapability.SM121
    assert _tensorrt.compute_capability(trt, "8.6") is trt.ComputeCapability.SM86
    with pytest.raises(BuildError, match=r"9\.0.*\n?.*8\.6"):
        _tensorrt.compute_capability(trt, "9.0")


def test_a_context_computes_in_the_memory_it_is_given(surface: Surface) -> None:
    trt = checked_module(surface)
    engine = checked(ICudaEngine(), surface, "ICudaEngine")
    assert _tensorrt.activation_bytes(engine) == 100
    context = _tensorrt.context_in(trt, engine, 4096)
    assert simulated(engine)._strategies == ["USER_MANAGED"]
    sized = surface.has("IExecutionContext.set_device_memory")
    assert sized is (surface.version != "10.0.1")
    assert simulated(context)._memory == ((4096, 100) if sized else (0, 0))
    assert simulated(context).device_memory == (0 if sized else 4096)
    refusing = checked(ICudaEngine(refuses=True), surface, "ICudaEngine")
    assert _tensorrt.context_in(trt, refusing, 4096) is None


def test_rtx_says_what_is_wrong_with_a_plan(surface: Surface) -> None:
    runtime = checked(Runtime(surface), surface, "Runtime")
    found = _tensorrt.invalidity(checked_module(surface), runtime, b"plan")
    rtx = surface.backend == "tensorrt-rtx"
    assert found == (["UNSUPPORTED_CC", "OLD_CUDA_DRIVER"] if rtx else [])
