"""Moves DequantizeLinear behind operators that work on integers as well as on what they stand for.

Concat, MaxPool, Max and Min only select values, so with one scale on all inputs

    op(dequantize(a), dequantize(b)) = dequantize(op(a, b)).

A constant operand of Max or Min is rounded to the scale's grid. What a dense block writes, gathers
and clamps then stays uint8 from one convolution to the next.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.quantize.dialect import Scale
from densenet_deploy.quantize.qdq import describe, scale_of
from densenet_deploy.rewrite.graph import add_initializer, constant

_SELECTING = ("Concat", "MaxPool", "Max", "Min")


def compute_in_integers(graph: ir.Graph) -> None:
    """Moves every DequantizeLinear as far down as it goes."""
    for node in list(graph):
        if node.op_type in _SELECTING and not node.outputs[0].is_graph_output():
            scale = _common_scale(node)
            if scale is not None:
                _move_behind(graph, node, scale)


def round_limits(graph: ir.Graph) -> None:
    """Rounds the constants that quantized values are compared with to the values' own grid.

    What Max and Min select is then on the grid too, so quantizing it again changes nothing.
    """
    for node in graph:
        if node.op_type not in ("Max", "Min"):
            continue
        scale = selected_scale(node.outputs[0])
        for index, value in enumerate(node.inputs):
            limit = constant(value)
            if scale is not None and limit is not None:
                rounded = (
                    _levels(limit, scale).astype(np.float64) - scale.zero_point
                ) * scale.scale
                name = f"{node.outputs[0].name}.limit"
                new = add_initializer(graph, name, rounded.astype(np.float32))
                node.replace_input_with(index, new)


def selected_scale(value: ir.Value | None) -> Scale | None:
    """The one scale of the integers that a value is selected from; None where there is none."""
    node = None if value is None else value.producer()
    if node is None or node.op_type not in _SELECTING:
        return scale_of(value)
    return _common_scale(node, selected_scale)


def _common_scale(
    node: ir.Node, find: Callable[[ir.Value | None], Scale | None] = scale_of
) -> Scale | None:
    """The one scale of all inputs that are not constant."""
    scales = {find(value) for value in node.inputs if constant(value) is None}
    return scales.pop() if len(scales) == 1 else None


def _move_behind(graph: ir.Graph, node: ir.Node, scale: Scale) -> None:
    output = node.outputs[0]
    readers = list(output.uses())
    parameters: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        limit = constant(value)
        if limit is not None:
            name = f"{output.name}.level"
            node.replace_input_with(index, add_initializer(graph, name, _levels(limit, scale)))
            continue
        assert value is not None
        dequantize = value.producer()
        assert dequantize is not None
        parameters = list(dequantize.inputs[1:])
        node.replace_input_with(index, dequantize.inputs[0])
    integer = ir.DataType.UINT8 if scale.levels[0] == 0 else ir.DataType.INT8
    after = ir.node("DequantizeLinear", [output, *parameters], name=f"{output.name}.dq")
    describe(after, ir.DataType.FLOAT, output.shape)
    output.type = ir.TensorType(integer)  # not its dtype: clones share the type object
    graph.insert_after(node, after)
    for reader, index in readers:
        reader.replace_input_with(index, after.outputs[0])


def _levels(limit: NDArray[np.float32], scale: Scale) -> NDArray[np.generic]:
    low, high = scale.levels
    levels = np.rint(limit / np.float64(scale.scale)) + int(scale.zero_point)
    clipped: NDArray[np.generic] = np.clip(levels, low, high).astype(scale.zero_point.dtype)
    return clipped
