"""The graphs a suite compares: each is what its name says, and all answer alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from densenet_deploy.errors import RecipeError
from densenet_deploy.export import export_onnx, to_bytes
from densenet_deploy.recipe import ExportConfig, Recipe, Target, load_recipe
from densenet_deploy.sides import export_plain, make_graph
from densenet_deploy.source import Source, prepare
from densenet_deploy.suite import LOWERED, GraphKind
from densenet_deploy.verify import cosine_similarity

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe))


@pytest.fixture(scope="module")
def source(recipe: Recipe) -> Source:
    return prepare(recipe)


@pytest.fixture(scope="module")
def plain(source: Source) -> bytes:
    return export_plain(source)


@pytest.fixture(scope="module")
def calibration(source: Source) -> Any:
    return source.preprocessing.normalise(source.calibration.pixels)


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


def test_the_plain_graph_is_torchs_own(source: Source, plain: bytes) -> None:
    """Nodes and weights as torch.onnx gives them, whatever they are called."""
    channels, height, width = source.model.spec.input_shape
    program = torch.onnx.export(
        source.model,
        (torch.zeros(2, channels, height, width),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        opset_version=ExportConfig().opset,
        verbose=False,
    )
    assert program is not None
    theirs = program.model_proto
    assert operators(plain) == Counter(node.op_type for node in theirs.graph.node)

    def weights(model: Any) -> list[bytes]:
        return sorted(numpy_helper.to_array(i).tobytes() for i in model.graph.initializer)

    assert weights(onnx.load_from_string(plain)) == weights(theirs)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_fp32_is_what_export_makes(
    target: Target, recipe: Recipe, source: Source, plain: bytes, calibration: Any
) -> None:
    config = ExportConfig(target=target)
    expected = to_bytes(export_onnx(source.model, source.model.spec.input_shape, config).model)
    assert make_graph("fp32", target, plain, calibration, recipe.quantize) == expected


def test_quantize_static_is_convolutions_only(
    recipe: Recipe, plain: bytes, calibration: Any
) -> None:
    made = make_graph("quantize-static", None, plain, calibration, recipe.quantize)
    graph = onnx.load_from_string(made).graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers and {weights[n.input[2]].dtype for n in quantizers} == {np.dtype("uint8")}
    for node in graph.node:
        reads = [producers[name].op_type for name in node.input if name in producers]
        if node.op_type == "Conv":
            assert reads[:2] == ["DequantizeLinear", "DequantizeLinear"]
            scales = weights[producers[node.input[1]].input[1]]
            kernel = weights[producers[node.input[1]].input[0]]
            assert kernel.dtype == np.int8 and scales.shape == kernel.shape[:1]
    assert operators(made)["Conv"] == operators(plain)["Conv"]


def test_quantize_static_for_tensorrt_is_as_its_parser_wants(
    recipe: Recipe, plain: bytes, calibration: Any
) -> None:
    """int8 with zero-point 0 into each convolution, a bias that is not quantized, no more."""
    made = make_graph("quantize-static-tensorrt", None, plain, calibration, recipe.quantize)
    graph = onnx.load_from_string(made).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    for node in convolutions:
        reads = [producers[name].op_type for name in node.input if name in producers]
        assert reads == ["DequantizeLinear", "DequantizeLinear"]
        data, weight = (producers[name] for name in node.input[:2])
        assert arrays[data.input[1]].shape == () and len(arrays[weight.input[1]])
        for pair in (data, weight):
            assert arrays[pair.input[2]].dtype == np.int8 and not arrays[pair.input[2]].any()
            assert (arrays[pair.input[1]] > 0).all()
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(convolutions) == operators(plain)["Conv"] >= len(quantizers)


@pytest.mark.parametrize("kind", get_args(GraphKind))
def test_every_graph_answers_as_pytorch(
    kind: GraphKind, recipe: Recipe, source: Source, plain: bytes, calibration: Any
) -> None:
    target: Target | None = "onnxruntime" if kind in LOWERED else None
    made = make_graph(kind, target, plain, calibration, recipe.quantize)
    model = onnx.load_from_string(made)
    assert [value.name for value in model.graph.input] == ["images"]
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": calibration[:5]})[0]
    with torch.inference_mode():
        expected = source.model(torch.from_numpy(calibration[:5])).numpy()
    similar = cosine_similarity(found, expected)
    quantized = kind == "int8" or "static" in kind
    half = "fp16" in kind or "tensorrt" in kind
    assert similar > (0.98 if quantized else 0.9999 if half else 0.999999)
    assert (similar == 1.0) <= (kind in ("plain", "fp32"))
    assert ("QuantizeLinear" in operators(made)) == quantized
    kinds = {value.data_type for value in model.graph.initializer}
    assert (TensorProto.FLOAT in kinds, TensorProto.FLOAT16 in kinds) == (not half, half)


def test_a_policy_that_is_still_to_be_chosen(
    recipe: Recipe, plain: bytes, calibration: Any
) -> None:
    config = replace(recipe.quantize, policy="auto")
    with pytest.raises(RecipeError, match=r"policy is auto.*Name the one that"):
        make_graph("int8", "onnxruntime", plain, calibration, config)


def test_nothing_is_printed(
    recipe: Recipe, plain: bytes, calibration: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    make_graph("quantize-static", None, plain, calibration, replace(recipe.quantize))
    assert capfd.readouterr() == ("", "")
