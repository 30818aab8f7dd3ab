"""Calibration: what values the tensors of a graph take over real images, by ONNX Runtime.

Extremes are reduced inside the graph, so no activation is copied out; the other methods need a
second pass over the images, for histograms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.errors import GraphError, MissingDependencyError
from densenet_deploy.progress import Track, silent

BINS = 1024

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """Values of one tensor over all calibration images, by channel.

    Attributes:
        low: (C,) smallest value of each channel.
        high: (C,) largest value of each channel.
        mean: (C,) mean of each channel.
        counts: (C, BINS) histogram of each channel between its extremes; None where a method did
            not need one.
    """

    low: Array
    high: Array
    mean: Array
    counts: NDArray[np.int64] | None = None

    def merged(self) -> Observation:
        """The tensor as one channel."""
        low, high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        mean = self.mean.mean(keepdims=True)
        if self.counts is None:
            return Observation(low, high, mean)
        edges = (low[0], max(high[0], low[0] + np.finfo(np.float32).tiny))
        counts, _ = np.histogram(self.centers(), BINS, edges, weights=self.counts)
        return Observation(low, high, mean, counts.astype(np.int64)[None])

    def centers(self) -> Array:
        """(C, BINS) middle of each bin."""
        steps = (np.arange(BINS) + 0.5) / BINS
        return self.low[:, None] + steps * (self.high - self.low)[:, None]


def observe(
    model: ir.Model,
    names: Sequence[str],
    images: NDArray[np.float32],
    batch_size: int = 64,
    histograms: bool = False,
    track: Track = silent,
) -> dict[str, Observation]:
    """Observes each named tensor over `images` (N, C, H, W); dimension 1 is the channel.

    Raises:
        GraphError: A tensor is not finite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    unique = list(dict.fromkeys(names))
    if not unique:
        return {}
    title = "Calibrating int8"
    found = _summaries(model, unique, images, batch_size, track, title)
    for name, seen in found.items():
        if not np.isfinite([seen.low, seen.high, seen.mean]).all():
            raise GraphError(f"activation {name} is not finite during calibration")
    if not histograms:
        return found
    counts = {name: np.zeros((len(seen.low), BINS), np.int64) for name, seen in found.items()}
    session = _session(_with_outputs(model, unique))
    for batch in _run(session, images, batch_size, track, f"{title}, histograms"):
        for name, values in zip(unique, batch, strict=True):
            counts[name] += _histogram(values, found[name].low, found[name].high)
    return {name: replace(seen, counts=counts[name]) for name, seen in found.items()}


def _summaries(
    model: ir.Model,
    names: Sequence[str],
    images: NDArray[np.float32],
    batch_size: int,
    track: Track,
    title: str,
) -> dict[str, Observation]:
    """Extremes and means, reduced inside the graph."""
    session = _session(_with_summaries(model, names))
    batches: list[list[NDArray[np.float32]]] = []
    sizes: list[int] = []
    for batch in _run(session, images, batch_size, track, title):
        batches.append(batch)
        sizes.append(min(batch_size, len(images) - sum(sizes)))
    found = {}
    for index, name in enumerate(names):
        low, high, mean = (
            np.stack([batch[3 * index + statistic] for batch in batches]).astype(np.float64)
            for statistic in range(3)
        )
        found[name] = Observation(
            low.min(axis=0), high.max(axis=0), np.average(mean, axis=0, weights=sizes)
        )
    return found


def _histogram(values: NDArray[np.float32], low: Array, high: Array) -> NDArray[np.int64]:
    channels = len(low)
    scale = BINS / np.maximum(high - low, 1e-30)  # finite, also of a constant channel
    by_channel = np.moveaxis(values, 1, 0).reshape(channels, -1)
    bins = (by_channel - low[:, None].astype(np.float32)) * scale[:, None].astype(np.float32)
    index = np.clip(bins, 0, BINS - 1).astype(np.int64) + np.arange(channels)[:, None] * BINS
    return np.bincount(index.ravel(), minlength=channels * BINS).reshape(channels, BINS)


def _run(
    session: Any, images: NDArray[np.float32], batch_size: int, track: Track, title: str
) -> Iterator[list[NDArray[np.float32]]]:
    feed = session.get_inputs()[0].name
    starts = range(0, len(images), batch_size)
    for start in track(starts, f"{title} (batches)", len(starts)):
        yield session.run(None, {feed: images[start : start + batch_size]})


def _session(model: ir.Model) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError.of("onnxruntime", "ort", "INT8 calibration") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _values(graph: ir.Graph) -> dict[str | None, ir.Value]:
    values: dict[str | None, ir.Value] = {value.name: value for value in graph.inputs}
    return values | {output.name: output for node in graph for output in node.outputs}


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that returns the named tensors."""
    probe = model.clone()
    graph = probe.graph
    values = _values(graph)
    graph.outputs.clear()
    for index, name in enumerate(names):
        copy = ir.node("Identity", [values[name]])  # a graph input cannot be an output itself
        _add_output(graph, copy, f"value_{index}")
    return probe


def _with_summaries(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that returns smallest, largest and mean value of each channel of the named tensors."""
    probe = model.clone()
    graph = probe.graph
    values = _values(graph)
    graph.outputs.clear()
    for index, name in enumerate(names):
        value = values[name]
        rank = len(value.shape) if value.shape is not None else 4
        axes = ir.tensor(np.array([axis for axis in range(rank) if axis != 1], np.int64))
        constant = ir.node("Constant", [], {"value": axes})
        graph.append(constant)
        for operator in ("ReduceMin", "ReduceMax", "ReduceMean"):
            reduce = ir.node(operator, [value, constant.outputs[0]], {"keepdims": 0})
            _add_output(graph, reduce, f"{operator}_{index}")
    return probe


def _add_output(graph: ir.Graph, node: ir.Node, name: str) -> None:
    output = node.outputs[0]
    output.name, output.dtype = name, ir.DataType.FLOAT
    graph.append(node)
    graph.outputs.append(output)
