"""Activation ranges against numpy maxima of the activations themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from densenet_deploy.errors import MissingDependencyError
from densenet_deploy.quantize.calibrate import activation_ranges
from tests.graphs import exported, graph, normal, serialized

BODY = "c = Conv(x, w) r = Relu(c) k = Concat <axis = 1>(r, x) y = Conv(k, v)"
WEIGHTS = {"w": normal(3, 4, 1, 1), "v": normal(2, 7, 1, 1)}
NAMES = ["x", "c", "r", "k", "y"]


def activations(
    model: ir.Model, names: list[str], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """The tensors themselves, as additional outputs of the graph."""
    proto = ir.to_proto(model)
    computed = [name for name in names if name not in {i.name for i in proto.graph.input}]
    known = {output.name for output in proto.graph.output}
    for name in computed:
        if name not in known:
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {proto.graph.input[0].name: images}
    values = dict(zip(computed, session.run(computed, feed), strict=True))
    return {name: values.get(name, images) for name in names}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_largest_magnitudes(batch_size: int) -> None:
    model, images = graph(BODY, WEIGHTS), normal(7, 4, 8, 8)
    images[6, 3, 7, 7] = -9  # the largest is negative, and in the last batch
    found = activation_ranges(model, NAMES, images, batch_size)
    for name, tensor in activations(model, NAMES, images).items():
        assert found[name] == pytest.approx(np.abs(tensor).max(), rel=1e-6), name
    assert found["x"] == 9


def test_inputs_of_all_convolutions_of_an_exported_net() -> None:
    export = exported("densenet-bc-40-12")
    names = [
        str(n.inputs[0].name) for n in export.model.graph if n.op_type == "Conv" and n.inputs[0]
    ]
    assert len(names) == 39
    found = activation_ranges(export.model, names, export.images[:20], batch_size=8)
    expected = activations(export.model, names, export.images[:20])
    assert list(found) == names
    for name in names:
        assert found[name] == pytest.approx(np.abs(expected[name]).max(), rel=1e-4), name


def test_the_model_is_not_changed() -> None:
    model = graph(BODY, WEIGHTS)
    before = serialized(model)
    activation_ranges(model, NAMES, normal(2, 4, 8, 8))
    assert serialized(model) == before


def test_repeated_names_are_measured_once() -> None:
    ranges = activation_ranges(graph(BODY, WEIGHTS), ["r", "x", "r"], normal(2, 4, 8, 8))
    assert list(ranges) == ["r", "x"]


def test_zero_and_infinite_activations() -> None:
    images = -np.abs(normal(2, 4, 8, 8))
    model = graph("r = Relu(x) y = Relu(r)", {})
    assert activation_ranges(model, ["r"], images) == {"r": 0}
    images[1, 0, 0, 0] = np.inf
    assert activation_ranges(model, ["r"], images) == {"r": np.inf}


def test_progress_is_counted_in_batches() -> None:
    seen: list[Any] = []

    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        seen.append((description, total))
        for item in items:
            seen.append(item)
            yield item

    activation_ranges(graph(BODY, WEIGHTS), ["r"], normal(7, 4, 8, 8), 3, track)
    assert seen == [("Calibrating int8 (batches)", 3), 0, 3, 6]


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="INT8 calibration needs onnxruntime"):
        activation_ranges(graph(BODY, WEIGHTS), ["r"], normal(2, 4, 8, 8))
