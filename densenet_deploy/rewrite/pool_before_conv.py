"""Pool before a transition's 1x1 convolution instead of after it.

Algebra: an average pool is a linear map over pixels and a 1x1 convolution a linear map over
channels, so they commute, `pool(W x + b) = W pool(x) + b` (the weights of an average sum to one).
With a 2x2 pool the convolution runs on a quarter of the pixels: 8 % fewer MACs on DenseNet-121.

Pattern: Conv (1x1, stride 1, unpadded) -> AveragePool (unpadded), nothing else reading the conv.
"""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.rewrite.graph import attribute, constant, label, new_node, only_reader
from densenet_deploy.rewrite.outcome import Outcome


def pool_before_conv(graph: ir.Graph) -> Outcome:
    """Swaps every Conv 1x1 -> AveragePool pair for which the algebra holds."""
    outcome = Outcome("pool_before_conv")
    for pool in [node for node in graph if node.op_type == "AveragePool"]:
        conv = pool.inputs[0].producer() if pool.inputs[0] is not None else None
        if conv is None or conv.op_type != "Conv":
            continue
        reason = _why_not(conv, pool)
        if reason:
            outcome.refuse(label(conv), reason)
        else:
            _swap(graph, conv, pool)
            outcome.apply(label(conv))
    return outcome


def _why_not(conv: ir.Node, pool: ir.Node) -> str:
    weight = constant(conv.inputs[1])
    if weight is None:
        return "its weight is not constant"
    if set(weight.shape[2:]) != {1}:
        return f"its kernel is {'x'.join(map(str, weight.shape[2:]))}, not 1x1"
    if any(size != 1 for size in attribute(conv, "strides", ())):
        return "its stride is not 1"
    if any(attribute(conv, "pads", ())) or any(attribute(pool, "pads", ())):
        return "the convolution or the pool is padded"
    for node in (conv, pool):
        if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return "the convolution or the pool pads automatically"
    if attribute(pool, "ceil_mode", 0):
        return "the pool rounds its output size up"
    if only_reader(conv.outputs[0]) is not pool:
        return "something else reads the convolution's output"
    return ""


def _swap(graph: ir.Graph, conv: ir.Node, pool: ir.Node) -> None:
    data, before, after = conv.inputs[0], conv.outputs[0], pool.outputs[0]
    assert data is not None and after.name is not None
    pooled = new_node("AveragePool", [data], after, pool.name or after.name)
    for item in pool.attributes.values():
        pooled.attributes.add(item)
    pooled.outputs[0].shape = None
    if data.shape is not None and after.shape is not None:
        pooled.outputs[0].shape = ir.Shape([*data.shape[:2], *after.shape[2:]])
    conv.replace_input_with(0, pooled.outputs[0])
    graph.insert_before(conv, pooled)
    pooled.outputs[0].name = after.name
    if after.is_graph_output():  # its name stays with the output
        pooled.outputs[0].name, before.name = before.name, after.name
    ir.convenience.replace_all_uses_with(after, before, replace_graph_outputs=True)
    before.type, before.shape = after.type, after.shape
    graph.remove(pool, safe=True)
