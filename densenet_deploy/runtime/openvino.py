"""OpenVINO on the CPU."""

from __future__ import annotations

from pathlib import Path

import openvino

from densenet_deploy.bundle import Bundle
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime.pool import Pool
from densenet_deploy.runtime.runner import Array, Infer, Runner

_REQUESTS = 2  # one computes while the other is filled or read by another thread


def open_model(
    bundle: Bundle, backend: str, precision: Precision, threads: int, config: RunConfig
) -> Runner:
    """Loads a bundle's graph; see `densenet_deploy.runtime.open_runner`."""
    infer = open_graph(bundle.model(precision, backend), backend, threads)
    return Runner(bundle, backend, precision, infer)


def open_graph(path: Path, backend: str, threads: int) -> Infer:
    """Loads an ONNX file; see `densenet_deploy.runtime.open_graph`."""
    settings = {
        # Its default on recent CPUs is bf16: less exact than the graph says, and slower here.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
    }
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise BackendError(f"{backend} refuses {path.name}: {reason}") from None
    requests = Pool([compiled.create_infer_request() for _ in range(_REQUESTS)])

    def infer(images: Array) -> Array:
        with requests.lend() as request:
            # The request owns its output buffer and reuses it: hand out a copy.
            logits: Array = request.infer({0: images}, share_inputs=True)[0].copy()
            return logits

    return infer
