"""The few graph operations that rules and quantization share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.rewrite.outcome import Refused


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The value of an initializer or Constant output; None where it is computed at run time."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def only_reader(value: ir.Value) -> ir.Node | None:
    """The single node that reads `value` once; None for several or for a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def add_initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Registers a new initializer, under `name` or, where taken, under `name` with a number."""
    free, number = name, 1
    while free in graph.initializers:
        number += 1
        free = f"{name}_{number}"
    tensor = ir.tensor(np.array(array, order="C"), name=free)
    value = ir.val(free, const_value=tensor)
    graph.register_initializer(value)
    return value


def new_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    like: ir.Value,
    name: str,
    **attributes: int | float | str | Sequence[int],
) -> ir.Node:
    """A node with one output, which takes dtype and shape from `like` and its name from `name`."""
    node = ir.node(op_type, inputs, attributes or None, name=name)
    node.outputs[0].name = name
    node.outputs[0].type = like.type
    node.outputs[0].shape = like.shape
    return node


def replace_node(graph: ir.Graph, node: ir.Node, replacement: Sequence[ir.Node]) -> None:
    """Puts nodes in the place of one; the last one's output takes over the name and the readers."""
    old, new = node.outputs[0], replacement[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(graph, node, [node], replacement, [old], [new])


def channels_of(value: ir.Value | None) -> int:
    """The number of channels C of (N, C, ...).

    Raises:
        Refused: It is not known.
    """
    shape = None if value is None else value.shape
    if value is None or shape is None or len(shape) < 2 or not isinstance(shape[1], int):
        raise Refused(f"the channels of {value.name if value else 'its input'} are not known")
    return shape[1]


def joins_channels(node: ir.Node) -> bool:
    """Whether `node` is a Concat of (N, C, ...) on the axis of C."""
    shape = node.outputs[0].shape
    axis = attribute(node, "axis", None)
    return node.op_type == "Concat" and (
        axis == 1 or (shape is not None and axis == 1 - len(shape))
    )


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value; `default` where the node leaves it out."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def label(node: ir.Node) -> str:
    """A name for messages, also for nodes that have none."""
    return node.name or f"{node.op_type} before {node.outputs[0].name}"
