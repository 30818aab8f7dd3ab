"""ResNet architectures as data: what DenseNets are compared with, and their parameters and MACs.

Two families. For ImageNet, the networks of He et al., "Deep Residual Learning for Image
Recognition", arXiv 1512.03385, table 1, with a bottleneck's stride at its 3x3 convolution, as
torchvision has them. For small images, the pre-activation networks of He et al., "Identity Mappings
in Deep Residual Networks", arXiv 1603.05027: a 3x3 stem and three stages, and a 1x1 projection
where a shortcut changes shape. With bottlenecks these have the parameter counts of figure 4 of
arXiv 1608.06993v5, from its third point on. No torch here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from densenet_deploy.errors import RecipeError

EXPANSION = {"basic": 1, "bottleneck": 4}  # channels a block puts out, over its 3x3 ones
IMAGENET_CHANNELS = 64
CIFAR_CHANNELS = 16

Block = Literal["basic", "bottleneck"]
Convolution = tuple[int, int, int, int]  # in channels, out channels, kernel, output pixels


@dataclass(frozen=True)
class ResNetSpec:
    """Everything that determines a ResNet's graph.

    Attributes:
        stem: `imagenet` (7x7/2 conv, BN, ReLU, 3x3/2 max pool; Conv-BN-ReLU blocks) or `cifar`
            (3x3 conv alone; BN-ReLU-Conv blocks).
        block: `basic` (two 3x3 convolutions) or `bottleneck` (1x1, 3x3 and 1x1).
        stage_blocks: Residual blocks of each stage.
        channels: Of the first stage's 3x3 convolutions, and of the stem; each stage doubles them.
        input_shape: (channels, height, width) of one image.
        classes: Number of classes.
    """

    stem: Literal["imagenet", "cifar"]
    block: Block
    stage_blocks: tuple[int, ...]
    channels: int
    input_shape: tuple[int, int, int]
    classes: int

    def __post_init__(self) -> None:
        sizes = (self.channels, self.classes, *self.stage_blocks, *self.input_shape)
        if min(sizes) < 1 or not self.stage_blocks:
            raise ValueError("sizes must be positive, and stages at least one")
        if self.stem == "imagenet" and (len(self.stage_blocks), self.channels) != (4, 64):
            raise ValueError(
                "with the imagenet stem a ResNet has 4 stages, the first of 64 channels"
            )

    @property
    def depth(self) -> int:
        """Weighted layers: convolutions but those of shortcuts, plus the classifier."""
        per_block = 2 if self.block == "basic" else 3
        return sum(self.stage_blocks) * per_block + 2

    @property
    def features(self) -> int:
        """Channels the classifier reads."""
        return self.channels * (1 << (len(self.stage_blocks) - 1)) * EXPANSION[self.block]

    @property
    def reduction(self) -> int:
        """Pixels of the image, each way, to one of the last stage."""
        return (1 << (len(self.stage_blocks) - 1)) * (4 if self.stem == "imagenet" else 1)

    def convolutions(self) -> list[Convolution]:
        """Every convolution: the stem's, then each block's, its shortcut's last."""
        return [
            self._stem()[0],
            *(conv for branch, shortcut in self.blocks() for conv in (*branch, *shortcut)),
        ]

    def _stem(self) -> tuple[Convolution, int, int]:
        """Its convolution, and the height and width of what the first block reads."""
        channels, height, width = self.input_shape
        if self.stem == "cifar":
            return (channels, self.channels, 3, height * width), height, width
        height, width = _halved(height), _halved(width)
        conv = (channels, self.channels, 7, height * width)
        return conv, _halved(height), _halved(width)

    def blocks(self) -> list[tuple[list[Convolution], list[Convolution]]]:
        """(of the residual branch, of the shortcut), for each block; most shortcuts have none."""
        _, height, width = self._stem()
        channels, found = self.channels, []
        for stage, count in enumerate(self.stage_blocks):
            inner = self.channels * 2**stage
            out = inner * EXPANSION[self.block]
            for index in range(count):
                before = height * width
                if stage and not index:
                    height, width = _halved(height), _halved(width)
                pixels = height * width
                branch = [(channels, inner, 3, pixels), (inner, out, 3, pixels)]
                if self.block == "bottleneck":
                    branch = [
                        (channels, inner, 1, before),
                        (inner, inner, 3, pixels),
                        (inner, out, 1, pixels),
                    ]
                found.append((branch, [(channels, out, 1, pixels)] if channels != out else []))
                channels = out
        return found

    @property
    def name(self) -> str:
        """The published name of this architecture, or one in the same style."""
        if self.stem == "imagenet":
            return f"resnet{self.depth}"
        kind = "b" if self.block == "bottleneck" else ""
        width = "" if self.channels == CIFAR_CHANNELS else str(self.channels)
        return "-".join(filter(None, ("resnet-preact", kind, str(self.depth), width)))

    @property
    def parameters(self) -> int:
        """Trainable parameters: convolutions, BatchNorm scales and shifts, classifier."""
        convs = self.convolutions()
        weights = sum(cin * cout * kernel**2 for cin, cout, kernel, _ in convs)
        if self.stem == "imagenet":  # a BN follows every convolution
            normalised = sum(cout for _, cout, *_ in convs)
        else:  # one precedes every convolution of a branch, and one follows the last block
            branches = (conv for branch, _ in self.blocks() for conv in branch)
            normalised = sum(cin for cin, *_ in branches) + self.features
        return weights + 2 * normalised + (self.features + 1) * self.classes

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and classifier for one image."""
        convs = sum(cin * cout * kernel**2 * px for cin, cout, kernel, px in self.convolutions())
        return convs + self.features * self.classes


def _halved(size: int) -> int:
    return (size + 1) // 2


def imagenet(block: Block, stage_blocks: tuple[int, ...]) -> ResNetSpec:
    """A ResNet with the ImageNet stem, at 3x224x224 and 1000 classes."""
    return ResNetSpec("imagenet", block, stage_blocks, IMAGENET_CHANNELS, (3, 224, 224), 1000)


def preact(depth: int, block: Block = "basic", channels: int = CIFAR_CHANNELS) -> ResNetSpec:
    """A pre-activation ResNet of three stages, at 3x32x32 and 10 classes.

    Args:
        depth: 6n + 2 with basic blocks, 9n + 2 with bottlenecks.
        block: Kind of its residual blocks.
        channels: Of the first stage's 3x3 convolutions.

    Raises:
        RecipeError: No network of this kind has this depth.
    """
    step = 6 if block == "basic" else 9
    count, rest = divmod(depth - 2, step)
    if rest or count < 1:
        raise RecipeError(
            f"depth {depth} does not fit a three-stage ResNet of {block} blocks",
            expected=f"2 plus a positive multiple of {step}",
        )
    return ResNetSpec("cifar", block, (count,) * 3, channels, (3, 32, 32), 10)


IMAGENET_RESNETS = {
    "resnet18": imagenet("basic", (2, 2, 2, 2)),
    "resnet34": imagenet("basic", (3, 4, 6, 3)),
    "resnet50": imagenet("bottleneck", (3, 4, 6, 3)),
    "resnet101": imagenet("bottleneck", (3, 4, 23, 3)),
    "resnet152": imagenet("bottleneck", (3, 8, 36, 3)),
}
RESNETS = IMAGENET_RESNETS | {
    "resnet-preact-110": preact(110),
    "resnet-preact-b-164": preact(164, "bottleneck"),
    "resnet-preact-b-1001": preact(1001, "bottleneck"),
}
PATTERN = "resnet-preact[-b]-DEPTH[-CHANNELS]"

_NAME = re.compile(r"resnet-preact(-b)?-(\d{1,4})(?:-(\d{1,4}))?")


def by_name(name: str) -> ResNetSpec | None:
    """The ResNet called `name`; None where that names no ResNet.

    Raises:
        RecipeError: No network of this kind has this depth.
        ValueError: The first stage has no channels.
    """
    if name in RESNETS:
        return RESNETS[name]
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    kind, depth, channels = match.groups()
    block: Block = "bottleneck" if kind else "basic"
    return preact(int(depth), block, int(channels or CIFAR_CHANNELS))
