"""Precision lives in the graph: FP16 as half initializers and casts, INT8 as explicit Q/DQ.

TensorRT 11 and TensorRT-RTX build strongly typed networks only, so this is the one place where
precision is decided; the builder has no say.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.errors import DataError, GraphError
from densenet_deploy.progress import Track, silent
from densenet_deploy.quantize.half import to_half
from densenet_deploy.quantize.int8 import Calibrated as Calibrated
from densenet_deploy.quantize.int8 import Int8Result as Int8Result
from densenet_deploy.quantize.int8 import calibrate as calibrate
from densenet_deploy.quantize.int8 import to_int8 as to_int8
from densenet_deploy.recipe import Precision, QuantizeConfig, Target


def quantize(
    model: ir.Model,
    precision: Precision,
    config: QuantizeConfig,
    calibration: NDArray[np.float32] | None = None,
    target: Target = "tensorrt",
    track: Track = silent,
) -> ir.Model:
    """A copy of an fp32 model in another precision, with fp32 inputs and outputs.

    Args:
        model: An fp32 model.
        precision: `fp32` copies, `fp16` computes in half, `int8` quantizes convolutions.
        config: Calibration settings.
        calibration: Normalised training images (N, C, H, W); needed for `int8`.
        target: What `int8` is lowered for.
        track: Progress reporter.

    Raises:
        DataError: `int8` without enough calibration images.
        GraphError: The graph is not fp32, holds values half precision cannot, or nothing to
            quantize.
    """
    _check_fp32(model)
    if precision == "int8":
        check_calibration(config, 0 if calibration is None else len(calibration))
        assert calibration is not None
        return to_int8(model, config, target, calibration[: config.images], track).model
    copy = model.clone()
    if precision == "fp16":
        to_half(copy)
    return copy


def _check_fp32(model: ir.Model) -> None:
    floating = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
    values = (*model.graph.inputs, *model.graph.initializers.values())
    wrong = [value.name for value in values if value.dtype in floating]
    quantized = [node.name for node in model.graph if node.op_type == "QuantizeLinear"]
    if wrong or quantized:
        raise GraphError(
            f"{(wrong or quantized)[0]} shows that this graph is not fp32",
            expected="the fp32 graph, as densenet-deploy export writes it",
        )


def check_calibration(config: QuantizeConfig, available: int) -> None:
    """Refuses to calibrate int8 on fewer images than configured.

    Raises:
        DataError: There are too few.
    """
    if config.images == 0 or available < config.images:
        raise DataError(
            f"int8 with {available} calibration images",
            expected=f"at least {max(config.images, 1)} training images",
            remedy="name training images with --data, or data.name in the recipe",
        )
