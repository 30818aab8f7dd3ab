"""ONNX Runtime: on the CPU, or through its CUDA or TensorRT execution provider."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnxruntime as ort

from densenet_deploy.bundle import Bundle
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime.binding import BoundSession
from densenet_deploy.runtime.one_thread import OneThread, check_contexts
from densenet_deploy.runtime.providers import Shapes, cuda_options, tensorrt_options
from densenet_deploy.runtime.runner import Array, Infer, Runner

_PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
_ENGINES = 4  # sessions that the TensorRT provider's CUDA graphs may need at once

# What it says before the reason: the file, line and signature in its own source.
_SOURCE_LINE = re.compile(r"^\S+\.cc:\d+ .*?\) (?=[A-Z])")

# ONNX Runtime 1.31 quantizes biases that a graph keeps in floating point, with a scale that half
# precision cannot hold: logits of such a graph drop from 32 to 12 dB.
_NOT_IN_THE_GRAPH = ["WeightBiasQuantization"]


def open_model(
    bundle: Bundle, backend: str, precision: Precision, threads: int, config: RunConfig
) -> Runner:
    """Loads a bundle's graph; see `densenet_deploy.runtime.open_runner`."""
    path = bundle.model(precision, backend)
    if backend == "onnxruntime":
        return Runner(bundle, backend, precision, _on_host(path, threads))
    if backend == "onnxruntime-tensorrt" and not config.runtime_cache:
        config = replace(config, cuda_graph=False)  # each session would compile its own engine
    source = bundle.manifest.input
    image = tuple(int(size) for size in source.shape[1:])
    infer = _on_device(path, backend, config, Shapes(source.name, image, bundle.manifest.batch))
    return Runner(bundle, backend, precision, infer, infer.close, cuda_graph=config.cuda_graph)


def open_graph(path: Path, backend: str, threads: int) -> Infer:
    """Loads an ONNX file; see `densenet_deploy.runtime.open_graph`."""
    if backend == "onnxruntime":
        return _on_host(path, threads)
    return _on_device(path, backend, RunConfig(), None)


def _on_host(path: Path, threads: int) -> Infer:
    """Sessions on the CPU take calls from several threads at once as they are."""
    options = _session_options()
    options.intra_op_num_threads = threads
    session = _open(path, "onnxruntime", options, {})
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def infer(images: Array) -> Array:
        logits: Array = session.run([output], {name: images})[0]
        return logits

    return infer


class _OnDevice(OneThread):
    """Bound sessions on a thread of their own."""

    def __init__(self, bound: BoundSession) -> None:
        super().__init__(bound)
        self._bound = bound

    def close(self) -> None:
        super().close()
        self._bound.close()


def _on_device(path: Path, backend: str, config: RunConfig, shapes: Shapes | None) -> _OnDevice:
    check_contexts(config, backend)
    options = _session_options()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    ort.preload_dlls()  # of the CUDA and cuDNN wheels, where those are installed
    if backend == "onnxruntime-cuda":
        session = _open(path, backend, options, cuda_options(config))
        return _OnDevice(BoundSession(lambda batch: session, "cuda", config.device))
    # No option of this provider turns TF32 off, only this variable, read when CUDA starts.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # TensorRT's work
    reopen = partial(_open, path, backend, options, tensorrt_options(path, config, shapes))
    sessions = _one_each(reopen) if config.cuda_graph else _one_for_all(reopen)
    return _OnDevice(BoundSession(sessions, "cuda", config.device, _ENGINES))


def _one_for_all(
    reopen: Callable[[], ort.InferenceSession],
) -> Callable[[int], ort.InferenceSession]:
    session = reopen()
    return lambda batch: session


def _one_each(reopen: Callable[[], ort.InferenceSession]) -> Callable[[int], ort.InferenceSession]:
    """The TensorRT provider captures one graph a session and replays it for any batch size."""
    opened = [reopen()]  # what is wrong shall be found now
    return lambda batch: opened.pop() if opened else reopen()


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


def _open(
    path: Path, backend: str, options: ort.SessionOptions, settings: dict[str, str]
) -> ort.InferenceSession:
    provider = _PROVIDERS[backend]
    try:
        session = ort.InferenceSession(
            str(path),
            options,
            providers=[(provider, settings)],
            disabled_optimizers=_NOT_IN_THE_GRAPH,
            enable_fallback=0,
        )
    except Exception as error:  # its exceptions share no public base
        reason = _SOURCE_LINE.sub("", str(error).splitlines()[0])[:200]
        raise BackendError(f"{backend} refuses {path.name}: {reason}") from None
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"{backend} fell back to {session.get_providers()[0]}",
            expected=provider,
            remedy="install the CUDA and cuDNN libraries that onnxruntime-gpu needs",
        )
    return session
