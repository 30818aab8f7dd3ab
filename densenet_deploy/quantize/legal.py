"""Refuses INT8 graphs that a target rejects, crashes on, or runs otherwise than they say.

Each rule for TensorRT is what tensorrt_rtx 1.7.1 was seen to do, and a test shows it doing so; its
parser is that of TensorRT 11. Some of it comes with a warning at most: the engine is built, and is
wrong above 127 or convolves in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.errors import GraphError
from densenet_deploy.recipe import Target
from densenet_deploy.rewrite.graph import attribute, label

_OPERATORS = ("QLinear", "QGemm", "QAttention", "DynamicQuantize", "ConvInteger", "MatMulInteger")
_STORED = {ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4}
# Nodes behind which TensorRT moves the DequantizeLinear of their first input, of all for Concat.
_MOVING = {"Concat", "MaxPool", "GlobalMaxPool", "Slice", "Split", "Gather", "Pad", "DepthToSpace"}
_MOVING |= {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout"}
_NAMED = 4

_SCALE = "a scale that is zero, negative or not finite; expected positive numbers"
_UINT8 = "uint8, or no zero-point, which means it; expected int8: TensorRT clips it above 127"
_BIAS = "int32, which TensorRT rejects; expected a bias in floating point"
_TYPE = "integers of a type that TensorRT rejects; expected int8"
_ZERO_POINT = "a zero-point other than 0, which TensorRT rejects. Quantize symmetrically"
_COMPUTED = "a scale or zero-point that depends on inputs and kills the builder; expected constants"
_OPERATOR = "not an operator of TensorRT; expected DequantizeLinear, floating point, QuantizeLinear"
_CONSTANT = "an int8 constant, which TensorRT takes at DequantizeLinear only. Compute in float"
_MIXED = "types TensorRT cannot convolve; expected int8 data and weight, or float8e4m3fn"
_SILENT = "makes TensorRT silently compute in float: "
_CHANNELS = _SILENT + "an activation with several scales; expected one"
_SHAPED = _SILENT + "the scale of what it reads has the shape [1]; expected a scalar, shape []"
_SEVERAL = _SILENT + "what it reads is joined from several scales. Quantize behind the Concat"
_FLOAT = _SILENT + "only its weight is quantized. Quantize what it reads too, right before it"
_AXIS = _SILENT + "weight scales along another axis (the default is 1) than its output channels"


def check_legal(model: ir.Model, target: Target) -> None:
    """Refuses a quantized graph that `target` would not run as INT8 with the graph's own numbers.

    Every target needs positive, finite scales; the other rules are TensorRT's. What is left in
    floating point is legal.

    Raises:
        GraphError: Says all that is wrong, and at which nodes.
    """
    nodes = list(model.graph.all_nodes())
    known = _known_before_running(nodes)
    places: dict[str, list[str]] = {}
    for node in nodes:
        for problem in _problems(node, known, target in ("tensorrt", "tensorrt-rtx")):
            places.setdefault(problem, []).append(label(node))
    if places:
        listed = []
        for problem, names in places.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            listed.append(f"{', '.join(names[:_NAMED])}{more}: {problem}")
        made_for = model.metadata_props.get("densenet_deploy.target", target)
        lowered = "" if made_for == target else f", lowered for {made_for},"
        raise GraphError.collect(f"the graph{lowered} is not legal for {target}", listed)


def _problems(node: ir.Node, known: Set[ir.Value], tensorrt: bool) -> Iterator[str]:
    pair = node.op_type in ("QuantizeLinear", "DequantizeLinear")  # of com.microsoft as well
    if pair and not _repeats(node):
        scale = _array(node, 1)
        if scale is not None and not _is_positive(scale):
            yield _SCALE
        if tensorrt:
            yield from _pair_problems(node, known)
    if not tensorrt or pair:
        return
    if node.op_type.startswith(_OPERATORS):
        yield _OPERATOR
    elif node.op_type != "Clip" and any(_is_int8(node, index) for index in range(len(node.inputs))):
        yield _CONSTANT
    weight = _dequantize(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is not None and weight.inputs[0] in known:
        if _has_other_axis(node, weight):
            yield _AXIS
        if node.op_type == "Conv":
            yield from _data_problems(node, weight)


def _pair_problems(node: ir.Node, known: Set[ir.Value]) -> Iterator[str]:
    stored, scale, zero = _stored(node), _array(node, 1), _array(node, 2)
    if stored is not None and stored not in _STORED:
        yield {ir.DataType.UINT8: _UINT8, ir.DataType.INT32: _BIAS}.get(stored, _TYPE)
    if zero is not None and zero.astype(np.float32).any():
        yield _ZERO_POINT
    if any(value is not None and value not in known for value in node.inputs[1:]):
        yield _COMPUTED
    if scale is not None and scale.size > 1 and node.inputs[0] not in known:
        yield _CHANNELS


def _has_other_axis(node: ir.Node, weight: ir.Node) -> bool:
    columns = 0 if attribute(node, "transB", 0) else 1
    expected = {"Conv": 0, "Gemm": columns, "MatMul": 1}.get(node.op_type)
    scale, axis = _array(weight, 1), attribute(weight, "axis", 1)
    if expected is None or scale is None or scale.size == 1:
        return False
    if scale.ndim > 1:  # blocks
        return node.op_type == "Conv"
    stored = weight.inputs[0]
    if axis < 0 and stored is not None and stored.shape is not None:
        axis += len(stored.shape)
    return bool(axis >= 0 and axis != expected)


def _data_problems(node: ir.Node, weight: ir.Node) -> Iterator[str]:
    read = [_dequantize(value) for value in _sources(node.inputs[0])]
    data = [source for source in read if source is not None]
    if len(data) < len(read):
        yield _FLOAT
        return
    scales = [scale for source in data if (scale := _array(source, 1)) is not None]
    if any(scale.shape == (1,) for scale in scales):
        yield _SHAPED
    if len({scale.item() for scale in scales if scale.size == 1}) > 1:
        yield _SEVERAL
    types = {_stored(source) for source in (weight, *data)}
    if types <= _STORED and (len(types) > 1 or ir.DataType.INT4 in types):
        yield _MIXED


def _sources(value: ir.Value | None) -> Iterator[ir.Value | None]:
    """What a value is gathered from by nodes that only move numbers."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        node = None if current is None else current.producer()
        if node is None or node.op_type not in _MOVING:
            yield current
            continue
        operands = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        waiting.extend(operand for operand in operands if operand not in seen)
        seen.update(operands)


def _known_before_running(nodes: list[ir.Node]) -> set[ir.Value]:
    """Constants, and what is computed from constants alone."""
    known: set[ir.Value] = set()
    for node in nodes:
        known.update(v for v in node.inputs if v is not None and v.const_value is not None)
        if all(value is None or value in known for value in node.inputs):
            known.update(node.outputs)
    return known


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _quantize(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that a node reads."""
    before = None if node.inputs[0] is None else node.inputs[0].producer()
    return before if before is not None and before.op_type == "QuantizeLinear" else None


def _repeats(node: ir.Node) -> bool:
    """Whether it reads a QuantizeLinear with the same parameters, so has the same problems."""
    before = _quantize(node)
    return before is not None and before.inputs[1:] == node.inputs[1:]


def _stored(node: ir.Node) -> ir.DataType | None:
    """Type between QuantizeLinear and DequantizeLinear; None where the graph does not say."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node.inputs[2].dtype
    if node.op_type == "QuantizeLinear":
        return ir.DataType(attribute(node, "output_dtype", 0) or ir.DataType.UINT8)
    before = _quantize(node)
    if before is not None:
        return _stored(before)
    return None if node.inputs[0] is None else node.inputs[0].dtype


def _array(node: ir.Node, index: int) -> NDArray[np.generic] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _is_int8(node: ir.Node, index: int) -> bool:
    array = _array(node, index)
    return array is not None and array.dtype == np.int8


def _is_positive(scale: NDArray[np.generic]) -> bool:
    real = scale.astype(np.float64)
    return bool((np.isfinite(real) & (real > 0)).all())
