"""What the tests on a device ask before they compile for it."""

from __future__ import annotations

from densenet_deploy import _cuda, _tensorrt
from densenet_deploy.errors import BuildError
from densenet_deploy.runtime import why_unavailable


def why_no_engine(backend: str) -> str:
    """Why a backend cannot run here, or cannot compile for this device; empty if it can.

    TensorRT-RTX names neither 9.0 nor 10.0 among its targets.
    """
    if (reason := why_unavailable(backend)) or backend != "tensorrt-rtx":
        return reason
    try:
        _tensorrt.compute_capability(_tensorrt.load(backend), _cuda.compute_capability(0))
    except BuildError as error:
        return error.found
    return ""
