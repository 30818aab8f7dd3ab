"""Apply a ReLU after the max pool that reads it.

Algebra: ReLU does not decrease, so the largest of several ReLUs is the ReLU of the largest,
`max(relu(a), relu(b)) = relu(max(a, b))`. ONNX pads a max pool with minus infinity, which neither
side returns as long as every window holds a pixel. The stem's ReLU then runs on a quarter of the
pixels, and TensorRT-RTX fuses it with what follows.

Pattern: Relu -> MaxPool, nothing else reading the ReLU or the indices of the pool.
"""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.rewrite.graph import attribute, label, new_node, only_reader, replace_node
from densenet_deploy.rewrite.outcome import Outcome, Refused


def relu_after_pool(graph: ir.Graph) -> Outcome:
    """Swaps every Relu -> MaxPool pair for which the algebra holds."""
    outcome = Outcome("relu_after_pool")
    for pool in [node for node in graph if node.op_type == "MaxPool"]:
        relu = pool.inputs[0].producer() if pool.inputs[0] is not None else None
        if relu is not None and relu.op_type == "Relu":
            with outcome.attempt(label(pool)):
                _check(relu, pool)
                _swap(graph, relu, pool)
    return outcome


def _check(relu: ir.Node, pool: ir.Node) -> None:
    if only_reader(relu.outputs[0]) is not pool:
        raise Refused(f"something else reads {label(relu)}")
    if len(pool.outputs) > 1:
        raise Refused("it also returns indices, which differ where several pixels are negative")
    kernel = attribute(pool, "kernel_shape", ())
    pads = attribute(pool, "pads", ())
    dilated = any(size != 1 for size in attribute(pool, "dilations", ()))
    too_wide = any(pad >= size for pad, size in zip(pads, [*kernel, *kernel], strict=False))
    if attribute(pool, "ceil_mode", 0) or too_wide or (dilated and any(pads)):
        raise Refused("a window may hold padding only")


def _swap(graph: ir.Graph, relu: ir.Node, pool: ir.Node) -> None:
    pooled = pool.outputs[0]
    before = new_node("MaxPool", [relu.inputs[0]], pooled, f"{pooled.name}.before_relu")
    before.name = label(pool)
    for item in pool.attributes.values():
        before.attributes.add(item)
    after = new_node("Relu", [before.outputs[0]], pooled, label(relu))
    replace_node(graph, pool, [before, after])
    graph.remove(relu, safe=True)
