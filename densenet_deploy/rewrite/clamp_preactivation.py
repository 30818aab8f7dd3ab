"""Fold a pre-activation BatchNorm into the next weight and leave a clamp.

Algebra: with s and b of the BatchNorm and t = -b / s, for every channel

    relu(s * x + b) = s * max(x, t) + b    where s > 0
                    = s * min(x, t) + b    where s < 0
                    = relu(b)              where s = 0.

The factor and the constant pass through any per-channel mean (average pool without padding, global
mean, flatten). The next weight W absorbs the factor in its input channels and its bias absorbs the
constant, W summed over the kernel times b. Zero padding is not the constant b, so neither the pool
nor the convolution may be padded. What remains is one Max with t, and only where some s is
negative a Min; a channel that one of them does not concern has a bound that no number exceeds, and
a channel with s = 0 has a weight of zero. Because a clamp only compares, it can run on quantized
numbers, on the quantization grid of its input.

Pattern: as in `fold_preactivation`, with unpadded pools and an unpadded Conv.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from densenet_deploy.rewrite.graph import add_initializer, label, new_node
from densenet_deploy.rewrite.outcome import Outcome
from densenet_deploy.rewrite.pooling import check_unpadded
from densenet_deploy.rewrite.preactivation import (
    Array,
    check_limit,
    linear_readers,
    match_preactivation,
)
from densenet_deploy.rewrite.weights import add_response, bias_of, scale_inputs


@dataclass(frozen=True)
class _Match:
    norm: ir.Node
    relu: ir.Node
    reader: ir.Node  # the Conv or Gemm
    scale: Array
    bound: Array
    constant: Array


def clamp_preactivation(graph: ir.Graph) -> Outcome:
    """Replaces each BatchNormalization -> Relu that its reader can absorb by a clamp."""
    outcome = Outcome("clamp_preactivation")
    for norm in [node for node in graph if node.op_type == "BatchNormalization"]:
        with outcome.attempt(label(norm)):
            _rewrite(graph, _match(norm))
    return outcome


def _match(norm: ir.Node) -> _Match:
    found = match_preactivation(norm)
    scale, shift = found.scale, found.shift
    readers = linear_readers(found.relu, len(scale))
    for node in readers:
        check_unpadded(node)
    bias_of(readers[-1])  # refuses one that is not constant
    active = scale != 0
    with np.errstate(over="ignore"):
        bound = np.divide(-shift, scale, out=np.zeros_like(scale), where=active)
    check_limit("bound", np.where(active, bound, shift), scale)
    constant = np.where(active, shift, np.maximum(shift, 0))
    return _Match(norm, found.relu, readers[-1], scale, bound, constant)


def _rewrite(graph: ir.Graph, match: _Match) -> None:
    norm, relu, scale = match.norm, match.relu, match.scale
    data, normalised = norm.inputs[0], norm.outputs[0]
    assert data is not None and normalised.dtype is not None
    dtype = normalised.dtype.numpy()
    clamps = (
        ("Max", "lower", scale > 0, np.finfo(dtype).min),
        ("Min", "upper", scale < 0, np.finfo(dtype).max),
    )
    for operator, side, concerned, neutral in clamps:
        if concerned.any():
            bound = np.where(concerned, match.bound, neutral).reshape(-1, 1, 1).astype(dtype)
            limit = add_initializer(graph, f"{normalised.name}.{side}", bound)
            name = f"{normalised.name}.{operator.lower()}"
            clamp = new_node(operator, [data, limit], normalised, name)
            graph.insert_before(norm, clamp)
            data = clamp.outputs[0]
    relu.outputs[0].replace_all_uses_with(data)
    add_response(graph, match.reader, match.constant)  # of the weight before it is scaled
    scale_inputs(graph, match.reader, scale)
    graph.remove([relu, norm], safe=True)
