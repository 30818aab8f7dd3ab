"""From a torch module to a fused ONNX graph that is the same bytes for the same input."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import nn

from densenet_deploy.errors import GraphError
from densenet_deploy.recipe import ExportConfig
from densenet_deploy.rewrite import RULES, RewriteResult, rewrite

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_onnx(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    config: ExportConfig,
    metadata: Mapping[str, str] | None = None,
) -> RewriteResult:
    """Exports `model` with a dynamic batch and rewrites it for `config.target`.

    Args:
        model: Takes float32 images (N, C, H, W), returns float32 logits (N, classes).
        input_shape: (C, H, W).
        config: Target, opset and whether to fuse.
        metadata: Key-value pairs stored in the file.

    Returns:
        The model with input `images` and output `logits`, and what the rewrites did.

    Raises:
        GraphError: The result fails the ONNX checker.
    """
    graph_model = _trace(model, input_shape, config.opset)
    _name_nodes(graph_model.graph)
    _clear_metadata(graph_model)
    result = rewrite(graph_model, RULES[config.target] if config.fuse else ())
    graph_model.metadata_props.clear()
    graph_model.metadata_props.update(sorted((metadata or {}).items()))
    graph_model.graph.name = type(model).__name__.lower()
    graph_model.producer_name, graph_model.producer_version = "densenet-deploy", ""
    to_bytes(graph_model)
    return result


def _trace(model: nn.Module, input_shape: tuple[int, int, int], opset: int) -> ir.Model:
    training = model.training
    model.eval()
    example = torch.zeros(2, *input_shape, device=next(model.parameters()).device)
    shapes = ({0: torch.export.Dim(BATCH, min=1)},)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
        model.train(training)
    assert program is not None
    return program.model


def _name_nodes(graph: ir.Graph) -> None:
    """Names nodes and their outputs after the module they come from, so reports can be read."""
    taken: set[str] = set()
    for node in graph:
        name, number = _module_name(node), 1
        while name in taken:
            number += 1
            name = f"{_module_name(node)}_{number}"
        taken.add(name)
        node.name = name
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = name


def _clear_metadata(model: ir.Model) -> None:
    passes.ClearMetadataAndDocStringPass()(model)  # leaves that of values
    outputs = [output for node in model.graph for output in node.outputs]
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *outputs):
        value.metadata_props.clear()


def _module_name(node: ir.Node) -> str:
    if node.op_type in ("Conv", "Gemm") and node.inputs[1] is not None:
        # A folded BatchNorm leaves its own scope on the convolution; the weight knows better.
        return (node.inputs[1].name or node.op_type).removesuffix(".weight")
    scopes = node.metadata_props.get(_SCOPES, "[]").strip("[]").replace("'", "").split(", ")
    module = next((scope for scope in reversed(scopes[:-1]) if scope), "model")
    return module if node.op_type == "BatchNormalization" else f"{module}.{node.op_type.lower()}"


def to_bytes(model: ir.Model) -> bytes:
    """Serialises a model after the ONNX checker and strict shape inference have passed it.

    Raises:
        GraphError: They have not.
    """
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the ONNX checker refuses the graph: {str(error)[:300]}") from None
    return bytes(proto.SerializeToString(deterministic=True))


def from_bytes(data: bytes, source: str) -> ir.Model:
    """Reads a serialised ONNX model.

    Raises:
        GraphError: The bytes are not a valid ONNX model.
    """
    try:
        proto = onnx.load_from_string(data)
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf and the checker raise unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise GraphError(f"{source} is not a valid ONNX model ({reason})") from None
    model: ir.Model = ir.from_proto(proto)
    return model
