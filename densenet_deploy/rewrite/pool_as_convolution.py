"""Write an average pool as a depthwise convolution.

Algebra: the mean over a window of n pixels is the sum of the pixels times 1 / n: a convolution of
every channel with itself alone, whose weights are all 1 / n. A runtime that has no integer average
pool, but an integer depthwise convolution, then need not leave int8.

Pattern: AveragePool whose strides are its kernel, unpadded, of a known number of channels.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from densenet_deploy.rewrite.graph import (
    add_initializer,
    channels_of,
    label,
    new_node,
    replace_node,
)
from densenet_deploy.rewrite.outcome import Outcome, Refused
from densenet_deploy.rewrite.pooling import disjoint_window


def pool_as_convolution(graph: ir.Graph) -> Outcome:
    """Replaces every AveragePool of disjoint windows by a depthwise Conv."""
    outcome = Outcome("pool_as_convolution")
    for pool in [node for node in graph if node.op_type == "AveragePool"]:
        with outcome.attempt(label(pool)):
            kernel = disjoint_window(pool)
            _rewrite(graph, pool, channels_of(pool.inputs[0]), kernel)
    return outcome


def _rewrite(graph: ir.Graph, pool: ir.Node, channels: int, kernel: list[int]) -> None:
    pooled = pool.outputs[0]
    if pooled.dtype is None:
        raise Refused("its type is not known")
    weight = np.full((channels, 1, *kernel), 1 / math.prod(kernel), pooled.dtype.numpy())
    mean = add_initializer(graph, f"{pooled.name}.mean", weight)
    conv = new_node(
        "Conv",
        [pool.inputs[0], mean],
        pooled,
        label(pool),
        group=channels,
        kernel_shape=kernel,
        strides=kernel,
    )
    replace_node(graph, pool, [conv])
