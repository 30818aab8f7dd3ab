"""DenseNet, -B, -C and -BC as one torch module, named as torchvision names its parameters.

Source: Huang et al., arXiv 1608.06993v5, section 3: pre-activation BN-ReLU-Conv composites,
convolutions without bias, He initialisation.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from densenet_deploy import memory_efficient
from densenet_deploy.errors import RecipeError
from densenet_deploy.memory_efficient import Triple
from densenet_deploy.resnet import ResNet
from densenet_deploy.spec import BOTTLENECK_WIDTH, Architecture, DenseNetSpec, variant
from densenet_deploy.train_config import DropoutPlace, Initialisation


@dataclass(frozen=True)
class Dropout:
    """Dropout of convolutions' outputs, after all but the stem's in the paper (section 4.2).

    Attributes:
        rate: Share that is dropped after the last convolution of a dense layer.
        inside: Likewise after bottlenecks and in transitions; torchvision has none there.
    """

    rate: float = 0.0
    inside: float = 0.0


class DenseLayer(nn.Module):
    """BN-ReLU-Conv3x3, or BN-ReLU-Conv1x1-BN-ReLU-Conv3x3 with a bottleneck."""

    def __init__(self, channels: int, growth_rate: int, bottleneck: bool, dropout: Dropout) -> None:
        super().__init__()
        inner = BOTTLENECK_WIDTH * growth_rate if bottleneck else channels
        self.bottleneck = bottleneck
        self.dropout = (dropout.inside, dropout.rate) if bottleneck else (dropout.rate,)
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
        new = features
        for (norm, convolution), rate in zip(self.triples(), self.dropout, strict=True):
            new = convolution(functional.relu(norm(new), inplace=True))
            if self.training and rate:
                new = functional.dropout(new, rate)
        return new

    def triples(self) -> list[Triple]:
        """Its BN-ReLU-Convs, in order."""
        first = (self.norm1, self.conv1)
        return [first, (self.norm2, self.conv2)] if self.bottleneck else [first]


class DenseBlock(nn.Module):
    """Dense layers, each of which reads the concatenation of everything before it."""

    def __init__(
        self, layers: int, channels: int, growth_rate: int, bottleneck: bool, dropout: Dropout
    ) -> None:
        super().__init__()
        self.memory_efficient = False
        for index in range(layers):
            layer = DenseLayer(channels + index * growth_rate, growth_rate, bottleneck, dropout)
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + layers * k, H, W)."""
        if self.training and self.memory_efficient:
            layers = [layer for layer in self.children() if isinstance(layer, DenseLayer)]
            triples = [layer.triples() for layer in layers]
            return memory_efficient.dense_block(features, triples, layers[0].dropout)
        outputs = [features]
        for layer in self.children():
            outputs.append(layer(torch.cat(outputs, 1)))
        return torch.cat(outputs, 1)


class Transition(nn.Module):
    """BN-ReLU-Conv1x1 and a 2x2 average pool between two dense blocks."""

    def __init__(self, channels: int, out_channels: int, dropout: Dropout) -> None:
        super().__init__()
        self.memory_efficient = False
        self.dropout = dropout.inside
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, theta * C, H / 2, W / 2)."""
        if self.training and not self.dropout:
            return self._pooled_first(features)
        new = self.conv(functional.relu(self.norm(features), inplace=True))
        if self.training:
            new = functional.dropout(new, self.dropout)
        return functional.avg_pool2d(new, 2)

    def _pooled_first(self, features: Tensor) -> Tensor:
        """The same up to rounding: a 1x1 convolution has a quarter of the pixels to read then."""
        if self.memory_efficient:
            return memory_efficient.transition(features, (self.norm, self.conv))
        pooled = functional.avg_pool2d(functional.relu(self.norm(features), inplace=True), 2)
        new: Tensor = self.conv(pooled)
        return new


class DenseNet(nn.Module):
    """A DenseNet classifier; its state dict loads torchvision's checkpoints of the same variant.

    Args:
        spec: The architecture.
        dropout: In training mode.
        initialisation: See `reset_parameters`.
    """

    def __init__(
        self,
        spec: DenseNetSpec,
        dropout: Dropout = Dropout(),
        initialisation: Initialisation = "fan-out",
    ) -> None:
        super().__init__()
        self.spec = spec
        self.features = nn.Sequential(_stem(spec))
        flow = spec.block_channels()
        for index, (channels, grown) in enumerate(flow):
            block = DenseBlock(
                spec.block_layers[index], channels, spec.growth_rate, spec.bottleneck, dropout
            )
            self.features.add_module(f"denseblock{index + 1}", block)
            if index + 1 < len(flow):
                transition = Transition(grown, flow[index + 1][0], dropout)
                self.features.add_module(f"transition{index + 1}", transition)
        self.features.add_module("norm5", nn.BatchNorm2d(flow[-1][1]))
        self.classifier = nn.Linear(flow[-1][1], spec.classes)
        self.reset_parameters(initialisation)

    def reset_parameters(self, initialisation: Initialisation = "fan-out") -> None:
        """He initialisation over fan-out, as in the authors' code, or over fan-in.

        BatchNorm starts at scale 1 and shift 0, the classifier's bias at 0.
        """
        mode: Literal["fan_out", "fan_in"] = "fan_out" if initialisation == "fan-out" else "fan_in"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def memory_efficient(self) -> bool:
        """Whether dense blocks and transitions recompute what they need not keep, in training.

        Outputs, gradients and running statistics are those of plain autograd, up to rounding.
        """
        return all(module.memory_efficient for module in self._recomputing())

    @memory_efficient.setter
    def memory_efficient(self, value: bool) -> None:
        for module in self._recomputing():
            module.memory_efficient = value

    def _recomputing(self) -> list[DenseBlock | Transition]:
        return [m for m in self.features.children() if isinstance(m, DenseBlock | Transition)]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, C, H, W)."""
        norm = self.features.norm5
        if self.training and self.memory_efficient and isinstance(norm, nn.BatchNorm2d):
            pooled = memory_efficient.head(self.features[:-1](images), norm)
        else:
            features = functional.relu(self.features(images), inplace=True)
            pooled = functional.adaptive_avg_pool2d(features, 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


Network = DenseNet | ResNet


def _stem(spec: DenseNetSpec) -> OrderedDict[str, nn.Module]:
    channels = spec.input_shape[0]
    if spec.stem == "cifar":
        conv = nn.Conv2d(channels, spec.init_channels, 3, padding=1, bias=False)
        return OrderedDict(conv0=conv)
    return OrderedDict(
        conv0=nn.Conv2d(channels, spec.init_channels, 7, stride=2, padding=3, bias=False),
        norm0=nn.BatchNorm2d(spec.init_channels),
        relu0=nn.ReLU(inplace=True),
        pool0=nn.MaxPool2d(3, stride=2, padding=1),
    )


def create_model(
    name: str,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    seed: int | None = None,
    *,
    dropout: float = 0.0,
    dropout_place: DropoutPlace = "every-convolution",
    initialisation: Initialisation = "fan-out",
    memory_efficient: bool = False,
) -> Network:
    """A freshly initialised network in training mode.

    Args:
        name: A variant's name, such as `densenet121`, `densenet-bc-100-12` or `resnet50`.
        input_shape: (channels, height, width), where it differs from the variant's.
        classes: Number of classes, where it differs from the variant's.
        seed: Makes the initial weights reproducible without touching the global generator.
        dropout: Share of convolutions' outputs that is dropped in training.
        dropout_place: Which convolutions', see `TrainConfig`.
        initialisation: He's normal over fan-out or fan-in.
        memory_efficient: See `DenseNet.memory_efficient`; ResNets have nothing to recompute.

    Raises:
        RecipeError: The name is unknown, the input is too small, or dropout is asked of a ResNet.
    """
    spec = variant(name, input_shape, classes)
    inside = dropout if dropout_place == "every-convolution" else 0.0
    with contextlib.ExitStack() as seeded:
        if seed is not None:
            seeded.enter_context(torch.random.fork_rng(devices=[]))
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too
        model = build_network(spec, Dropout(dropout, inside), initialisation)
    if isinstance(model, DenseNet):
        model.memory_efficient = memory_efficient
    return model


def build_network(
    spec: Architecture,
    dropout: Dropout = Dropout(),
    initialisation: Initialisation = "fan-out",
) -> Network:
    """The module of an architecture; takes what `DenseNet` takes.

    Raises:
        RecipeError: Dropout is asked of a ResNet.
    """
    if isinstance(spec, DenseNetSpec):
        return DenseNet(spec, dropout, initialisation)
    if dropout != Dropout():
        raise RecipeError(f"{spec.name} with dropout", expected="train.dropout = 0 for a ResNet")
    return ResNet(spec, initialisation)
