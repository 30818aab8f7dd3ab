"""ResNets as one torch module: torchvision's for ImageNet, a pre-activation one for small images.

Source: He et al., arXiv 1512.03385 and arXiv 1603.05027, see `resnet_spec`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from densenet_deploy.resnet_spec import EXPANSION, ResNetSpec
from densenet_deploy.train_config import Initialisation


class PreactivationBlock(nn.Module):
    """BN-ReLU-Conv, two or three times, added to its input.

    The first block of a stage also feeds its shortcut from the first BN-ReLU, as the paper's
    appendix has it for the first of all and the authors' code for each.

    Args:
        channels: Input channels.
        inner: Channels of the 3x3 convolutions.
        bottleneck: 1x1, 3x3 and 1x1 convolutions, not two 3x3 ones.
        stride: Of the first 3x3 convolution, and of the shortcut.
        first: It opens a stage.
    """

    def __init__(
        self, channels: int, inner: int, bottleneck: bool, stride: int, first: bool
    ) -> None:
        super().__init__()
        self.bottleneck, self.first = bottleneck, first
        out = inner * EXPANSION["bottleneck" if bottleneck else "basic"]
        self.norm1 = nn.BatchNorm2d(channels)
        if bottleneck:
            self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
            self.norm3 = nn.BatchNorm2d(inner)
            self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, inner, 3, stride, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, out, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if channels != out:
            self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, H / stride, W / stride)."""
        active = functional.relu(self.norm1(features), inplace=True)
        kept: Tensor = self.shortcut(active) if self.first else features
        new: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(active)), inplace=True))
        if self.bottleneck:
            new = self.conv3(functional.relu(self.norm3(new), inplace=True))
        return new + kept


class ResNet(nn.Sequential):
    """A ResNet classifier, from normalised images (N, C, H, W) to logits (N, classes).

    For ImageNet its state dict loads torchvision's checkpoints of the same variant.

    Args:
        spec: The architecture.
        initialisation: See `DenseNet.reset_parameters`.
    """

    def __init__(self, spec: ResNetSpec, initialisation: Initialisation = "fan-out") -> None:
        modules = _imagenet(spec) if spec.stem == "imagenet" else _small(spec)
        super().__init__(OrderedDict(modules))
        self.spec = spec
        self.reset_parameters(initialisation)

    def reset_parameters(self, initialisation: Initialisation = "fan-out") -> None:
        """As `DenseNet.reset_parameters`."""
        mode: Literal["fan_out", "fan_in"] = "fan_out" if initialisation == "fan-out" else "fan_in"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def _imagenet(spec: ResNetSpec) -> Iterator[tuple[str, nn.Module]]:
    """torchvision's modules, under its names."""
    from torchvision.models import resnet  # only they need it

    block = resnet.BasicBlock if spec.block == "basic" else resnet.Bottleneck
    network = resnet.ResNet(block, list(spec.stage_blocks), num_classes=spec.classes)
    for name, module in network.named_children():
        if name == "conv1":
            channels = spec.input_shape[0]
            module = nn.Conv2d(channels, spec.channels, 7, stride=2, padding=3, bias=False)
        if name == "fc":
            yield "flatten", nn.Flatten(1)
        yield name, module


def _small(spec: ResNetSpec) -> Iterator[tuple[str, nn.Module]]:
    channels = spec.channels
    yield "conv1", nn.Conv2d(spec.input_shape[0], channels, 3, padding=1, bias=False)
    for stage, count in enumerate(spec.stage_blocks):
        inner, blocks = spec.channels * 2**stage, nn.Sequential()
        for index in range(count):
            stride = 2 if stage and not index else 1
            bottleneck = spec.block == "bottleneck"
            blocks.append(PreactivationBlock(channels, inner, bottleneck, stride, not index))
            channels = inner * EXPANSION[spec.block]
        yield f"layer{stage + 1}", blocks
    yield "norm", nn.BatchNorm2d(channels)
    yield "relu", nn.ReLU(inplace=True)
    yield "avgpool", nn.AdaptiveAvgPool2d(1)
    yield "flatten", nn.Flatten(1)
    yield "fc", nn.Linear(channels, spec.classes)
