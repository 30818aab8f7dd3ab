"""Give every channel of a dense block's concat a free factor and shift.

Algebra: let x be a channel of a value that is written into a concat, and x' = f * x + h with f > 0.
A BatchNorm reads the same from x' as from x with mean' = f * mean + h and gamma' = gamma / f, its
variance and epsilon untouched:

    gamma' / sqrt(var + eps) * (x' - mean') = gamma / sqrt(var + eps) * (x - mean).

Every reader of a dense block's concat is such a BatchNorm, so f and h are free: they can make the
channels of a block equally wide for one INT8 scale. The Conv that writes x gets weight' = f *
weight and bias' = f * bias + h. Between it and the concat a mean and a maximum over pixels let
both pass (zero padding of an average only f), and a ReLU lets f pass, being positively
homogeneous. BN here is per-channel, so a concat reads a slice of its parameters.

Pattern: Conv -> [AveragePool | MaxPool | Relu]* -> the named value -> [Concat of channels]* ->
BatchNormalization, where nothing else reads what changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from densenet_deploy.rewrite.graph import (
    channels_of,
    constant,
    joins_channels,
    label,
    only_reader,
)
from densenet_deploy.rewrite.outcome import Outcome, Refused
from densenet_deploy.rewrite.pooling import check_unpadded
from densenet_deploy.rewrite.preactivation import Array, affine
from densenet_deploy.rewrite.weights import bias_of, replace_constant, scale_outputs


@dataclass(frozen=True)
class Equalization:
    """What a value x becomes, per channel: factor * x + shift.

    Attributes:
        factor: (C,), positive.
        shift: (C,).
    """

    factor: Array
    shift: Array


@dataclass(frozen=True)
class _Slice:
    """Channels of a BatchNormalization that read the value, from `first` on."""

    norm: ir.Node
    first: int


def equalize_concat(graph: ir.Graph, factors: Mapping[str, Equalization]) -> Outcome:
    """Scales and shifts the channels of named values, and their readers the other way.

    Args:
        graph: Changed in place.
        factors: By the name of a value that is written into a dense block's concat: the output of
            a growth convolution, of a transition, of the first pool.
    """
    outcome = Outcome("equalize_concat")
    written = {output.name: output for node in graph for output in node.outputs}
    for name, wanted in factors.items():
        with outcome.attempt(name):
            if name not in written:
                raise Refused("no node writes a value of this name")
            value = written[name]
            _check_numbers(wanted, channels_of(value))
            slices = _readers(value, 0)
            conv = _producer(value, bool(wanted.shift.any()))
            scale_outputs(graph, conv, wanted.factor, wanted.shift)
            for part in slices:
                _compensate(graph, part, wanted)
    return outcome


def _check_numbers(wanted: Equalization, channels: int) -> None:
    for name, array in (("factors", wanted.factor), ("shifts", wanted.shift)):
        if array.shape != (channels,):
            raise Refused(f"there are {channels} channels and {name} of shape {array.shape}")
        if not np.isfinite(array).all():
            raise Refused(f"the {name} are not finite")
    if not (wanted.factor > 0).all():
        raise Refused("the factors are not positive")


def _readers(value: ir.Value, first: int) -> list[_Slice]:
    if value.is_graph_output():
        raise Refused(f"{value.name} is a graph output")
    slices = []
    for node, index in value.uses():
        if node.op_type == "BatchNormalization" and index == 0:
            affine(node)  # refuses what is not constant
            slices.append(_Slice(node, first))
        elif joins_channels(node):
            before = sum(channels_of(earlier) for earlier in node.inputs[:index])
            slices += _readers(node.outputs[0], first + before)
        else:
            raise Refused(f"{node.op_type} {label(node)} reads {value.name}")
    return slices


def _producer(value: ir.Value, shifted: bool) -> ir.Node:
    node = value.producer()
    while node is not None and node.op_type in ("AveragePool", "MaxPool", "Relu"):
        if shifted and node.op_type == "AveragePool":
            check_unpadded(node)
        if shifted and node.op_type == "Relu":
            raise Refused(f"a shift does not pass through the ReLU {label(node)}")
        before = node.inputs[0]
        if before is None or only_reader(before) is not node:
            raise Refused(f"something else reads the input of {label(node)}")
        node = before.producer()
    if node is None or node.op_type != "Conv":
        raise Refused("it does not come from a convolution")
    if constant(node.inputs[1]) is None:
        raise Refused(f"the weight of {label(node)} is not constant")
    bias_of(node)  # refuses one that is not constant
    return node


def _compensate(graph: ir.Graph, part: _Slice, wanted: Equalization) -> None:
    channels = slice(part.first, part.first + len(wanted.factor))
    gamma, mean = (
        np.array(constant(part.norm.inputs[index]), np.float64)  # a copy
        for index in (1, 3)
    )
    gamma[channels] /= wanted.factor
    mean[channels] = wanted.factor * mean[channels] + wanted.shift
    replace_constant(graph, part.norm, 1, gamma, ".scaled")
    replace_constant(graph, part.norm, 3, mean, ".scaled")
