"""What a graph computes, moves and stores for one image: the numbers a rewrite changes.

They are those of the ONNX graph as it stands, where every node reads its inputs and writes its
outputs. A runtime fuses nodes and moves less; what an engine moves, its build log says.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import onnx
import onnx_ir as ir
from onnx import TensorProto

_LARGEST_SHAPE = 64  # elements: larger constants are weights, whose values no shape depends on


@dataclass(frozen=True)
class Costs:
    """Costs of one image; None where a size is not known.

    Attributes:
        macs: Multiply-accumulates of Conv and Gemm.
        activation_bytes: Sum over the nodes of what they read and write, without constants.
        weight_bytes: Constants of the graph.
        nodes: How many nodes of each type there are.
    """

    macs: int | None
    activation_bytes: int | None
    weight_bytes: int
    nodes: dict[str, int]

    def cells(self) -> tuple[str, ...]:
        """Millions of MACs, MB (1e6 bytes) of activations and weights, and nodes."""
        sizes = (self.macs, self.activation_bytes, self.weight_bytes)
        texts = ("unknown" if size is None else f"{size / 1e6:.2f}" for size in sizes)
        return (*texts, str(sum(self.nodes.values())))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


HEADER = ("MMACs", "activations MB", "weights MB", "nodes")


@dataclass(frozen=True)
class _Tensor:
    dtype: int
    shape: tuple[int, ...] | None  # None where a dimension is not known

    @property
    def bytes(self) -> int | None:
        if self.shape is None:
            return None
        return math.ceil(math.prod(self.shape) * ir.DataType(self.dtype).itemsize)


def costs_of(model: ir.Model) -> Costs:
    """The costs of `model` where a symbolic first dimension of an input, the batch, is 1.

    Shapes are inferred anew: those that a graph carries are for a dynamic batch.
    """
    proto = _for_one_image(ir.to_proto(model))
    tensors = _tensors(proto.graph)
    moving = {value.name for value in proto.graph.input}
    macs: list[int | None] = []
    sizes: list[int | None] = []
    for node in proto.graph.node:
        if moving & set(node.input):
            moving |= set(node.output)
            touched = [name for name in (*node.input, *node.output) if name in moving]
            sizes += [tensors[name].bytes if name in tensors else None for name in touched]
            if node.op_type in ("Conv", "Gemm"):
                macs.append(_macs(node, tensors))
    return Costs(
        _total(macs),
        _total(sizes),
        _weight_bytes(model),
        dict(sorted(Counter(node.op_type for node in proto.graph.node).items())),
    )


def peak_live_bytes(model: ir.Model) -> int | None:
    """Most bytes of activations that lie in memory at once, for one image; None if not known.

    Nodes run in the graph's order and nothing in place: a node's inputs and outputs lie there
    while it runs, and each tensor from its making to its last reader. Constants are not counted.
    """
    graph = _for_one_image(ir.to_proto(model)).graph
    tensors = _tensors(graph)
    begins = {value.name: 0 for value in graph.input}
    ends: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        if begins.keys() & set(node.input):
            begins |= dict.fromkeys(filter(None, node.output), index)
        ends |= dict.fromkeys((*node.input, *node.output), index)
    ends |= {value.name: len(graph.node) for value in graph.output}
    changes = [0] * (len(graph.node) + 2)
    for name, begin in begins.items():
        size = tensors[name].bytes if name in tensors else None
        if size is None:
            return None
        changes[begin] += size
        changes[ends.get(name, begin) + 1] -= size
    return max(itertools.accumulate(changes))


def _for_one_image(proto: onnx.ModelProto) -> onnx.ModelProto:
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    for value in inputs:
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and not dimensions[0].HasField("dim_value"):
            dimensions[0].dim_value = 1
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > _LARGEST_SHAPE:
            tensor.ClearField("raw_data")  # nothing depends on it, and it is most of the model
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    del inferred.graph.input[:]
    inferred.graph.input.extend(inputs)
    return inferred


def _tensors(graph: onnx.GraphProto) -> dict[str, _Tensor]:
    found = {item.name: _Tensor(item.data_type, tuple(item.dims)) for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        known = kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
        shape = tuple(d.dim_value for d in kind.shape.dim) if known else None
        if kind.elem_type != TensorProto.UNDEFINED:
            found[value.name] = _Tensor(kind.elem_type, shape)
    return found


def _macs(node: onnx.NodeProto, tensors: dict[str, _Tensor]) -> int | None:
    weight, output = tensors.get(node.input[1]), tensors.get(node.output[0])
    if weight is None or output is None or weight.shape is None or output.shape is None:
        return None
    attributes = {item.name: item.i for item in node.attribute}
    if node.op_type == "Conv":  # weight (O, I / groups, kernel...)
        return math.prod(output.shape) * math.prod(weight.shape[1:])
    return math.prod(output.shape) * weight.shape[1 if attributes.get("transB", 0) else 0]


def _total(sizes: list[int | None]) -> int | None:
    return None if None in sizes else sum(filter(None, sizes))


def _weight_bytes(model: ir.Model) -> int:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    tensors += [ir.convenience.get_const_tensor(n.outputs[0]) for n in model.graph if _holds(n)]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _holds(node: ir.Node) -> bool:
    return node.op_type == "Constant"
