"""QuantizeLinear and DequantizeLinear, written into a graph.

Weights are stored as integers behind a DequantizeLinear. Biases stay in floating point for
TensorRT, which rejects int32 ones, and become int32 with the scale of the product where a target
computes in integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.quantize.dialect import Dialect, Scale, rounded
from densenet_deploy.rewrite.graph import add_initializer, constant, new_node, only_reader

# OpenVINO 2026.4 computes wrong numbers where the output of a quantized convolution without a bias
# is read twice, as dense blocks do, and it drops a bias of zero. This one changes no logit.
_NO_BIAS, _NO_BIAS_HALF = 1e-30, 1e-7
_LEVELS = 127  # of weights: -128 is not used


def add_pair(
    graph: ir.Graph, value: ir.Value, scale: Scale, readers: Sequence[tuple[ir.Node, int]]
) -> None:
    """Quantizes and dequantizes `value` for some of its readers (node, input)."""
    assert value.name is not None
    parameters = [
        add_initializer(graph, f"{value.name}.scale", np.array(scale.scale)),
        add_initializer(graph, f"{value.name}.zero", np.array(scale.zero_point)),
    ]
    quantize = ir.node("QuantizeLinear", [value, *parameters], name=f"{value.name}.q")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *parameters])
    dequantize.name = f"{value.name}.dq"
    integer = ir.DataType.UINT8 if isinstance(scale.zero_point, np.uint8) else ir.DataType.INT8
    describe(quantize, integer, value.shape)
    describe(dequantize, ir.DataType.FLOAT, value.shape)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    for node, index in readers:
        node.replace_input_with(index, dequantize.outputs[0])


def scale_of(value: ir.Value | None) -> Scale | None:
    """The scale behind a dequantized value; None where it is not one."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
    if scale is None or zero is None or scale.ndim or zero.ndim:
        return None
    return Scale(np.float32(scale), zero.dtype.type(zero))


@dataclass(frozen=True)
class QuantizedWeight:
    """A convolution's weight in integers.

    Attributes:
        levels: Integers of the weight's shape (O, I, ...).
        scales: (O,) or (1,) of the DequantizeLinear.
        multiplier: (O,) that the convolution's output is multiplied by; None for 1.
    """

    levels: NDArray[np.int8]
    scales: NDArray[np.float32]
    multiplier: NDArray[np.float32] | None

    def dequantized(self) -> NDArray[np.float64]:
        """The weight that it stands for."""
        scales = self.scales.astype(np.float64)
        if self.multiplier is not None:
            scales = scales * self.multiplier
        return self.levels * scales.reshape(-1, *[1] * (self.levels.ndim - 1))


def quantize_weight(
    weight: NDArray[np.floating], dialect: Dialect, least: NDArray[np.float64] | float = 0.0
) -> QuantizedWeight:
    """Rounds a weight to the nearest of 255 levels.

    Args:
        weight: (O, I, ...).
        dialect: What the target takes.
        least: (O,) a scale is no smaller, so that a bias in int32 fits.
    """
    rows = np.maximum(np.abs(weight).reshape(len(weight), -1).max(axis=1) / _LEVELS, least)
    scales = rounded(rows if dialect.weights == "per-channel" else rows.max(keepdims=True), dialect)
    multiplier = rounded(rows / scales, dialect) if dialect.weights == "per-channel-mul" else None
    steps = scales if multiplier is None else scales * multiplier
    steps = np.maximum(steps, np.finfo(np.float32).tiny)  # an all-zero channel has none
    shaped = steps.reshape(-1, *[1] * (weight.ndim - 1))
    levels = np.clip(np.rint(weight / shaped), -_LEVELS, _LEVELS).astype(np.int8)
    return QuantizedWeight(levels, scales, multiplier)


def set_parameters(
    graph: ir.Graph,
    node: ir.Node,
    weight: QuantizedWeight,
    bias: NDArray[np.float64],
    dialect: Dialect,
) -> None:
    """Gives a convolution its weight and bias (O,) in the form the target takes."""
    value = node.inputs[1]
    assert value is not None
    stored = _stored(graph, node, "weight", weight.levels, weight.scales, value.shape)
    node.replace_input_with(1, stored)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, None)
    if weight.multiplier is not None:
        _multiply_and_add(graph, node, weight.multiplier, bias)
    elif dialect.integers:
        data = scale_of(node.inputs[0])
        assert data is not None
        scales = np.broadcast_to(rounded(weight.scales * data.scale, dialect), bias.shape)
        limit = np.iinfo(np.int32).max
        levels = np.clip(np.rint(bias / scales), -limit, limit).astype(np.int32)
        levels = levels if levels.any() else np.ones_like(levels)  # see _NO_BIAS
        shape = ir.Shape(bias.shape)
        node.replace_input_with(2, _stored(graph, node, "bias", levels, scales, shape))
    else:
        least = _NO_BIAS_HALF if dialect.half else _NO_BIAS
        filled = bias if bias.any() else np.full_like(bias, least)
        name = f"{node.outputs[0].name}.bias"
        node.replace_input_with(2, add_initializer(graph, name, filled.astype(np.float32)))


def _multiply_and_add(
    graph: ir.Graph, node: ir.Node, multiplier: NDArray[np.float32], bias: NDArray[np.float64]
) -> None:
    output = node.outputs[0]
    while (reader := only_reader(output)) is not None and reader.op_type == "MaxPool":
        node, output = reader, reader.outputs[0]  # it commutes, and leaves less to multiply
    readers = list(output.uses())
    last, nodes = output, []
    for operator, operand in (("Mul", multiplier), ("Add", bias)):
        if operator == "Add" and not bias.any():
            break
        name = f"{output.name}.{operator.lower()}"
        channels = operand.reshape(-1, 1, 1).astype(np.float32)
        constants = add_initializer(graph, f"{name}.channels", channels)
        nodes.append(new_node(operator, [last, constants], output, name))
        last = nodes[-1].outputs[0]
    graph.insert_after(node, nodes)
    for reader, index in readers:
        reader.replace_input_with(index, last)


def _stored(
    graph: ir.Graph,
    node: ir.Node,
    what: str,
    levels: NDArray[np.integer],
    scales: NDArray[np.float32],
    shape: ir.Shape | None,
) -> ir.Value:
    name = f"{node.outputs[0].name}.{what}"  # unique, which a node's name need not be
    per_channel = len(scales) > 1
    zero = np.zeros(len(scales), levels.dtype)
    dequantize = ir.node(
        "DequantizeLinear",
        [
            add_initializer(graph, f"{name}.{levels.dtype}", levels),
            add_initializer(graph, f"{name}.scale", scales if per_channel else scales[0]),
            add_initializer(graph, f"{name}.zero", zero if per_channel else zero[0]),
        ],
        {"axis": 0} if per_channel else {},
        name=f"{name}.dq",
    )
    describe(dequantize, ir.DataType.FLOAT, shape)
    graph.insert_before(node, dequantize)
    return dequantize.outputs[0]


def describe(node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    """Names a new node's output after the node, and gives it a type."""
    output = node.outputs[0]
    output.name, output.dtype, output.shape = node.name, dtype, shape
