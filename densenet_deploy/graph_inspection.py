"""What an ONNX file holds, and which rewrites it has still to gain from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from densenet_deploy.errors import GraphError
from densenet_deploy.export import from_bytes
from densenet_deploy.graph_costs import Costs, costs_of
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import Target
from densenet_deploy.rewrite import RULES
from densenet_deploy.rewrite.graph import constant, label
from densenet_deploy.rule_steps import Step, apply_rules, grouped, steps_summary


@dataclass(frozen=True)
class GraphInspection:
    """What an ONNX file holds.

    Attributes:
        source: The file.
        opset: Of the ONNX operators.
        inputs: Name, type and shape of each input.
        outputs: Likewise.
        precision: `int8` where activations are quantized, else `fp16` or `fp32` as the weights are.
        convolutions: How many there are.
        float_convolutions: Names of those that do not read quantized input.
        scale_groups: Names of the activations that share one scale and zero-point, a tuple each.
        costs: Of one image.
        target: What the rules were tried for.
        steps: What those would do to a graph in fp32; empty for another.
    """

    source: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: str
    convolutions: int
    float_convolutions: tuple[str, ...]
    scale_groups: tuple[tuple[str, ...], ...]
    costs: Costs
    target: Target
    steps: tuple[Step, ...]

    def summary(self) -> str:
        """For people."""
        lines = [
            f"{self.source}: {self.precision}, opset {self.opset}, "
            f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}"
        ]
        lines += steps_summary("as it is", self.costs, self.steps)
        if self.precision == "int8":
            count, shared = len(self.scale_groups), [g for g in self.scale_groups if len(g) > 1]
            kept = self.float_convolutions
            found = f"{self.convolutions - len(kept)} of {self.convolutions} convolutions"
            found += f", not {grouped(kept)}" if kept else ""
            lines.append(f"quantized input: {found}; {count} scales of activations, shared by")
            lines += [f"  {len(group)}: {grouped(group)}" for group in shared] or ["  none"]
        if self.precision == "fp32":
            left = [f"{step.rule} x{len(step.applied)}" for step in self.steps if step.applied]
            lines.append(f"rules for {self.target} that still apply: {', '.join(left) or 'none'}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def inspect_graph(path: Path, target: Target, track: Track = silent) -> GraphInspection:
    """Reads an ONNX file, and tries the rules of `target` on it if it is fp32.

    Raises:
        GraphError: Not an ONNX model.
    """
    if not path.is_file():
        raise GraphError(f"{path} does not exist", expected="an ONNX file")
    model = from_bytes(path.read_bytes(), str(path))
    graph, precision = model.graph, _precision(model)
    convolutions = [node for node in graph if node.op_type == "Conv"]
    kept = [label(node) for node in convolutions if not _comes_from(node, "DequantizeLinear")]
    costs = costs_of(model)
    inputs, outputs, groups = graph.inputs, graph.outputs, _scale_groups(graph)
    steps = apply_rules(model, RULES[target], track) if precision == "fp32" else []
    return GraphInspection(
        str(path),
        graph.opset_imports.get("", 0),
        tuple(map(_describe, inputs)),
        tuple(map(_describe, outputs)),
        precision,
        len(convolutions),
        tuple(kept),
        groups,
        costs,
        target,
        tuple(steps),
    )


def _precision(model: ir.Model) -> str:
    operators = {node.op_type for node in model.graph}
    if "QuantizeLinear" in operators:
        return "int8"
    weights = {value.dtype for value in model.graph.initializers.values()}
    return "fp16" if ir.DataType.FLOAT16 in weights else "fp32"


def _comes_from(node: ir.Node, operator: str) -> bool:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type == operator


def _scale_groups(graph: ir.Graph) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[bytes, ...], list[str]] = {}
    for node in graph:
        if node.op_type == "QuantizeLinear" and constant(node.inputs[0]) is None:
            parameters = [constant(value) for value in node.inputs[1:3]]
            key = tuple(b"" if array is None else array.tobytes() for array in parameters)
            name = node.inputs[0].name if node.inputs[0] is not None else None
            groups.setdefault(key, []).append(name or "an unnamed value")
    return tuple(map(tuple, groups.values()))


def _describe(value: ir.Value) -> str:
    dtype = "an unknown type" if value.dtype is None else value.dtype.name.lower()
    shape = "" if value.shape is None else f" ({', '.join(map(str, value.shape))})"
    return f"{value.name} {dtype}{shape}"
