"""DenseNet architectures as data: the published variants, their parameter and MAC counts.

`variant` also knows the ResNets of `resnet_spec`: wherever a model is named, both are understood.

Source: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks",
arXiv 1608.06993v5, section 3 and tables 1 to 3. No torch here, so `densenet-deploy models` and a
serving host can read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from densenet_deploy import resnet_spec
from densenet_deploy.errors import RecipeError
from densenet_deploy.resnet_spec import IMAGENET_RESNETS, RESNETS, ResNetSpec

BOTTLENECK_WIDTH = 4  # "we let each 1x1 convolution produce 4k feature-maps", section 3


def _ceil_halve(size: int) -> int:
    return (size + 1) // 2


@dataclass(frozen=True)
class DenseNetSpec:
    """Everything that determines a DenseNet's graph.

    Attributes:
        growth_rate: k, the feature maps each dense layer adds.
        block_layers: Dense layers in each dense block.
        init_channels: Output channels of the stem convolution.
        stem: `imagenet` (7x7/2 conv, BN, ReLU, 3x3/2 max pool) or `cifar` (3x3 conv alone).
        bottleneck: Whether a 1x1 convolution to 4k channels precedes each 3x3 one (-B).
        compression: theta, the share of channels a transition keeps (-C where below 1).
        input_shape: (channels, height, width) of one image.
        classes: Number of classes.
    """

    growth_rate: int
    block_layers: tuple[int, ...]
    init_channels: int
    stem: Literal["imagenet", "cifar"]
    bottleneck: bool
    compression: float
    input_shape: tuple[int, int, int]
    classes: int

    def __post_init__(self) -> None:
        sizes = (self.growth_rate, self.init_channels, self.classes, *self.block_layers)
        if min(sizes) < 1 or not self.block_layers or not 0 < self.compression <= 1:
            raise ValueError("sizes must be positive and compression in (0, 1]")
        if min(channels for channels, _ in self.block_channels()) < 1:
            raise ValueError(f"compression {self.compression} leaves a dense block no channels")
        if min(self.input_shape) < 1:
            raise ValueError(f"input_shape {self.input_shape} must be positive")
        if min(self.feature_sizes()[-1]) < 1:
            raise ValueError(
                f"input_shape {self.input_shape} is too small for "
                f"{len(self.block_layers)} dense blocks"
            )

    def block_channels(self) -> list[tuple[int, int]]:
        """(input, output) channels of each dense block."""
        channels, flow = self.init_channels, []
        for layers in self.block_layers:
            grown = channels + layers * self.growth_rate
            flow.append((channels, grown))
            channels = int(grown * self.compression)
        return flow

    def feature_sizes(self) -> list[tuple[int, int]]:
        """(height, width) inside each dense block."""
        _, height, width = self.input_shape
        if self.stem == "imagenet":
            height, width = (_ceil_halve(_ceil_halve(size)) for size in (height, width))
        return [(height >> block, width >> block) for block in range(len(self.block_layers))]

    @property
    def reduction(self) -> int:
        """Pixels of the image, each way, to one of the last dense block."""
        return (1 << (len(self.block_layers) - 1)) * (4 if self.stem == "imagenet" else 1)

    @property
    def depth(self) -> int:
        """L: weighted layers, that is convolutions plus the classifier."""
        per_layer = 2 if self.bottleneck else 1
        return sum(self.block_layers) * per_layer + len(self.block_layers) + 1

    def convolutions(self) -> list[tuple[int, int, int, int]]:
        """(in channels, out channels, kernel, output pixels) of every convolution, in order."""
        kernel = 7 if self.stem == "imagenet" else 3
        stem_pixels = self._stem_pixels()
        convs = [(self.input_shape[0], self.init_channels, kernel, stem_pixels)]
        blocks = list(zip(self.block_channels(), self.feature_sizes(), strict=True))
        for index, ((channels, grown), (height, width)) in enumerate(blocks):
            pixels = height * width
            for width_in in range(channels, grown, self.growth_rate):
                convs += self._layer_convolutions(width_in, pixels)
            if index + 1 < len(blocks):
                convs.append((grown, int(grown * self.compression), 1, pixels))
        return convs

    def _stem_pixels(self) -> int:
        _, height, width = self.input_shape
        if self.stem == "imagenet":
            height, width = _ceil_halve(height), _ceil_halve(width)
        return height * width

    def _layer_convolutions(self, channels: int, pixels: int) -> list[tuple[int, int, int, int]]:
        k = self.growth_rate
        if not self.bottleneck:
            return [(channels, k, 3, pixels)]
        inner = BOTTLENECK_WIDTH * k
        return [(channels, inner, 1, pixels), (inner, k, 3, pixels)]

    @property
    def name(self) -> str:
        """The published name of this architecture, or one in the same style."""
        for name, published in VARIANTS.items():
            if published._layers() == self._layers():
                return name
        kind = ("b" if self.bottleneck else "") + ("c" if self.compression < 1 else "")
        return "-".join(filter(None, ("densenet", kind, str(self.depth), str(self.growth_rate))))

    def _layers(self) -> tuple[object, ...]:
        """Everything but the sizes of input and output."""
        fields = vars(self).items()
        return tuple(value for name, value in fields if name not in ("input_shape", "classes"))

    @property
    def parameters(self) -> int:
        """Trainable parameters: convolutions, BatchNorm scales and shifts, classifier."""
        convs = self.convolutions()
        weights = sum(cin * cout * kernel**2 for cin, cout, kernel, _ in convs)
        # Every convolution but the stem has a BN before it; norm5 follows the last block, and the
        # ImageNet stem has one more.
        features = self.block_channels()[-1][1]
        normalised = sum(cin for cin, *_ in convs[1:]) + features
        normalised += self.init_channels if self.stem == "imagenet" else 0
        return weights + 2 * normalised + (features + 1) * self.classes

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and classifier for one image."""
        convs = sum(cin * cout * kernel**2 * px for cin, cout, kernel, px in self.convolutions())
        return convs + self.block_channels()[-1][1] * self.classes


def imagenet(
    growth_rate: int,
    block_layers: tuple[int, ...],
    input_shape: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
) -> DenseNetSpec:
    """A DenseNet-BC with the ImageNet stem (table 1): theta 0.5, 2k initial channels."""
    return DenseNetSpec(
        growth_rate, block_layers, 2 * growth_rate, "imagenet", True, 0.5, input_shape, classes
    )


def cifar(
    depth: int,
    growth_rate: int,
    kind: str = "bc",
    input_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
) -> DenseNetSpec:
    """A three-block DenseNet for small images (section 4.2).

    Args:
        depth: L, convolutions plus the classifier: 3n + 4, or 6n + 4 with bottlenecks.
        growth_rate: k.
        kind: `plain`, `b` (bottleneck), `c` (compression 0.5) or `bc`.
        input_shape: (channels, height, width).
        classes: Number of classes.

    Raises:
        RecipeError: No network of this kind has this depth.
    """
    bottleneck = "b" in kind.replace("plain", "")
    step = 6 if bottleneck else 3
    layers, rest = divmod(depth - 4, step)
    if rest or layers < 1:
        raise RecipeError(
            f"depth {depth} does not fit a three-block densenet-{kind}",
            expected=f"4 plus a positive multiple of {step}",
        )
    # Only 16 initial channels give table 2's parameter counts for plain nets; -B, -C and -BC: 2k.
    init_channels = 16 if kind == "plain" else 2 * growth_rate
    compression = 0.5 if kind in ("c", "bc") else 1.0
    return DenseNetSpec(
        growth_rate,
        (layers,) * 3,
        init_channels,
        "cifar",
        bottleneck,
        compression,
        input_shape,
        classes,
    )


IMAGENET_VARIANTS = {
    "densenet121": imagenet(32, (6, 12, 24, 16)),
    "densenet161": imagenet(48, (6, 12, 36, 24)),
    "densenet169": imagenet(32, (6, 12, 32, 32)),
    "densenet201": imagenet(32, (6, 12, 48, 32)),
    "densenet264": imagenet(32, (6, 12, 64, 48)),
    "densenet264-k48": imagenet(48, (6, 12, 64, 48)),
    "densenet232-k48": imagenet(48, (6, 12, 48, 48)),
}
CIFAR_VARIANTS = {
    "densenet-40-12": cifar(40, 12, "plain"),
    "densenet-100-12": cifar(100, 12, "plain"),
    "densenet-100-24": cifar(100, 24, "plain"),
    "densenet-bc-40-12": cifar(40, 12),
    "densenet-bc-100-12": cifar(100, 12),
    "densenet-bc-250-24": cifar(250, 24),
    "densenet-bc-190-40": cifar(190, 40),
    "densenet-bc-40-36": cifar(40, 36),
    "densenet-bc-40-48": cifar(40, 48),
    "densenet-bc-40-60": cifar(40, 60),
}
VARIANTS = IMAGENET_VARIANTS | CIFAR_VARIANTS

Architecture = DenseNetSpec | ResNetSpec
ARCHITECTURES: dict[str, Architecture] = {**VARIANTS, **RESNETS}
PATTERNS = ("densenet[-b|-c|-bc]-DEPTH-GROWTH", resnet_spec.PATTERN)

_CIFAR_NAME = re.compile(r"densenet(?:-(b|c|bc))?-(\d{1,4})-(\d{1,4})")


def variant(
    name: str, input_shape: tuple[int, int, int] | None = None, classes: int | None = None
) -> Architecture:
    """The architecture called `name`, optionally for another input shape or class count.

    Besides the published names, any of `PATTERNS` is understood.

    Raises:
        RecipeError: The name is unknown, a size is not positive, or the input is too small for
            the network.
    """
    try:
        spec: Architecture | None = VARIANTS.get(name) or resnet_spec.by_name(name)
        spec = spec or _cifar_by_name(name)
        return replace(
            spec,
            input_shape=spec.input_shape if input_shape is None else input_shape,
            classes=spec.classes if classes is None else classes,
        )
    except ValueError as error:
        raise RecipeError(f"model {name}: {error}") from None


def _cifar_by_name(name: str) -> DenseNetSpec:
    match = _CIFAR_NAME.fullmatch(name)
    if match is None:
        known = ", ".join([*IMAGENET_VARIANTS, *IMAGENET_RESNETS])
        raise RecipeError(
            f"unknown model {name!r}", expected=f"one of {known}, or {' or '.join(PATTERNS)}"
        )
    kind, depth, growth_rate = match.groups()
    return cifar(int(depth), int(growth_rate), kind or "plain")
