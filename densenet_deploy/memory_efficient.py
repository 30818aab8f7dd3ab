"""Training a dense block in linear memory: what can be made again is not kept.

A dense block's layers read concatenations of the same feature maps. Autograd keeps each of those,
and its normalised, rectified copy, until the backward pass: memory of quadratic order in depth.
Here a block keeps its feature maps once, in one buffer, and each layer's bottleneck; concatenation,
BatchNorm and ReLU are made anew in the backward pass, convolutions are not. The gradients of a
feature map, one from each layer that reads it, are summed in a buffer likewise.

Source: Pleiss et al., "Memory-Efficient Implementation of DenseNets", arXiv 1707.06990. BatchNorm
is made anew from the batch statistics of the forward pass, so running statistics move once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

_aten = torch.ops.aten
Triple = tuple[nn.BatchNorm2d, nn.Conv2d]
"""BatchNorm and convolution of a BN-ReLU-Conv."""


def dense_block(
    features: Tensor, layers: Sequence[Sequence[Triple]], dropout: Sequence[float]
) -> Tensor:
    """All feature maps of a dense block (N, C + layers * k, H, W) from its input (N, C, H, W).

    Args:
        features: The block's input.
        layers: The BN-ReLU-Convs of each layer, in order.
        dropout: Share of outputs that is dropped, of each convolution in a layer.
    """
    parameters = [tensor for layer in layers for triple in layer for tensor in _parameters(triple)]
    result: Tensor = _DenseBlock.apply(features, layers, dropout, *parameters)
    return result


def transition(features: Tensor, triple: Triple) -> Tensor:
    """BN, ReLU, 2x2 average pool, 1x1 convolution: (N, C, H, W) to (N, D, H / 2, W / 2).

    Pooling and a 1x1 convolution commute: this is the paper's transition with a quarter of its
    multiply-accumulates.
    """
    result: Tensor = _Transition.apply(features, triple, *_parameters(triple))
    return result


def head(features: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """BN, ReLU, global average pool: (N, C, H, W) to (N, C)."""
    result: Tensor = _Head.apply(features, norm, norm.weight, norm.bias)
    return result


@dataclass(frozen=True)
class _Form:
    """What a BN-ReLU-Conv keeps that is no tensor."""

    padding: Any
    dropout: float = 0.0
    pool: bool = False


@dataclass
class _Kept:
    """The tensors that a BN-ReLU-Conv keeps for its backward pass.

    Parameters and statistics are small; `mask` takes one byte an element, under dropout alone;
    `value`, its input, is None where it can be sliced from the block's buffer.
    """

    scale: Tensor
    shift: Tensor
    weight: Tensor
    mean: Tensor
    inverse_std: Tensor
    mask: Tensor | None
    value: Tensor | None


_KEPT = 7


class _DenseBlock(Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        layers: Sequence[Sequence[Triple]],
        dropout: Sequence[float],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.growth_rate, ctx.layout = layers[0][-1][1].out_channels, _layout(features)
        ctx.forms = [
            [_Form(conv.padding, rate) for (_, conv), rate in zip(layer, dropout, strict=True)]
            for layer in layers
        ]
        buffer = _wider(features, len(layers) * ctx.growth_rate)
        start = features.shape[1]
        kept: list[Tensor | None] = []
        for layer, forms in zip(layers, ctx.forms, strict=True):
            value = buffer[:, :start].contiguous(memory_format=ctx.layout)
            for index, (triple, form) in enumerate(zip(layer, forms, strict=True)):
                output, own = _forward(value, triple, form)
                own.value = value if index else None
                kept += vars(own).values()
                value = output
            buffer[:, start : start + ctx.growth_rate] = value
            start += ctx.growth_rate
        ctx.save_for_backward(buffer, *kept)
        return buffer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        buffer, *kept = ctx.saved_tensors
        total = gradient.clone(
            memory_format=ctx.layout
        )  # of each feature map, from all its readers
        of_parameters: list[Tensor] = []
        start = buffer.shape[1]
        for forms in reversed(ctx.forms):
            end, start = start, start - ctx.growth_rate
            flowing = total[:, start:end].contiguous(memory_format=ctx.layout)
            for form in reversed(forms):
                own = _Kept(*kept[-_KEPT:])
                del kept[-_KEPT:]
                if own.value is None:
                    own.value = buffer[:, :start].contiguous(memory_format=ctx.layout)
                flowing, *found = _backward(flowing, own, form)
                of_parameters = [*found, *of_parameters]
            total[:, :start] += flowing
        return total[:, :start], None, None, *of_parameters


class _Transition(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, triple: Triple, *parameters: Tensor) -> Tensor:
        ctx.form = _Form(triple[1].padding, pool=True)
        value = features.to(_working_dtype(features))
        output, own = _forward(value, triple, ctx.form)
        own.value = value
        ctx.save_for_backward(*vars(own).values())
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flowing, *of_parameters = _backward(gradient, _Kept(*ctx.saved_tensors), ctx.form)
        return flowing, None, *of_parameters


class _Head(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, norm: nn.BatchNorm2d, *parameters: Tensor) -> Tensor:
        rectified, mean, inverse_std = _rectified(features, norm)
        ctx.save_for_backward(features, *parameters, mean, inverse_std)
        return rectified.mean((2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, *normalisation = ctx.saved_tensors
        rectified = _rectified_again(features, *normalisation)
        pixels = features.shape[2] * features.shape[3]
        flowing = (gradient / pixels)[:, :, None, None].expand_as(features)
        flowing, of_scale, of_shift = _through_norm(flowing, rectified, features, *normalisation)
        return flowing, None, of_scale, of_shift


def _forward(value: Tensor, triple: Triple, form: _Form) -> tuple[Tensor, _Kept]:
    """The convolution's output, and all it keeps but its input."""
    norm, convolution = triple
    rectified, mean, inverse_std = _rectified(value, norm)
    read = functional.avg_pool2d(rectified, 2) if form.pool else rectified
    weight = convolution.weight.to(value.dtype)
    with torch.autocast(value.device.type, enabled=False):
        output, mask = functional.conv2d(read, weight, padding=form.padding), None
    if form.dropout:
        output, mask = torch.native_dropout(output, form.dropout, True)
    return output, _Kept(*_parameters(triple), mean, inverse_std, mask, None)


def _backward(gradient: Tensor, kept: _Kept, form: _Form) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input, of BatchNorm's scale and shift, and of the convolution's weight."""
    value = kept.value
    assert value is not None
    if kept.mask is not None:
        gradient = _aten.native_dropout_backward(gradient, kept.mask, 1 / (1 - form.dropout))
    normalisation = (kept.scale, kept.shift, kept.mean, kept.inverse_std)
    rectified = _rectified_again(value, *normalisation)
    read = functional.avg_pool2d(rectified, 2) if form.pool else rectified
    weight = kept.weight.to(value.dtype)
    flowing, of_weight, _ = _aten.convolution_backward(
        *(gradient, read, weight, None, (1, 1), form.padding, (1, 1), False, (0, 0), 1),
        (True, True, False),
    )
    if form.pool:
        flowing = _aten.avg_pool2d_backward(
            flowing, rectified, (2, 2), (2, 2), (0, 0), False, True, None
        )
    flowing, of_scale, of_shift = _through_norm(flowing, rectified, value, *normalisation)
    return flowing, of_scale, of_shift, of_weight.to(kept.weight.dtype)


def _rectified(value: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """ReLU of BatchNorm, and the batch's mean and 1 / standard deviation of each channel."""
    normalised, mean, inverse_std = torch.native_batch_norm(
        *(value, norm.weight, norm.bias, norm.running_mean, norm.running_var, True),
        _share_of_batch(norm),
        norm.eps,
    )
    return normalised.relu_(), mean, inverse_std


def _through_norm(
    gradient: Tensor,
    rectified: Tensor,
    value: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what BN and ReLU read, and of BatchNorm's scale and shift."""
    gradient = _aten.threshold_backward(gradient, rectified, 0)
    epsilon = 0.0  # unused: inverse_std has it
    flowing, of_scale, of_shift = _aten.native_batch_norm_backward(
        *(gradient, value, scale, None, None, mean, inverse_std, True, epsilon), (True, True, True)
    )
    return flowing, of_scale, of_shift


def _rectified_again(
    value: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, inverse_std: Tensor
) -> Tensor:
    """To the bit what it was in the forward pass, without another look for the statistics.

    A variance of one leaves scale * inverse_std as they were multiplied there.
    """
    ones = torch.ones_like(mean)
    normalised = torch.native_batch_norm(
        value, scale * inverse_std, shift, mean, ones, False, 0.0, 0.0
    )[0]
    return normalised.relu_()


def _parameters(triple: Triple) -> tuple[Tensor, Tensor, Tensor]:
    norm, convolution = triple
    return norm.weight, norm.bias, convolution.weight


def _share_of_batch(norm: nn.BatchNorm2d) -> float:
    """Counts a batch; how far it moves the running statistics."""
    if norm.num_batches_tracked is None:
        return 0.0
    norm.num_batches_tracked.add_(1)
    return 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def _wider(features: Tensor, more: int) -> Tensor:
    """A buffer that begins with the features and has room for more channels."""
    batch, channels, height, width = features.shape
    buffer = torch.empty(
        (batch, channels + more, height, width),
        dtype=_working_dtype(features),
        device=features.device,
        memory_format=_layout(features),
    )
    buffer[:, :channels] = features
    return buffer


def _working_dtype(features: Tensor) -> torch.dtype:
    """What a convolution of these features computes in."""
    device = features.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return features.dtype


def _layout(features: Tensor) -> torch.memory_format:
    if features.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last
