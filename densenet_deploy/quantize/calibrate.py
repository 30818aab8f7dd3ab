"""Activation ranges of a graph over real images, measured by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.errors import MissingDependencyError
from densenet_deploy.progress import Track, silent


def activation_ranges(
    model: ir.Model,
    names: Sequence[str],
    images: NDArray[np.float32],
    batch_size: int = 64,
    track: Track = silent,
) -> dict[str, float]:
    """Largest magnitude of each named tensor over `images` (N, C, H, W): minmax calibration.

    The maxima are computed inside the graph, so no activation is copied out.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError.of("onnxruntime", "ort", "INT8 calibration") from None
    unique = list(dict.fromkeys(names))
    proto = ir.to_proto(_with_maxima(model, unique))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    ranges = np.zeros(len(unique))
    starts = range(0, len(images), batch_size)
    for start in track(starts, "Calibrating int8 (batches)", len(starts)):
        maxima = session.run(None, {feed: images[start : start + batch_size]})
        ranges = np.maximum(ranges, np.asarray(maxima, np.float64))
    return dict(zip(unique, ranges.tolist(), strict=True))


def _with_maxima(model: ir.Model, names: Sequence[str]) -> ir.Model:
    probe = model.clone()
    graph = probe.graph
    values = {value.name: value for value in graph.inputs}
    values |= {output.name: output for node in graph for output in node.outputs}
    graph.outputs.clear()
    for index, name in enumerate(names):
        magnitude = ir.node("Abs", [values[name]])
        largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        largest.outputs[0].name = f"maximum_{index}"
        largest.outputs[0].dtype, largest.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([])
        graph.extend([magnitude, largest])
        graph.outputs.append(largest.outputs[0])
    return probe
