"""The graphs that suites compare: all of a model's are made from one torch.onnx export."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.errors import MissingDependencyError, RecipeError
from densenet_deploy.export import INPUT, export_onnx, from_bytes, to_bytes
from densenet_deploy.quantize import quantize
from densenet_deploy.quantize.half import to_half
from densenet_deploy.recipe import ExportConfig, QuantizeConfig, Recipe, Target
from densenet_deploy.rewrite import RULES, rewrite
from densenet_deploy.source import Source
from densenet_deploy.suite import GraphKind

_STATIC_IMAGES = 16
# TensorRT takes zero-point 0 and floating-point biases; what a convolution writes is left alone.
_TENSORRT_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "QDQDisableWeightAdjustForInt32Bias": True,
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    "ForceQuantizeNoInputCheck": True,
}


def describe(name: str, recipe: Recipe, source: Source) -> dict[str, Any]:
    """What records say of a model, under the name a suite gives it."""
    return {
        "name": name,
        "description": recipe.description,
        "recipe_digest": recipe.digest,
        "speed_only": source.speed_only,
        "parameters": source.model.spec.parameters,
        "macs": source.model.spec.macs,
    }


def export_plain(source: Source) -> bytes:
    """The fp32 graph as torch.onnx exports it, but for names and metadata."""
    config = ExportConfig(fuse=False)
    return to_bytes(export_onnx(source.model, source.model.spec.input_shape, config).model)


def make_graph(
    kind: GraphKind,
    target: Target | None,
    plain: bytes,
    calibration: NDArray[np.float32],
    config: QuantizeConfig,
) -> bytes:
    """One graph of a model.

    Args:
        kind: See `suite.Side`.
        target: What `fp32`, `fp16` and `int8` are lowered for.
        plain: The model as `export_plain` gives it.
        calibration: Normalised training images (N, C, H, W).
        config: How `int8` is calibrated.

    Raises:
        DataError: Too few images for `int8`.
        RecipeError: `int8` with a policy that is still to be chosen.
        MissingDependencyError: `quantize-static` without ONNX Runtime.
    """
    if kind == "plain":
        return plain
    if kind == "plain-fp16":
        return _halved(plain)
    images = calibration[:_STATIC_IMAGES]
    if kind == "quantize-static":
        return _quantize_static(plain, images, "QUInt8", {})
    if kind == "quantize-static-tensorrt":
        return _halved(_quantize_static(plain, images, "QInt8", _TENSORRT_OPTIONS))
    if kind == "int8" and config.policy == "auto":
        raise RecipeError(
            "quantize.policy is auto, which chooses by timing",
            expected="in a suite: a policy by name",
            remedy="name the one that `densenet-deploy quantize --policy auto` chose",
        )
    assert target is not None
    lowered = rewrite(from_bytes(plain, "the plain export"), RULES[target]).model
    return to_bytes(quantize(lowered, kind, config, calibration, target=target))


def _halved(graph: bytes) -> bytes:
    """A graph in half precision between fp32 inputs and outputs, quantized or not."""
    model = from_bytes(graph, "the graph")
    to_half(model)
    return to_bytes(model)


class _Reader:
    """Calibration images as ONNX Runtime asks for them: one after another, then None."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._rows = iter(range(len(images)))
        self._images = images

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        row = next(self._rows, None)
        return None if row is None else {INPUT: self._images[row : row + 1]}

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rows = iter(range(start_index, end_index))


def _quantize_static(
    plain: bytes, images: NDArray[np.float32], activations: str, options: dict[str, Any]
) -> bytes:
    """The best plain recipe of ONNX Runtime: convolutions only, s8 weights by channel."""
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise MissingDependencyError.of("onnxruntime", "ort", "quantize-static") from None
    with tempfile.TemporaryDirectory() as folder, _quiet():
        original, prepared, quantized = (Path(folder) / name for name in ("a", "b", "c"))
        original.write_bytes(plain)
        quant_pre_process(str(original), str(prepared))
        quantization.quantize_static(
            str(prepared),
            str(quantized),
            _Reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            activation_type=quantization.QuantType[activations],
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options=options,
        )
        return quantized.read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
