"""FP16: half-precision initializers and compute between fp32 inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from densenet_deploy.errors import GraphError

_LIMIT = float(np.finfo(np.float16).max)
_NEUTRAL = float(np.finfo(np.float32).max)  # a bound that no number exceeds


def to_half(model: ir.Model) -> None:
    """Converts `model` in place; a Cast follows each input and precedes each output.

    Raises:
        GraphError: An initializer exceeds the range of half precision.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    for value in graph.initializers.values():
        _halve_initializer(value)
    for node in graph:
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = ir.TensorType(ir.DataType.FLOAT16)
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            _cast_input(graph, value)
    for index, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.FLOAT16:
            _cast_output(graph, index, value)


def _halve_initializer(value: ir.Value) -> None:
    if value.dtype != ir.DataType.FLOAT or value.const_value is None:
        return
    array = value.const_value.numpy()
    array = np.where(np.abs(array) == _NEUTRAL, np.copysign(_LIMIT, array), array)
    largest = float(np.abs(array).max(initial=0))
    if not largest <= _LIMIT:
        raise GraphError(
            f"initializer {value.name} reaches {largest:.3g}",
            expected=f"at most {_LIMIT:.0f}, the largest half-precision number",
            remedy="use fp32, or export with another target's rewrites",
        )
    value.const_value = ir.tensor(array.astype(np.float16), name=value.name)
    value.type = ir.TensorType(ir.DataType.FLOAT16)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
    cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, dtype, value.shape
    return cast


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    cast = _cast(value, ir.DataType.FLOAT16, f"{value.name}.half")
    readers = [(use.node, use.idx) for use in value.uses() if use.node is not cast]
    for node, index in readers:
        node.replace_input_with(index, cast.outputs[0])
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value) -> None:
    name = value.name
    value.name = f"{name}.half"
    cast = _cast(value, ir.DataType.FLOAT, f"{name}.float")
    cast.outputs[0].name = name
    graph.append(cast)
    graph.outputs[index] = cast.outputs[0]
