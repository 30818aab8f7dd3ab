"""Extend a dense block's concat instead of building it anew for every layer.

Algebra: concatenation is associative,

    concat(a, b, ..., y, z) = concat(concat(a, b, ..., y), z),

and the inner one is there already, because the layer before reads it. Every concat of a block but
the first then has two inputs, and a value has the same name and content as before.

Pattern: Concat of at least three inputs on the channel axis, all but the last of which are the
inputs of an earlier Concat on that axis, in its order.
"""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.rewrite.graph import joins_channels, label
from densenet_deploy.rewrite.outcome import Outcome, Refused


def chain_concat(graph: ir.Graph) -> Outcome:
    """Lets every Concat read the one before it."""
    outcome = Outcome("chain_concat")
    written: dict[tuple[ir.Value | None, ...], ir.Value] = {}
    for node in [node for node in graph if joins_channels(node)]:
        inputs = tuple(node.inputs)
        written.setdefault(inputs, node.outputs[0])
        if len(inputs) > 2:
            with outcome.attempt(label(node)):
                if inputs[:-1] not in written:
                    raise Refused("no earlier concat holds all its inputs but the last")
                node.replace_input_with(0, written[inputs[:-1]])
                node.replace_input_with(1, inputs[-1])
                node.resize_inputs(2)
    return outcome
