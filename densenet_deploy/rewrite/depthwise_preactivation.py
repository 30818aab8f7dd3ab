"""Write a pre-activation BatchNorm as a depthwise 1x1 convolution.

Algebra: s * x + b per channel is a convolution of every channel with itself alone, with one weight
s and the bias b. ONNX Runtime runs an integer convolution and the ReLU after it as one node, where
it has no integer BatchNorm.

Pattern: BatchNormalization -> Relu, on four-dimensional data, nothing else reading the first.
"""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.rewrite.graph import add_initializer, label, new_node, replace_node
from densenet_deploy.rewrite.outcome import Outcome
from densenet_deploy.rewrite.preactivation import Preactivation, match_preactivation


def depthwise_preactivation(graph: ir.Graph) -> Outcome:
    """Replaces each BatchNormalization before a ReLU by a depthwise Conv."""
    outcome = Outcome("depthwise_preactivation")
    for norm in [node for node in graph if node.op_type == "BatchNormalization"]:
        with outcome.attempt(label(norm)):
            _rewrite(graph, match_preactivation(norm))
    return outcome


def _rewrite(graph: ir.Graph, match: Preactivation) -> None:
    norm, normalised = match.norm, match.norm.outputs[0]
    assert normalised.dtype is not None
    dtype, channels = normalised.dtype.numpy(), len(match.scale)
    weight = match.scale.reshape(-1, 1, 1, 1).astype(dtype)
    inputs = [
        norm.inputs[0],
        add_initializer(graph, f"{normalised.name}.scale", weight),
        add_initializer(graph, f"{normalised.name}.shift", match.shift.astype(dtype)),
    ]
    name = label(norm)
    conv = new_node("Conv", inputs, normalised, name, group=channels, kernel_shape=[1, 1])
    replace_node(graph, norm, [conv])
