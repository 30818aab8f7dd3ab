"""Child process: our classes on the real bindings named in argv, and how those behave; as JSON.

What needs TensorRT's libraries cannot be tried; deriving from its classes, its enums and its shapes
can. The tests ask the same of `checked_module`, which imitates them.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from densenet_deploy import _tensorrt
from densenet_deploy.engine.process import _monitor


def our_classes(trt: Any) -> dict[str, Any]:
    """What our logger makes of every severity, and our progress monitor of one step."""
    logger = _tensorrt.collecting_logger(trt)
    for name, severity in trt.ILogger.Severity.__members__.items():
        logger.log(severity, name)
    steps: list[str] = []
    monitor = _monitor(trt, steps.append, lambda: True)
    monitor.phase_start("Building", None, 1)
    going_on = monitor.step_complete("Building", 0)
    monitor.phase_finish("Building")
    return {
        "derived": isinstance(logger, trt.ILogger) and isinstance(monitor, trt.IProgressMonitor),
        "network flags": _tensorrt.network_flags(trt),
        "errors": sorted(logger.errors),
        "warnings": logger.warnings,
        "steps": steps,
        "going on": going_on,
    }


def behaviour(trt: Any) -> dict[str, bool]:
    """What holds, and what is refused, of shapes, enums and classes."""
    shape, flag = trt.Dims((1, 3)), trt.BuilderFlag.TF32

    class WithoutBase(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pass

    return {
        "a shape equals a tuple": shape == (1, 3),
        "a shape equals a shape": not refused(lambda: shape == trt.Dims((1, 3))),
        "a tuple takes a shape": not refused(lambda: (2,) + shape),  # noqa: RUF005
        "a part of a shape is a tuple": shape[1:] == (3,) and isinstance(shape[1:], tuple),
        "a shape is unpacked": (2, *shape) == (2, 1, 3),
        "a shape takes attributes": not refused(lambda: setattr(shape, "name", "image")),
        "an enum member is its integer": flag == int(flag),
        "an enum member can be shifted": not refused(lambda: 1 << flag),
        "an integer is a severity": not refused(lambda: trt.Logger(1)),
        "another enum is a severity": not refused(lambda: trt.Logger(flag)),
        "a severity is a severity": not refused(lambda: trt.Logger(trt.Logger.ERROR)),
        "a class has its enum's members": trt.ILogger.ERROR == trt.Logger.Severity.ERROR,
        "types have short names": trt.float32 == trt.DataType.FLOAT,
        "the base may be left unmade": not refused(WithoutBase),
        "any class has a constructor": not refused(trt.IHostMemory),
        "any name is there": not refused(lambda: trt.BuilderFlags),
    }


def refused(action: Callable[[], Any]) -> bool:
    """Whether it raises."""
    try:
        action()
    except (AssertionError, AttributeError, TypeError):
        return True
    return False


if __name__ == "__main__":
    bindings = importlib.import_module(sys.argv[1])
    report = {"classes": our_classes(bindings), "behaviour": behaviour(bindings)}
    json.dump(report, sys.stdout)
