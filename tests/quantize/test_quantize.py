"""Each precision of a whole net, and what `quantize` refuses."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from densenet_deploy.engine.build import build_engine
from densenet_deploy.engine.layers import parse_build_log
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import DataError, GraphError
from densenet_deploy.export import to_bytes
from densenet_deploy.quantize import quantize
from densenet_deploy.recipe import PRECISIONS, Precision, QuantizeConfig, Target
from tests.graphs import (
    difference,
    exported,
    graph,
    normal,
    run_onnxruntime,
    run_openvino,
    serialized,
)

NET = "densenet-bc-16-8"
CONFIG = QuantizeConfig(images=32, batch_size=16, method="minmax")
TARGETS: tuple[Target, ...] = ("tensorrt", "onnxruntime")
TWO = "c = Conv(x, u) r = Relu(c) y = Conv(r, w)"
WEIGHTS = {"u": normal(4, 4, 1, 1, seed=1), "w": normal(3, 4, 1, 1)}


@functools.cache
def quantized(precision: Precision, target: Target = "tensorrt") -> bytes:
    """A precision of the exported net, checked and serialized."""
    export = exported(NET, target)
    return to_bytes(quantize(export.model, precision, CONFIG, export.images, target))


def cosine(found: NDArray[Any], reference: NDArray[Any]) -> float:
    norms = np.linalg.norm(found) * np.linalg.norm(reference)
    return float((found * reference).sum() / norms)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "precision, tolerance, similarity",
    # Random weights amplify rounding: a trained net does far better in int8.
    [("fp32", 1e-5, 0.9999999), ("fp16", 1e-2, 0.9999), ("int8", 0.2, 0.99)],
)
def test_logits_are_close_to_those_of_torch(
    target: Target, precision: Precision, tolerance: float, similarity: float
) -> None:
    export = exported(NET, target)
    logits, images = export.run_torch(export.images[:32]), export.images[:32]
    content = quantized(precision, target)
    found = run_onnxruntime(content, images)
    assert difference(found, logits) <= tolerance
    assert cosine(found, logits) >= similarity
    assert cosine(run_onnxruntime(content, images, optimized=True), found) >= 0.999
    other = run_openvino(ir.from_proto(onnx.load_from_string(content)), images)
    assert difference(other, found) <= max(tolerance / 2, 1e-5)


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", "Float"), ("fp16", "Half"), ("int8", "Int8")]
)
def test_tensorrt_rtx_convolves_in_that_precision(
    precision: Precision, dtype: str, tmp_path: Any
) -> None:
    """TensorRT accepts many Q/DQ forms and silently convolves in float; the build log tells."""
    pytest.importorskip("tensorrt_rtx")
    config = BuildConfig(profiles=((1, 2, 4),), compute_capabilities=("8.6",))
    engine = build_engine(quantized(precision), config, log=tmp_path / "log")
    assert engine.startswith(b"vtrt")
    layers = parse_build_log((tmp_path / "log").read_text(encoding="utf-8"))
    found = [layer.inputs[0].dtype for layer in layers.of("convolution").layers]
    assert found[1:] == [dtype] * 14
    assert found[0] == {"Int8": "Half"}.get(dtype, dtype), "the stem reads pixels"


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


def test_int8_has_no_other_convolution_weights_than_the_stems() -> None:
    proto = onnx.load_from_string(quantized("int8"))
    kinds = {t.name: t.data_type for t in proto.graph.initializer if len(t.dims) == 4}
    others = [name for name, kind in kinds.items() if kind != onnx.TensorProto.INT8]
    assert len(kinds) == 15 and [name.split(".weight")[0] for name in others] == ["features.conv0"]


def test_scales_are_those_of_the_calibration_images() -> None:
    model, images = graph(TWO, WEIGHTS), normal(6, 4, 8, 8)
    images[3] *= 10  # beyond the first three
    for count in (3, 6):
        config = QuantizeConfig(images=count, batch_size=2, method="minmax")
        result = quantize(model, "int8", config, images, "onnxruntime")
        scale = result.graph.initializers["x.scale"].const_value
        assert scale is not None
        span = float(images[:count].max() - images[:count].min())
        assert float(scale.numpy()) == pytest.approx(span / 255, rel=1e-6)


def test_the_same_images_give_the_same_bytes() -> None:
    export = exported(NET)
    again = quantize(export.model, "int8", CONFIG, export.images.copy(), "tensorrt")
    assert to_bytes(again) == quantized("int8")


def test_progress_is_reported() -> None:
    seen = []

    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        seen.append((description, total))
        yield from items

    config = QuantizeConfig(images=5, batch_size=2, method="minmax")
    quantize(graph(TWO, WEIGHTS), "int8", config, normal(5, 4, 8, 8), track=track)
    assert set(seen) == {("Calibrating int8 (batches)", 3)}


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
    model = graph(TWO, WEIGHTS)
    images = None if given is None else normal(given, 4, 8, 8)
    with pytest.raises(DataError, match=message):
        quantize(model, "int8", QuantizeConfig(images=needed), images)
    assert quantize(model, "fp16", QuantizeConfig(images=needed), images)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("body", ["y = Relu(x)", "m = Abs(w) r = Relu(x) y = Conv(r, m)"])
def test_nothing_to_quantize(body: str, target: Target) -> None:
    used = {"w": WEIGHTS["w"]} if "w" in body else {}
    with pytest.raises(GraphError, match="no convolution with constant weights"):
        quantize(graph(body, used), "int8", QuantizeConfig(images=2), normal(2, 4, 8, 8), target)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_activations_that_overflow(value: float) -> None:
    images = normal(2, 4, 8, 8)
    images[1, 0, 0, 0] = value
    with pytest.raises(GraphError, match=r"activation \w is not finite during calibration"):
        quantize(graph(TWO, WEIGHTS), "int8", QuantizeConfig(images=2), images)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("done", ["fp16", "int8"])
def test_what_is_not_fp32_is_refused(precision: Precision, done: Precision) -> None:
    images = normal(4, 4, 8, 8)
    config = QuantizeConfig(images=4, method="minmax")
    model = quantize(graph(TWO, WEIGHTS), done, config, images, "onnxruntime")
    with pytest.raises(GraphError, match="shows that this graph is not fp32; expected the fp32"):
        quantize(model, precision, config, images, "onnxruntime")
