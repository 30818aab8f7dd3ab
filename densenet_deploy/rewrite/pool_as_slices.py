"""Write an average pool before a 1x1 convolution as a sum of four slices.

Algebra: the mean over 2x2 pixels is a quarter of the sum of the four images that keep every other
row and column, x[a::2, b::2] with a, b in {0, 1}. The convolution's weight absorbs the quarter.
The pool drops an odd last row or column, so the slices end before it. TensorRT-RTX computes slices
and additions in one kernel with what precedes them, and does not write the image before the pool.

Pattern: AveragePool (kernel and strides 2x2, unpadded, height and width known) -> Conv 1x1, nothing
else reading the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from densenet_deploy.rewrite.graph import (
    add_initializer,
    constant,
    label,
    new_node,
    only_reader,
)
from densenet_deploy.rewrite.outcome import Outcome, Refused
from densenet_deploy.rewrite.pooling import disjoint_window
from densenet_deploy.rewrite.weights import scale_inputs


def pool_as_slices(graph: ir.Graph) -> Outcome:
    """Replaces every 2x2 AveragePool before a 1x1 Conv by slices and additions."""
    outcome = Outcome("pool_as_slices")
    for pool in [node for node in graph if node.op_type == "AveragePool"]:
        with outcome.attempt(label(pool)):
            _rewrite(graph, pool, *_match(pool))
    return outcome


def _match(pool: ir.Node) -> tuple[ir.Node, list[int]]:
    """The convolution, and where the slices of rows and columns end."""
    kernel = disjoint_window(pool)
    if kernel != [2, 2]:
        raise Refused(f"its kernel is {'x'.join(map(str, kernel))}, not 2x2")
    conv = only_reader(pool.outputs[0])
    if conv is None or conv.op_type != "Conv" or conv.inputs[0] is not pool.outputs[0]:
        raise Refused("a single convolution does not follow")
    weight = constant(conv.inputs[1])
    if weight is None:
        raise Refused(f"the weight of {label(conv)} is not constant")
    if set(weight.shape[2:]) != {1}:
        raise Refused(f"the kernel of {label(conv)} is not 1x1")
    shape = pool.inputs[0].shape if pool.inputs[0] is not None else None
    sizes = [] if shape is None else [size for size in shape[2:] if isinstance(size, int)]
    if len(sizes) != 2:
        raise Refused("the height and width of its input are not known")
    return conv, [size // 2 * 2 for size in sizes]


def _rewrite(graph: ir.Graph, pool: ir.Node, conv: ir.Node, ends: Sequence[int]) -> None:
    pooled = pool.outputs[0]
    name = str(pooled.name)

    def integers(key: str, values: Sequence[int]) -> ir.Value:
        return add_initializer(graph, f"{name}.{key}", np.array(values, np.int64))

    end, axes, steps = integers("ends", ends), integers("axes", [2, 3]), integers("steps", [2, 2])
    total: ir.Value | None = None
    for row, column in np.ndindex(2, 2):
        start = integers(f"start{row}{column}", [row, column])
        inputs = [pool.inputs[0], start, end, axes, steps]
        part = new_node("Slice", inputs, pooled, f"{name}.slice{row}{column}")
        graph.insert_before(pool, part)
        if total is None:
            total = part.outputs[0]
        else:
            key = f"{name}.sum{row}{column}"
            add = new_node("Add", [total, part.outputs[0]], pooled, key)
            graph.insert_before(pool, add)
            total = add.outputs[0]
    conv.replace_input_with(0, total)
    scale_inputs(graph, conv, np.full(1, 0.25))
    graph.remove(pool, safe=True)
