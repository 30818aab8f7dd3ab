"""Give every channel between two convolutions a free factor.

Algebra: ReLU is positively homogeneous, so with any f > 0 per channel

    W2 relu(W1 x + b1) = (W2 / f) relu(f W1 x + f b1).

The output channels of the first weight and its bias are multiplied, the input channels of the
second are divided; zero padding stays zero. With it one INT8 scale can serve a whole weight.

Pattern: Conv -> Relu -> Conv without groups, each read by the next alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.rewrite.graph import attribute, constant, label, only_reader
from densenet_deploy.rewrite.outcome import Outcome, Refused
from densenet_deploy.rewrite.weights import bias_of, scale_inputs, scale_outputs


def equalize_weights(graph: ir.Graph, factors: Mapping[str, NDArray[np.float64]]) -> Outcome:
    """Multiplies the output channels of named convolutions and divides in the next one.

    Args:
        graph: Changed in place.
        factors: (C,), positive, by the name of the first convolution's output.
    """
    outcome = Outcome("equalize_weights")
    written = {output.name: node for node in graph for output in node.outputs}
    for name, factor in factors.items():
        with outcome.attempt(name):
            if name not in written:
                raise Refused("no node writes a value of this name")
            first = written[name]
            second = _match(first, factor)
            scale_outputs(graph, first, factor, np.zeros_like(factor))
            scale_inputs(graph, second, 1 / factor)
    return outcome


def _match(first: ir.Node, factor: NDArray[np.float64]) -> ir.Node:
    if first.op_type != "Conv":
        raise Refused(f"it is the output of a {first.op_type}, not of a convolution")
    weight = constant(first.inputs[1])
    if weight is None:
        raise Refused(f"the weight of {label(first)} is not constant")
    bias_of(first)  # refuses one that is not constant
    if factor.shape != weight.shape[:1]:
        raise Refused(f"there are {len(weight)} channels and factors of shape {factor.shape}")
    if not (np.isfinite(factor) & (factor > 0)).all():
        raise Refused("the factors are not positive and finite")
    relu = only_reader(first.outputs[0])
    if relu is None or relu.op_type != "Relu":
        raise Refused("a single ReLU does not follow")
    second = only_reader(relu.outputs[0])
    if second is None or second.op_type != "Conv" or second.inputs[0] is not relu.outputs[0]:
        raise Refused("a single convolution does not follow the ReLU")
    if constant(second.inputs[1]) is None:
        raise Refused(f"the weight of {label(second)} is not constant")
    if attribute(second, "group", 1) != 1:
        raise Refused(f"{label(second)} is a grouped convolution")
    return second
