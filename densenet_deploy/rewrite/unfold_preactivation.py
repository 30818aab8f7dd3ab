"""Write a folded pre-activation as a BatchNorm again, so that every other form can start from it.

Algebra: m * x + b is a BatchNorm with gamma = m, beta = b, mean 0, variance 1 and epsilon 0. This
is the inverse of what `fold_preactivation` left in the graph (with signs for m); the factor that it
moved into the next weight stays there.

Pattern: [Mul by a constant] -> Add of a constant -> Relu, each read by the next alone, on
four-dimensional data of C channels, the constants (C, 1, 1) or (1, C, 1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.rewrite.graph import (
    add_initializer,
    channels_of,
    constant,
    label,
    new_node,
    only_reader,
)
from densenet_deploy.rewrite.outcome import Outcome, Refused


@dataclass(frozen=True)
class _Match:
    add: ir.Node
    relu: ir.Node
    obsolete: list[ir.Node]
    data: ir.Value
    gamma: NDArray[Any]
    beta: NDArray[Any]


def unfold_preactivation(graph: ir.Graph) -> Outcome:
    """Replaces [Mul ->] Add -> Relu with constants per channel by a BatchNormalization."""
    outcome = Outcome("unfold_preactivation")
    for add in [node for node in graph if node.op_type == "Add"]:
        relu, operands = only_reader(add.outputs[0]), _operands(add)
        if relu is not None and relu.op_type == "Relu" and operands is not None:
            with outcome.attempt(label(add)):
                _rewrite(graph, _match(add, relu, *operands))
    return outcome


def _match(add: ir.Node, relu: ir.Node, data: ir.Value, beta: NDArray[Any]) -> _Match:
    if data.shape is None or len(data.shape) != 4 or data.dtype is None:
        raise Refused("its input is not known to have four dimensions")
    channels = channels_of(data)
    if not _is_per_channel(beta, channels):
        raise Refused(f"its constant is of shape {beta.shape}, not ({channels}, 1, 1)")
    mul = data.producer()
    if mul is not None and mul.op_type == "Mul" and only_reader(data) is add:
        operands = _operands(mul)
        if operands is not None and _is_per_channel(operands[1], channels):
            before, gamma = operands
            shape = before.shape  # its channels may yet be broadcast
            if shape is not None and len(shape) == 4 and shape[1] == channels:
                return _Match(add, relu, [add, mul], before, gamma, beta)
    return _Match(add, relu, [add], data, np.ones(channels), beta)


def _operands(node: ir.Node) -> tuple[ir.Value, NDArray[Any]] | None:
    """What is computed, and the constant."""
    for data, other in (node.inputs, node.inputs[::-1]):
        array = constant(other)
        if array is not None and data is not None and constant(data) is None:
            return data, array
    return None


def _is_per_channel(array: NDArray[Any], channels: int) -> bool:
    return array.shape in ((channels, 1, 1), (1, channels, 1, 1))


def _rewrite(graph: ir.Graph, match: _Match) -> None:
    moved, channels = match.add.outputs[0], match.gamma.size
    assert match.data.dtype is not None
    dtype = match.data.dtype.numpy()
    name = str(moved.name).removesuffix(".add")
    parameters = {
        "weight": match.gamma,
        "bias": match.beta,
        "running_mean": np.zeros(channels),
        "running_var": np.ones(channels),
    }
    values = [
        add_initializer(graph, f"{name}.{key}", array.reshape(channels).astype(dtype))
        for key, array in parameters.items()
    ]
    norm = new_node("BatchNormalization", [match.data, *values], moved, name, epsilon=0.0)
    graph.insert_before(match.relu, norm)
    match.relu.replace_input_with(0, norm.outputs[0])
    graph.remove(match.obsolete, safe=True)
