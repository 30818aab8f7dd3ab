"""Each precision of a whole net, on every backend that runs or compiles without a GPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from densenet_deploy.build import build_engine
from densenet_deploy.errors import DataError, GraphError
from densenet_deploy.export import to_bytes
from densenet_deploy.quantize import quantize
from densenet_deploy.recipe import PRECISIONS, BuildConfig, Precision, QuantizeConfig, Target
from densenet_deploy.rewrite import fold_preactivation, rewrite
from tests.graphs import (
    batchnorm,
    difference,
    exported,
    graph,
    normal,
    run_onnxruntime,
    run_openvino,
    serialized,
)

NET = "densenet-bc-40-12"
CONFIG = QuantizeConfig(images=32, batch_size=16)
TARGETS: tuple[Target, ...] = ("tensorrt", "onnxruntime")


@functools.cache
def quantized(precision: Precision, target: Target = "tensorrt") -> bytes:
    """A precision of the exported net, checked and serialized."""
    export = exported(NET, target)
    return to_bytes(quantize(export.model, precision, CONFIG, export.images))


def cosine(found: NDArray[Any], reference: NDArray[Any]) -> float:
    norms = np.linalg.norm(found) * np.linalg.norm(reference)
    return float((found * reference).sum() / norms)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "precision, tolerance, similarity",
    # Random weights amplify rounding: a trained net does far better in int8.
    [("fp32", 1e-5, 0.9999999), ("fp16", 1e-2, 0.99999), ("int8", 0.5, 0.96)],
)
def test_logits_are_close_to_those_of_torch(
    target: Target, precision: Precision, tolerance: float, similarity: float
) -> None:
    export = exported(NET, target)
    logits, images = export.run_torch(export.images[:32]), export.images[:32]
    found = run_onnxruntime(quantized(precision, target), images)
    assert difference(found, logits) <= tolerance
    assert cosine(found, logits) >= similarity


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.05)])
def test_openvino_agrees_with_onnxruntime(
    target: Target, precision: Precision, tolerance: float
) -> None:
    images, content = exported(NET, target).images[:16], quantized(precision, target)
    expected = run_onnxruntime(content, images)
    found = run_openvino(ir.from_proto(onnx.load_from_string(content)), images)
    assert difference(found, expected) <= tolerance


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnxruntimes_own_fusions_do_not_matter(precision: Precision) -> None:
    images, content = exported(NET).images[:16], quantized(precision)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = np.asarray(session.run(None, {"images": images})[0])
    assert difference(found, run_onnxruntime(content, images)) <= 0.1
    assert cosine(found, run_onnxruntime(content, images)) >= 0.999


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_rtx_compiles_it(precision: Precision) -> None:
    pytest.importorskip("tensorrt_rtx")
    config = BuildConfig(batch=(1, 2, 4), compute_capabilities=("8.6",))
    assert build_engine(quantized(precision), config).startswith(b"vtrt")


@pytest.mark.parametrize(
    "precision, datatype", [("fp32", "Float"), ("fp16", "Half"), ("int8", "Int8")]
)
def test_tensorrt_rtx_convolves_in_that_precision(precision: Precision, datatype: str) -> None:
    """TensorRT accepts many Q/DQ forms and silently convolves in float; the build log tells."""
    trt = pytest.importorskip("tensorrt_rtx")
    found = convolution_datatypes(trt, quantized(precision))
    assert found == [datatype] * 39


def convolution_datatypes(trt: Any, content: bytes) -> list[str]:
    """Datatype of the first input of every convolution in an engine, from its layer list."""
    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, _severity: Any, message: str) -> None:
            messages.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(content)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile.set_shape("images", (1, 1, 28, 28), (2, 1, 28, 28), (4, 1, 28, 28))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config)
    lines = [line for message in messages for line in message.splitlines()]
    convolutions = [line for line in lines if "LayerType: correlation" in line]
    return [re.findall(r"Inputs: \[.*?Datatype: (\w+)", line)[0] for line in convolutions]


@pytest.mark.parametrize("fold", [False, True], ids=["BatchNorm", "folded"])
@pytest.mark.parametrize("pads", [0, 1])
def test_openvino_agrees_where_a_convolution_is_read_twice(fold: bool, pads: int) -> None:
    """OpenVINO 2026.4 is wrong by 80 % here unless the first convolution has a bias."""
    body = "c = Conv <pads = [1, 1, 1, 1]>(x, w) n = BatchNormalization(c, gamma, beta, mean, var)"
    body += f" r = Relu(n) d = Conv <pads = [{pads}, {pads}, {pads}, {pads}]>(r, v)"
    weights = {
        "w": normal(24, 4, 3, 3) * 0.2,
        "v": normal(12, 24, 1 + 2 * pads, 1 + 2 * pads) * 0.1,
    }
    model = graph(f"{body} y = Concat <axis = 1>(c, d)", weights | batchnorm(24))
    if fold:
        rewrite(model, [fold_preactivation])
    images = normal(4, 4, 8, 8)
    result = quantize(model, "int8", QuantizeConfig(images=4), images)
    assert difference(run_openvino(result, images), run_onnxruntime(result, images)) <= 0.02


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_interface_and_the_metadata_stay(precision: Precision) -> None:
    before = onnx.load_from_string(exported(NET).content)
    after = onnx.load_from_string(quantized(precision))
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert after.metadata_props == before.metadata_props and len(after.metadata_props) == 2
    assert after.opset_import == before.opset_import


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_original_is_not_changed(precision: Precision) -> None:
    export = exported(NET)
    model = export.model
    before = serialized(model)
    result = quantize(model, precision, CONFIG, export.images)
    assert serialized(model) == before == export.content
    result.graph[0].name = "changed"
    result.graph.inputs[0].name = "changed"
    assert serialized(model) == before


def test_the_original_is_not_changed_by_a_failure() -> None:
    weight = normal(3, 4, 1, 1)
    weight[2, 0] = 1e6
    model = graph("r = Relu(x) y = Conv(r, w)", {"w": weight})
    before = serialized(model)
    with pytest.raises(GraphError, match="initializer w reaches 1e\\+06"):
        quantize(model, "fp16", CONFIG)
    assert serialized(model) == before


def test_fp32_is_a_copy() -> None:
    assert quantized("fp32") == exported(NET).content


def test_int8_is_smaller_and_has_no_float_convolution_weights() -> None:
    proto = onnx.load_from_string(quantized("int8"))
    assert len(quantized("int8")) < 0.45 * len(quantized("fp32"))
    floats = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert not any(len(tensor.dims) == 4 for tensor in floats)


def test_scales_are_those_of_the_calibration_images() -> None:
    model = graph("r = Relu(x) y = Conv(r, w)", {"w": normal(3, 4, 1, 1)})
    images = normal(6, 4, 8, 8)
    images[3] *= 10  # beyond the first three
    for count in (3, 6):
        config = QuantizeConfig(images=count, batch_size=2)
        result = quantize(model, "int8", config, images)
        scale = result.graph.initializers["r.scale"].const_value
        assert scale is not None
        assert float(scale.numpy()) == pytest.approx(images[:count].max() / 127, rel=1e-6)


def test_the_same_images_give_the_same_bytes() -> None:
    export = exported(NET)
    again = quantize(export.model, "int8", CONFIG, export.images.copy())
    assert to_bytes(again) == quantized("int8")


def test_progress_is_reported() -> None:
    seen = []

    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        seen.append((description, total))
        yield from items

    model = graph("y = Conv(x, w)", {"w": normal(3, 4, 1, 1)})
    quantize(model, "int8", QuantizeConfig(images=5, batch_size=2), normal(5, 4, 8, 8), track)
    assert seen == [("Calibrating int8 (batches)", 3)]


@pytest.mark.parametrize(
    "needed, given, message",
    [
        (8, None, "int8 with 0 calibration images; expected at least 8 training images"),
        (8, 0, "int8 with 0 calibration images; expected at least 8 training images"),
        (8, 7, "int8 with 7 calibration images; expected at least 8 training images"),
        (0, 7, "int8 with 7 calibration images; expected at least 1 training images"),
    ],
)
def test_too_few_calibration_images(needed: int, given: int | None, message: str) -> None:
    model = graph("y = Conv(x, w)", {"w": normal(3, 4, 1, 1)})
    images = None if given is None else normal(given, 4, 8, 8)
    with pytest.raises(DataError, match=message):
        quantize(model, "int8", QuantizeConfig(images=needed), images)
    assert quantize(model, "fp16", QuantizeConfig(images=needed), images)


def test_nothing_to_quantize() -> None:
    with pytest.raises(GraphError, match="no convolution with constant weights"):
        quantize(graph("y = Relu(x)", {}), "int8", QuantizeConfig(images=2), normal(2, 4, 8, 8))


def test_activations_that_overflow() -> None:
    images = normal(2, 4, 8, 8)
    images[1, 0, 0, 0] = np.inf
    model = graph("y = Conv(x, w)", {"w": normal(3, 4, 1, 1)})
    with pytest.raises(GraphError, match="activation x reaches inf during calibration"):
        quantize(model, "int8", QuantizeConfig(images=2), images)
