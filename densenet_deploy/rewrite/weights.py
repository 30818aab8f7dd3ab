"""Per-channel changes of a Conv's or Gemm's weight and bias.

Constants may be shared between nodes, so a change always registers a new one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.rewrite.graph import add_initializer, attribute, constant, label
from densenet_deploy.rewrite.outcome import Refused

Array = NDArray[np.float64]


def replace_constant(
    graph: ir.Graph, node: ir.Node, index: int, array: NDArray[Any], suffix: str
) -> None:
    """Gives `node` another constant, named after the old one, as its input `index`."""
    old = node.inputs[index]
    assert old is not None and old.name is not None
    dtype = constant(old).dtype  # type: ignore[union-attr]
    node.replace_input_with(index, None)
    if old.is_initializer() and not old.uses() and not old.is_graph_output():
        del graph.initializers[old.name]  # so that its name is free where it had the suffix
    name = f"{old.name.removesuffix(suffix)}{suffix}"
    node.replace_input_with(index, add_initializer(graph, name, array.astype(dtype)))


def scale_inputs(graph: ir.Graph, reader: ir.Node, factor: Array) -> None:
    """Multiplies the input channels of a Conv without groups or of a Gemm by `factor` (C,)."""
    weight = _double(reader.inputs[1])
    axis = 0 if reader.op_type == "Gemm" and not attribute(reader, "transB", 0) else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    replace_constant(graph, reader, 1, weight * factor.reshape(shape), ".scaled")


def scale_outputs(graph: ir.Graph, conv: ir.Node, factor: Array, shift: Array) -> None:
    """Makes a Conv's output y into factor * y + shift, both (C,)."""
    weight = _double(conv.inputs[1])
    rows = factor.reshape(-1, *[1] * (weight.ndim - 1))
    replace_constant(graph, conv, 1, weight * rows, ".scaled")
    bias = bias_of(conv)
    if bias is not None:
        replace_constant(graph, conv, 2, bias * factor + shift, ".scaled")
    elif shift.any():
        _append_bias(graph, conv, shift)


def add_response(graph: ir.Graph, reader: ir.Node, constants: Array) -> None:
    """Adds to the bias what an unpadded Conv or a Gemm makes of a constant (C,) per channel."""
    weight, bias = _double(reader.inputs[1]), bias_of(reader)
    if reader.op_type == "Conv":
        response = weight.sum(axis=tuple(range(2, weight.ndim))) @ constants
    else:
        matrix = weight if attribute(reader, "transB", 0) else weight.T
        response = float(attribute(reader, "alpha", 1.0)) * (matrix @ constants)
        if bias is not None:
            bias = bias * float(attribute(reader, "beta", 1.0))
        reader.attributes.pop("beta", None)
    if bias is not None:
        replace_constant(graph, reader, 2, bias + response, ".shifted")
    elif response.any():
        _append_bias(graph, reader, response)


def bias_of(node: ir.Node) -> Array | None:
    """The bias of a Conv or Gemm in double precision, None where it has none.

    Raises:
        Refused: The bias is computed at run time.
    """
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    if constant(node.inputs[2]) is None:
        raise Refused(f"the bias of {label(node)} is not constant")
    return _double(node.inputs[2])


def _append_bias(graph: ir.Graph, node: ir.Node, bias: Array) -> None:
    weight = constant(node.inputs[1])
    assert weight is not None
    value = add_initializer(graph, f"{node.outputs[0].name}.bias", bias.astype(weight.dtype))
    node.resize_inputs(3)
    node.replace_input_with(2, value)


def _double(value: ir.Value | None) -> Array:
    array = constant(value)
    assert array is not None
    return array.astype(np.float64)
