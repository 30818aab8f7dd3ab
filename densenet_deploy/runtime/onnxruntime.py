"""ONNX Runtime, on the CPU or through its CUDA execution provider."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision, RunConfig
from densenet_deploy.runtime.runner import Array, Infer, Runner

_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "onnxruntime": ("CPUExecutionProvider", {}),
    # Its default is TF32: less exact than the graph says.
    "onnxruntime-cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}

# ONNX Runtime 1.31 quantizes biases that a graph keeps in floating point, with a scale that half
# precision cannot hold: logits of such a graph drop from 32 to 12 dB.
_NOT_IN_THE_GRAPH = ["WeightBiasQuantization"]


def open_model(
    bundle: Bundle, backend: str, precision: Precision, threads: int, config: RunConfig
) -> Runner:
    """Loads a bundle's graph; see `densenet_deploy.runtime.open_runner`."""
    session = _session(bundle.model(precision, backend), backend, threads)
    infer = _infer(session, bundle.manifest.input.name, bundle.manifest.output.name)
    return Runner(bundle, backend, precision, infer)


def open_graph(path: Path, backend: str, threads: int) -> Infer:
    """Loads an ONNX file; see `densenet_deploy.runtime.open_graph`."""
    session = _session(path, backend, threads)
    return _infer(session, session.get_inputs()[0].name, session.get_outputs()[0].name)


def _session(path: Path, backend: str, threads: int) -> ort.InferenceSession:
    provider, settings = _PROVIDERS[backend]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if backend == "onnxruntime-cuda":
        ort.preload_dlls()  # of the CUDA and cuDNN wheels, where those are installed
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(
            str(path),
            options,
            providers=[(provider, settings)],
            disabled_optimizers=_NOT_IN_THE_GRAPH,
        )
    except Exception as error:  # its exceptions share no public base
        reason = str(error).splitlines()[0][:200]
        raise BackendError(f"{backend} refuses {path.name}: {reason}") from None
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"{backend} fell back to {session.get_providers()[0]}",
            expected=provider,
            remedy="install the CUDA and cuDNN libraries that onnxruntime-gpu needs",
        )
    session.disable_fallback()
    return session


def _infer(session: ort.InferenceSession, name: str, output: str) -> Infer:
    def infer(images: Array) -> Array:
        logits: Array = session.run([output], {name: images})[0]
        return logits

    return infer
