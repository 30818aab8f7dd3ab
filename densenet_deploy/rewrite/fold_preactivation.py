"""Fold the scale of a pre-activation BatchNorm into the convolution that follows its ReLU.

Algebra: with s = gamma / sqrt(var + eps) and b = beta - s * mean, and because ReLU is positively
homogeneous, for every channel with s != 0

    relu(s * x + b) = |s| * relu(sign(s) * x + b / |s|).

The factor |s| passes through any per-channel linear map that follows (average pool, global mean,
flatten) and is absorbed by the input channels of the next Conv or Gemm weight; zero padding stays
zero, so a padded 3x3 convolution is covered too. What remains is an Add and the ReLU, and, only
where some s is not positive, a multiply by sign(s). A channel with s = 0 is the constant relu(b):
the same form with sign 0 and factor 1.

Pattern: BatchNormalization -> Relu -> [AveragePool | GlobalAveragePool | ReduceMean over pixels |
Reshape or Flatten to (N, C)]* -> Conv | Gemm, each read by the next alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.rewrite.graph import (
    add_initializer,
    attribute,
    constant,
    label,
    new_node,
    only_reader,
)
from densenet_deploy.rewrite.outcome import Outcome

# Shifts beyond this are refused even in a float32 graph, because the graph may become float16
# later. Half its maximum leaves room for the addition.
SHIFT_LIMIT = float(np.finfo(np.float16).max) / 2

Array = NDArray[np.float64]


class _Refused(Exception):
    """Internal: why the pattern does not hold here."""


@dataclass(frozen=True)
class _Match:
    norm: ir.Node
    relu: ir.Node
    reader: ir.Node  # the Conv or Gemm
    sign: Array
    factor: Array
    shift: Array


def fold_preactivation(graph: ir.Graph) -> Outcome:
    """Replaces each foldable BatchNormalization by an Add (and a multiply by signs)."""
    outcome = Outcome("fold_preactivation")
    for norm in [node for node in graph if node.op_type == "BatchNormalization"]:
        try:
            match = _match(norm)
        except _Refused as refused:
            outcome.refuse(label(norm), str(refused))
        else:
            _rewrite(graph, match)
            outcome.count += 1
    return outcome


def _match(norm: ir.Node) -> _Match:
    normalised = norm.outputs[0]
    if normalised.dtype is None or normalised.shape is None or len(normalised.shape) != 4:
        raise _Refused("its output is not known to have four dimensions")
    relu = only_reader(normalised)
    if relu is None or relu.op_type != "Relu":
        raise _Refused("a single ReLU does not follow")
    scale, shift = _affine(norm)
    reader = _linear_reader(relu, len(scale))
    sign = np.sign(scale)
    factor = np.where(scale == 0, 1.0, np.abs(scale))
    with np.errstate(over="ignore"):
        shift = shift / factor
    if not (np.abs(shift) <= SHIFT_LIMIT).all():
        channel = int(np.abs(shift).argmax())
        raise _Refused(
            f"the scale of channel {channel} is {scale[channel]:.3g}: "
            f"its shift {shift[channel]:.3g} would exceed {SHIFT_LIMIT:.0f}"
        )
    return _Match(norm, relu, reader, sign, factor, shift)


def _affine(norm: ir.Node) -> tuple[Array, Array]:
    """(s, b) in double precision, such that the BatchNorm is s * x + b."""
    if attribute(norm, "training_mode", 0):
        raise _Refused("it is in training mode")
    parameters = [constant(value) for value in norm.inputs[1:5]]
    if any(parameter is None for parameter in parameters):
        raise _Refused("its parameters are not constant")
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    epsilon = float(attribute(norm, "epsilon", 1e-5))
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - scale * mean


def _linear_reader(node: ir.Node, channels: int) -> ir.Node:
    """Follows per-channel linear nodes to the Conv or Gemm that can absorb a factor."""
    while True:
        reader = only_reader(node.outputs[0])
        if reader is None:
            raise _Refused(f"{label(node)} has several readers or is a graph output")
        if reader.inputs[0] is not node.outputs[0]:
            raise _Refused(f"{label(reader)} reads it as a parameter")
        if reader.op_type in ("Conv", "Gemm"):
            _check_absorbs(reader)
            return reader
        if not _is_channelwise_linear(reader, channels):
            raise _Refused(f"{reader.op_type} {label(reader)} does not pass a factor on")
        node = reader


def _check_absorbs(reader: ir.Node) -> None:
    if constant(reader.inputs[1]) is None:
        raise _Refused(f"the weight of {label(reader)} is not constant")
    if attribute(reader, "group", 1) != 1:
        raise _Refused(f"{label(reader)} is a grouped convolution")
    if attribute(reader, "transA", 0):
        raise _Refused(f"{label(reader)} transposes its input")


def _is_channelwise_linear(node: ir.Node, channels: int) -> bool:
    if node.op_type in ("AveragePool", "GlobalAveragePool"):
        return True
    before, after = node.inputs[0].shape, node.outputs[0].shape  # type: ignore[union-attr]
    if node.op_type == "ReduceMean" and before is not None and len(before) == 4:
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]
    if node.op_type in ("Reshape", "Flatten") and before is not None and after is not None:
        # (N, C, 1, 1) to (N, C): the channel stays the channel. With more pixels it would not.
        pixels = before[2:]
        return before[1] == channels and set(pixels) <= {1} and after[1:] == (channels,)
    return False


def _rewrite(graph: ir.Graph, match: _Match) -> None:
    norm, relu = match.norm, match.relu
    data, normalised = norm.inputs[0], norm.outputs[0]
    assert data is not None and normalised.dtype is not None
    dtype = normalised.dtype.numpy()
    name = normalised.name  # unique, which a node's name need not be
    per_channel = (-1, 1, 1)
    nodes = []
    if (match.sign != 1).any():
        sign = add_initializer(graph, f"{name}.sign", match.sign.reshape(per_channel).astype(dtype))
        nodes.append(new_node("Mul", [data, sign], normalised, f"{name}.flip"))
        data = nodes[-1].outputs[0]
    shift = add_initializer(graph, f"{name}.shift", match.shift.reshape(per_channel).astype(dtype))
    nodes.append(new_node("Add", [data, shift], normalised, f"{name}.add"))
    graph.insert_before(relu, nodes)
    relu.replace_input_with(0, nodes[-1].outputs[0])
    _scale_input_channels(graph, match.reader, match.factor)
    graph.remove(norm, safe=True)


def _scale_input_channels(graph: ir.Graph, reader: ir.Node, factor: Array) -> None:
    weight = constant(reader.inputs[1])
    assert weight is not None and reader.inputs[1] is not None
    axis = 0 if reader.op_type == "Gemm" and not attribute(reader, "transB", 0) else 1
    shape = [1] * weight.ndim
    shape[axis] = len(factor)
    scaled = (weight.astype(np.float64) * factor.reshape(shape)).astype(weight.dtype)
    name = f"{reader.inputs[1].name}.scaled"
    reader.replace_input_with(1, add_initializer(graph, name, scaled))
