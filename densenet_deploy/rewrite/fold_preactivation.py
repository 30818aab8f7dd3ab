"""Fold the scale of a pre-activation BatchNorm into the convolution that follows its ReLU.

Algebra: with s and b of the BatchNorm, and because ReLU is positively homogeneous, for every
channel with s != 0

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

from densenet_deploy.rewrite.graph import add_initializer, label, new_node
from densenet_deploy.rewrite.outcome import Outcome
from densenet_deploy.rewrite.preactivation import (
    Array,
    check_limit,
    linear_readers,
    match_preactivation,
)
from densenet_deploy.rewrite.weights import scale_inputs


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
        with outcome.attempt(label(norm)):
            _rewrite(graph, _match(norm))
    return outcome


def _match(norm: ir.Node) -> _Match:
    found = match_preactivation(norm)
    scale = found.scale
    reader = linear_readers(found.relu, len(scale))[-1]
    factor = np.where(scale == 0, 1.0, np.abs(scale))
    with np.errstate(over="ignore"):
        shift = found.shift / factor
    check_limit("shift", shift, scale)
    return _Match(norm, found.relu, reader, np.sign(scale), factor, shift)


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
    scale_inputs(graph, match.reader, match.factor)
    graph.remove(norm, safe=True)
