"""DenseNet, -B, -C and -BC as one torch module, named as torchvision names its parameters.

Source: Huang et al., arXiv 1608.06993v5, section 3: pre-activation BN-ReLU-Conv composites,
convolutions without bias, He initialisation.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from densenet_deploy.spec import BOTTLENECK_WIDTH, DenseNetSpec, variant


class DenseLayer(nn.Module):
    """BN-ReLU-Conv3x3, or BN-ReLU-Conv1x1-BN-ReLU-Conv3x3 with a bottleneck."""

    def __init__(self, channels: int, growth_rate: int, bottleneck: bool) -> None:
        super().__init__()
        inner = BOTTLENECK_WIDTH * growth_rate if bottleneck else channels
        self.bottleneck = bottleneck
        if bottleneck:
            self.norm1 = nn.BatchNorm2d(channels)
            self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, growth_rate, 3, padding=1, bias=False)
        else:
            self.norm1 = nn.BatchNorm2d(channels)
            self.conv1 = nn.Conv2d(channels, growth_rate, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """New feature maps (N, k, H, W) from all earlier ones (N, C, H, W)."""
        new: Tensor = self.conv1(functional.relu(self.norm1(features)))
        if self.bottleneck:
            new = self.conv2(functional.relu(self.norm2(new)))
        return new


class DenseBlock(nn.Module):
    """Dense layers, each of which reads the concatenation of everything before it."""

    def __init__(self, layers: int, channels: int, growth_rate: int, bottleneck: bool) -> None:
        super().__init__()
        for index in range(layers):
            layer = DenseLayer(channels + index * growth_rate, growth_rate, bottleneck)
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + layers * k, H, W)."""
        outputs = [features]
        for layer in self.children():
            outputs.append(layer(torch.cat(outputs, 1)))
        return torch.cat(outputs, 1)


class Transition(nn.Module):
    """BN-ReLU-Conv1x1 and a 2x2 average pool between two dense blocks."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, theta * C, H / 2, W / 2)."""
        return functional.avg_pool2d(self.conv(functional.relu(self.norm(features))), 2)


class DenseNet(nn.Module):
    """A DenseNet classifier; its state dict loads torchvision's checkpoints of the same variant.

    Args:
        spec: The architecture.
    """

    def __init__(self, spec: DenseNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.features = nn.Sequential(_stem(spec))
        flow = spec.block_channels()
        for index, (channels, grown) in enumerate(flow):
            block = DenseBlock(
                spec.block_layers[index], channels, spec.growth_rate, spec.bottleneck
            )
            self.features.add_module(f"denseblock{index + 1}", block)
            if index + 1 < len(flow):
                transition = Transition(grown, flow[index + 1][0])
                self.features.add_module(f"transition{index + 1}", transition)
        self.features.add_module("norm5", nn.BatchNorm2d(flow[-1][1]))
        self.classifier = nn.Linear(flow[-1][1], spec.classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation over fan-out, as in the authors' code; BN 1 and 0; bias 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, C, H, W)."""
        features = functional.relu(self.features(images))
        logits: Tensor = self.classifier(functional.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits


def _stem(spec: DenseNetSpec) -> OrderedDict[str, nn.Module]:
    channels = spec.input_shape[0]
    if spec.stem == "cifar":
        conv = nn.Conv2d(channels, spec.init_channels, 3, padding=1, bias=False)
        return OrderedDict(conv0=conv)
    return OrderedDict(
        conv0=nn.Conv2d(channels, spec.init_channels, 7, stride=2, padding=3, bias=False),
        norm0=nn.BatchNorm2d(spec.init_channels),
        relu0=nn.ReLU(),
        pool0=nn.MaxPool2d(3, stride=2, padding=1),
    )


def create_model(
    name: str,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    seed: int | None = None,
) -> DenseNet:
    """A freshly initialised DenseNet in training mode.

    Args:
        name: A variant's name, such as `densenet121` or `densenet-bc-100-12`.
        input_shape: (channels, height, width), where it differs from the variant's.
        classes: Number of classes, where it differs from the variant's.
        seed: Makes the initial weights reproducible without touching the global generator.

    Raises:
        RecipeError: The name is unknown or the input is too small.
    """
    spec = variant(name, input_shape, classes)
    if seed is None:
        return DenseNet(spec)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too
        return DenseNet(spec)
