"""What the forms of a pre-activation share: BatchNormalization -> ReLU -> linear nodes -> weight.

A BatchNormalization is s * x + b for every channel, with s = gamma / sqrt(var + eps) and
b = beta - s * mean. What follows its ReLU up to the next weight is linear and keeps channels
apart, so a per-channel factor passes through it into the weight's input channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.rewrite.graph import attribute, constant, label, only_reader
from densenet_deploy.rewrite.outcome import Refused

# Shifts and bounds beyond this are refused even in a float32 graph, because the graph may become
# float16 later. Half its maximum leaves room for an addition.
SHIFT_LIMIT = float(np.finfo(np.float16).max) / 2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Preactivation:
    """A BatchNormalization that only one ReLU reads.

    Attributes:
        norm: The BatchNormalization, of four-dimensional data.
        relu: Its reader.
        scale: s, (C,).
        shift: b, (C,).
    """

    norm: ir.Node
    relu: ir.Node
    scale: Array
    shift: Array


def match_preactivation(norm: ir.Node) -> Preactivation:
    """Matches BatchNormalization -> ReLU.

    Raises:
        Refused: Another node reads the BatchNormalization, or its parameters are not constant.
    """
    normalised = norm.outputs[0]
    if normalised.dtype is None or normalised.shape is None or len(normalised.shape) != 4:
        raise Refused("its output is not known to have four dimensions")
    relu = only_reader(normalised)
    if relu is None or relu.op_type != "Relu":
        raise Refused("a single ReLU does not follow")
    return Preactivation(norm, relu, *affine(norm))


def affine(norm: ir.Node) -> tuple[Array, Array]:
    """(s, b) in double precision, such that the BatchNormalization is s * x + b.

    Raises:
        Refused: It is in training mode or its parameters are not constant.
    """
    if attribute(norm, "training_mode", 0):
        raise Refused("it is in training mode")
    parameters = [constant(value) for value in norm.inputs[1:5]]
    if any(parameter is None for parameter in parameters):
        raise Refused("its parameters are not constant")
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    epsilon = float(attribute(norm, "epsilon", 1e-5))
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - scale * mean


def linear_readers(node: ir.Node, channels: int) -> list[ir.Node]:
    """The nodes after `node`, each read by the next alone, up to the Conv or Gemm.

    The last can absorb a factor per channel and those before it pass it on.

    Raises:
        Refused: There are several readers on the way, or one does not pass a factor on.
    """
    nodes: list[ir.Node] = []
    while True:
        reader = only_reader(node.outputs[0])
        if reader is None:
            raise Refused(f"{label(node)} has several readers or is a graph output")
        if reader.inputs[0] is not node.outputs[0]:
            raise Refused(f"{label(reader)} reads it as a parameter")
        nodes.append(reader)
        if reader.op_type in ("Conv", "Gemm"):
            _check_absorbs(reader)
            return nodes
        if not _is_channelwise_linear(reader, channels):
            raise Refused(f"{reader.op_type} {label(reader)} does not pass a factor on")
        node = reader


def check_limit(name: str, values: Array, scale: Array) -> None:
    """Refuses what half precision cannot hold.

    Raises:
        Refused: Some magnitude exceeds `SHIFT_LIMIT`.
    """
    if not (np.abs(values) <= SHIFT_LIMIT).all():
        channel = int(np.abs(values).argmax())
        raise Refused(
            f"the scale of channel {channel} is {scale[channel]:.3g}: "
            f"its {name} {values[channel]:.3g} would exceed {SHIFT_LIMIT:.0f}"
        )


def _check_absorbs(reader: ir.Node) -> None:
    if constant(reader.inputs[1]) is None:
        raise Refused(f"the weight of {label(reader)} is not constant")
    if attribute(reader, "group", 1) != 1:
        raise Refused(f"{label(reader)} is a grouped convolution")
    if attribute(reader, "transA", 0):
        raise Refused(f"{label(reader)} transposes its input")


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
