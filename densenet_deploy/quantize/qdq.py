"""INT8: explicit Q/DQ in the form TensorRT's parser accepts and fuses.

Symmetric with zero-point 0; per-tensor activations, per-channel weights on axis 0 stored as int8
with a DequantizeLinear; biases stay in floating point, because TensorRT rejects int32 bias Q/DQ.
The classifier stays in floating point too: it is a thousandth of the work.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.errors import GraphError
from densenet_deploy.rewrite.graph import add_initializer, constant

_LEVELS = 127  # of int8, symmetric: -128 is not used
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
# OpenVINO 2026.4 computes wrong numbers where the output of a quantized convolution without a bias
# is read twice, as dense blocks do, and it drops a bias of zero. This one changes no logit.
_NO_BIAS = 1e-30


def quantizable(graph: ir.Graph) -> list[ir.Node]:
    """Convolutions with constant weights, in order.

    Raises:
        GraphError: There is none.
    """
    convolutions = [node for node in graph if node.op_type == "Conv"]
    nodes = [node for node in convolutions if constant(node.inputs[1]) is not None]
    if not nodes:
        raise GraphError("the graph has no convolution with constant weights to quantize")
    return nodes


def insert_qdq(model: ir.Model, ranges: Mapping[str, float]) -> None:
    """Quantizes the inputs and weights of every convolution in `model`, in place.

    Args:
        model: An fp32 model.
        ranges: Largest magnitude of each activation that a convolution reads.

    Raises:
        GraphError: There is no convolution, or a range is not finite.
    """
    graph = model.graph
    nodes = quantizable(graph)
    zero = add_initializer(graph, "int8.zero", np.zeros((), np.int8))
    dequantized: dict[str, ir.Value] = {}
    for node in nodes:
        data = node.inputs[0]
        assert data is not None and data.name is not None
        if data.name not in dequantized:
            dequantized[data.name] = _activation(graph, node, data, ranges[data.name], zero)
        node.replace_input_with(0, dequantized[data.name])
        if len(node.inputs) < 3 or node.inputs[2] is None:
            node.resize_inputs(3)
            node.replace_input_with(2, _bias(graph, node))
        node.replace_input_with(1, _weight(graph, node))


def weight_scales(weight: NDArray[np.floating]) -> NDArray[np.float32]:
    """Symmetric scale of each output channel (axis 0) of a convolution weight."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scales: NDArray[np.float32] = np.maximum(largest / _LEVELS, _SMALLEST_SCALE).astype(np.float32)
    return scales


def _activation(
    graph: ir.Graph, reader: ir.Node, data: ir.Value, largest: float, zero: ir.Value
) -> ir.Value:
    if not np.isfinite(largest):
        raise GraphError(f"activation {data.name} reaches {largest} during calibration")
    scale_array = np.asarray(max(largest / _LEVELS, _SMALLEST_SCALE), np.float32)
    scale = add_initializer(graph, f"{data.name}.scale", scale_array)
    quantize = ir.node("QuantizeLinear", [data, scale, zero], name=f"{data.name}.q")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])
    dequantize.name = f"{data.name}.dq"
    _describe(quantize, ir.DataType.INT8, data.shape)
    _describe(dequantize, ir.DataType.FLOAT, data.shape)
    graph.insert_before(reader, [quantize, dequantize])
    return dequantize.outputs[0]


def _weight(graph: ir.Graph, node: ir.Node) -> ir.Value:
    value = node.inputs[1]
    weight = constant(value)
    assert value is not None and weight is not None
    scales = weight_scales(weight)
    shaped = scales.reshape(-1, *[1] * (weight.ndim - 1))
    levels = np.clip(np.rint(weight / shaped), -_LEVELS, _LEVELS).astype(np.int8)
    name = f"{node.outputs[0].name}.weight"  # unique, which a node's name need not be
    dequantize = ir.node(
        "DequantizeLinear",
        [
            add_initializer(graph, f"{name}.int8", levels),
            add_initializer(graph, f"{name}.scale", scales),
            add_initializer(graph, f"{name}.zero", np.zeros(len(scales), np.int8)),
        ],
        {"axis": 0},
        name=f"{name}.dq",
    )
    _describe(dequantize, ir.DataType.FLOAT, value.shape)
    graph.insert_before(node, dequantize)
    return dequantize.outputs[0]


def _bias(graph: ir.Graph, node: ir.Node) -> ir.Value:
    weight = constant(node.inputs[1])
    assert weight is not None
    bias = np.full(len(weight), _NO_BIAS, np.float32)
    return add_initializer(graph, f"{node.outputs[0].name}.bias", bias)


def _describe(node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    output = node.outputs[0]
    output.name, output.dtype, output.shape = node.name, dtype, shape
