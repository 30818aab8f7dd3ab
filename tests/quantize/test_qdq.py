"""INT8 graphs: only the Q/DQ forms TensorRT accepts, and scales computed a second way."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch.nn import functional

from densenet_deploy.errors import GraphError
from densenet_deploy.export import to_bytes
from densenet_deploy.quantize.qdq import insert_qdq, quantizable, weight_scales
from tests.graphs import (
    Arrays,
    exported,
    graph,
    normal,
    operators,
    run_onnxruntime,
    run_openvino,
    run_reference,
)

BODY = """
    c = Conv <pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) d = Conv(r, v)
    k = Concat <axis = 1>(x, d) y = Conv <strides = [2, 2]>(k, u)
"""
WEIGHTS = {
    "w": normal(5, 4, 3, 3, seed=1),
    "b": normal(5, seed=2),
    "v": normal(3, 5, 1, 1, seed=3),
    "u": normal(6, 7, 2, 2, seed=4),
}
RANGES = {"x": 4.0, "r": 20.0, "k": 30.0}


def quantized(model: ir.Model, ranges: dict[str, float]) -> onnx.ModelProto:
    """A quantized copy that the checker accepts."""
    copy = model.clone()
    insert_qdq(copy, ranges)
    return onnx.load_from_string(to_bytes(copy))


class Quantized:
    """Looks at a quantized model as TensorRT's parser does."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = list(proto.graph.node)
        self.arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.maker = {node.output[0]: node for node in self.nodes}
        self.convolutions = [node for node in self.nodes if node.op_type == "Conv"]

    def activation(self, node: onnx.NodeProto) -> tuple[str, NDArray[Any], NDArray[Any]]:
        """Tensor, scale and zero-point of a convolution's data input."""
        dequantize = self.maker[node.input[0]]
        quantize = self.maker[dequantize.input[0]]
        assert (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert quantize.input[1:] == dequantize.input[1:]
        _, scale, zero = quantize.input
        return quantize.input[0], self.arrays[scale], self.arrays[zero]

    def weight(self, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Levels, scales and zero-points of a convolution's weight."""
        dequantize = self.maker[node.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        assert {a.name: a.i for a in dequantize.attribute} == {"axis": 0}
        levels, scales, zeros = (self.arrays[name] for name in dequantize.input)
        return levels, scales, zeros


def assert_importable(found: Quantized) -> None:
    """The rules of TensorRT's ONNX parser for INT8."""
    for node in found.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = found.arrays[node.input[1]], found.arrays[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape
        assert scale.dtype == np.float32 and (scale > 0).all() and np.isfinite(scale).all()
        if node.op_type == "DequantizeLinear" and node.input[0] in found.arrays:
            assert found.arrays[node.input[0]].dtype == np.int8, "no int32 biases"
    for node in found.convolutions:
        assert found.activation(node)[1].shape == ()
        levels, scales, _ = found.weight(node)
        assert scales.shape == levels.shape[:1]
        assert levels.dtype == np.int8 and levels.min() >= -127
        assert found.arrays[node.input[2]].dtype == np.float32, "biases stay in floating point"


def test_an_exported_net() -> None:
    export = exported("densenet-bc-40-12")
    names = [str(node.inputs[0].name) for node in quantizable(export.model.graph) if node.inputs[0]]
    ranges = {name: 0.1 + index for index, name in enumerate(names)}
    found = Quantized(quantized(export.model, ranges))
    assert_importable(found)
    assert len(found.convolutions) == 39
    originals = {
        node.outputs[0].name: node.inputs[1].const_value.numpy()
        for node in export.model.graph
        if node.op_type == "Conv" and node.inputs[1] and node.inputs[1].const_value
    }
    for node in found.convolutions:
        name, scale, _ = found.activation(node)
        assert scale == pytest.approx(ranges[name] / 127, rel=1e-6)
        assert_reconstructs(originals[node.output[0]], *found.weight(node)[:2])
    kinds = [node.op_type for node in found.nodes]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (39, 78)
    classifier = next(node for node in found.nodes if node.op_type == "Gemm")
    assert found.arrays[classifier.input[1]].dtype == np.float32
    assert found.maker[classifier.input[0]].op_type == "Reshape"


def assert_reconstructs(
    weight: NDArray[Any], levels: NDArray[Any], scales: NDArray[np.float32]
) -> None:
    """Every weight within half a step, and no step larger than needed."""
    largest = np.abs(weight).max((1, 2, 3))
    np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
    steps = scales.astype(np.float64).reshape(-1, 1, 1, 1)
    assert (np.abs(levels * steps - weight) <= steps * 0.50001).all()
    assert (np.abs(levels.astype(int)).max((1, 2, 3)) == 127).all()


def test_the_numbers_are_those_of_the_definition() -> None:
    images = normal(2, 4, 8, 8, seed=5)
    model = graph("y = Conv <pads = [1, 1, 1, 1]>(x, w, b)", {k: WEIGHTS[k] for k in "wb"})
    limit = 2.0  # some pixels saturate
    step = np.float32(limit / 127)
    levels = np.clip(np.round(images / step), -128, 127)
    weight = WEIGHTS["w"].astype(np.float64)
    steps = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    rounded = np.round(weight / steps) * steps
    expected = functional.conv2d(
        torch.from_numpy(levels.astype(np.float64) * step),
        torch.from_numpy(rounded),
        torch.from_numpy(WEIGHTS["b"].astype(np.float64)),
        padding=1,
    ).numpy()
    proto = quantized(model, {"x": limit})
    found = run_onnxruntime(proto.SerializeToString(), images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(found - run_onnxruntime(model, images)).max() > 0.1, "saturation shows"


def test_onnxruntime_agrees_with_the_reference() -> None:
    images = normal(2, 4, 8, 8)
    proto = quantized(graph(BODY, WEIGHTS), RANGES)
    expected = run_reference(ir.from_proto(proto), images)
    found = run_onnxruntime(proto.SerializeToString(), images)
    # A sum on a rounding boundary may fall to either side.
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert np.abs(found - expected).mean() < 1e-3 * np.abs(expected).max()


def test_a_tensor_read_by_two_convolutions_is_quantized_once() -> None:
    body = "c = Conv(x, v) d = Conv(x, v) y = Add(c, d)"
    proto = quantized(graph(body, {"v": normal(3, 4, 1, 1)}), {"x": 3.0})
    kinds = [node.op_type for node in proto.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 3)
    assert_importable(Quantized(proto))


def test_other_readers_keep_the_exact_tensor() -> None:
    found = Quantized(quantized(graph(BODY, WEIGHTS), RANGES))
    concat = next(node for node in found.nodes if node.op_type == "Concat")
    assert concat.input[0] == "x" and found.maker[concat.input[1]].op_type == "Conv"
    assert found.activation(found.convolutions[0])[0] == "x"


def test_nodes_without_names() -> None:
    model = graph(BODY, WEIGHTS)
    for node in model.graph:
        node.name = ""
    assert_importable(Quantized(quantized(model, RANGES)))


def test_a_given_bias_stays_and_a_missing_one_changes_nothing() -> None:
    found = Quantized(quantized(graph(BODY, WEIGHTS), RANGES))
    first, second, third = found.convolutions
    np.testing.assert_array_equal(found.arrays[first.input[2]], WEIGHTS["b"])
    for node, channels in ((second, 3), (third, 6)):
        bias = found.arrays[node.input[2]]
        assert bias.shape == (channels,) and bias.dtype == np.float32
        assert (np.float32(1e-6) + bias == np.float32(1e-6)).all(), "vanishes in any sum"


def test_convolutions_with_computed_weights_are_left_alone() -> None:
    body = "c = Conv(x, v) m = Abs(v) y = Conv(x, m)"
    model = graph(f"{body} z = Add(c, y)", {"v": normal(3, 4, 1, 1)})
    assert [node.name for node in quantizable(model.graph)] == ["c"]
    proto = quantized(model, {"x": 3.0})
    computed = next(node for node in proto.graph.node if node.name == "y")
    assert list(computed.input) == ["x", "m"]


def test_an_all_zero_channel_and_an_all_zero_activation() -> None:
    weight = normal(3, 4, 1, 1)
    weight[1] = 0
    proto = quantized(graph("y = Conv(x, w, b)", {"w": weight, "b": normal(3)}), {"x": 0.0})
    found = Quantized(proto)
    assert_importable(found)
    assert not found.weight(found.convolutions[0])[0][1].any()
    for images in (np.zeros((2, 4, 8, 8), np.float32), normal(2, 4, 8, 8)):
        expected = np.broadcast_to(normal(3).reshape(1, 3, 1, 1), (2, 3, 8, 8))
        for run in (run_onnxruntime, run_openvino):
            np.testing.assert_allclose(run(ir.from_proto(proto), images), expected, atol=1e-6)


def test_a_convolution_in_one_dimension() -> None:
    model = graph("y = Conv(x, w)", {"w": normal(3, 4, 3)}, "float[N, 4, 8] x", "float[N, K, P] y")
    assert_importable(Quantized(quantized(model, {"x": 3.0})))


@settings(max_examples=50, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 4), st.floats(-38, 30), st.integers(0, 2**32 - 1))
def test_weight_scales(channels: int, inputs: int, exponent: float, seed: int) -> None:
    weight = normal(channels, inputs, 3, 3, seed=seed) * np.float32(10.0**exponent)
    weight[0] = 0
    scales = weight_scales(weight)
    assert scales.dtype == np.float32 and scales.shape == (channels,)
    assert (scales > 0).all() and np.isfinite(1 / scales).all()
    largest = np.abs(weight.astype(np.float64)).max((1, 2, 3))
    normal_numbers = largest / 127 > 1.2e-38
    np.testing.assert_allclose(scales[normal_numbers], largest[normal_numbers] / 127, rtol=1e-6)


@pytest.mark.parametrize("body", ["y = Relu(x)", "m = Abs(v) y = Conv(x, m)"])
def test_nothing_to_quantize(body: str) -> None:
    used: Arrays = {"v": normal(3, 4, 1, 1)} if "v" in body.split("(")[1] else {}
    with pytest.raises(GraphError, match="no convolution with constant weights to quantize"):
        insert_qdq(graph(body, used), {"x": 1.0})


@pytest.mark.parametrize("largest", [np.inf, np.nan])
def test_a_range_that_is_not_finite(largest: float) -> None:
    model = graph("y = Conv(x, v)", {"v": normal(3, 4, 1, 1)})
    with pytest.raises(GraphError, match=f"activation x reaches {largest} during calibration"):
        insert_qdq(model, {"x": largest})


def test_only_int8_and_float32_are_stored() -> None:
    proto = quantized(graph(BODY, WEIGHTS), RANGES)
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    assert kinds == {TensorProto.INT8, TensorProto.FLOAT}
    assert operators(ir.from_proto(proto))["QuantizeLinear"] == 3
