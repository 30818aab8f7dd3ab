"""What each target accepts, and runs fast, as INT8.

TensorRT takes int8 with zero-point 0 and a floating-point bias. TensorRT-RTX lets an INT8
convolution emit half, instead of float with a second kernel behind it, only where one scale serves
the whole weight and the rest of the graph is half; what the scales of the output channels differ by
is a Mul after the convolution, which it fuses with what follows. CPUs multiply uint8 by int8, add
an int32 bias, and concatenate and clamp integers as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from densenet_deploy.recipe import Target, WeightScales


@dataclass(frozen=True)
class Dialect:
    """How a target wants INT8 written.

    Attributes:
        signed: Activations are int8 with zero-point 0; else uint8 with any zero-point.
        integers: Between quantized layers lie integers: int32 biases, integer Concat and Max.
        weights: Scales of a weight: one for each output channel, one, or one and a Mul by channel.
        half: What is not quantized is half precision.
    """

    signed: bool
    integers: bool
    weights: WeightScales
    half: bool


_CPU = Dialect(signed=False, integers=True, weights="per-channel", half=False)
DIALECTS: dict[Target, Dialect] = {
    "tensorrt": Dialect(signed=True, integers=False, weights="per-channel", half=True),
    "tensorrt-rtx": Dialect(signed=True, integers=False, weights="per-channel-mul", half=True),
    "onnxruntime": _CPU,
    "openvino": _CPU,
}


@dataclass(frozen=True)
class Scale:
    """Affine quantization of one tensor: real = scale * (integer - zero_point)."""

    scale: np.float32
    zero_point: np.int8 | np.uint8

    @property
    def levels(self) -> tuple[int, int]:
        """Least and largest integer in use; -128 is not."""
        return (0, 255) if isinstance(self.zero_point, np.uint8) else (-127, 127)


def activation_scale(low: float, high: float, dialect: Dialect) -> Scale:
    """The scale that covers [low, high] and represents 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if dialect.signed:
        return Scale(np.float32(rounded(max(-low, high) / 127, dialect)), np.int8(0))
    scale = np.float32(rounded((high - low) / 255, dialect))
    return Scale(scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, 255)))


def rounded(scales: ArrayLike, dialect: Dialect) -> NDArray[np.float32]:
    """Scales in the precision the graph stores them in, positive and not subnormal."""
    kind = np.float16 if dialect.half else np.float32
    return np.maximum(scales, np.finfo(kind).tiny).astype(kind).astype(np.float32)
