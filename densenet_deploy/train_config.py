"""How a network is trained: the part of a recipe that training sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DropoutPlace = Literal["every-convolution", "dense-layer"]
Initialisation = Literal["fan-out", "fan-in"]


@dataclass(frozen=True)
class TrainConfig:
    """SGD with Nesterov momentum, its regularisation, and the augmentation of its images.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step, over all processes; a last incomplete batch is dropped.
        accumulate: Forward and backward passes a step is divided into, in each process.
        learning_rate: Peak of the schedule.
        schedule: `cosine` to zero, per step; or `step`: a tenth from each of `drops` on.
        drops: Shares of the epochs at which `step` drops.
        warmup_epochs: Epochs of linear warm-up from zero.
        momentum: Nesterov momentum.
        weight_decay: L2 penalty on all parameters, BatchNorm's and biases among them.
        dropout: Share of a convolution's outputs that is dropped in training.
        dropout_place: After `every-convolution` but the first, as the authors' code; or after each
            `dense-layer` alone, as torchvision's.
        initialisation: He's normal over `fan-out`, as the authors' code; or over `fan-in`, as
            torchvision's.
        crop: `shift` moves an image by at most `shift` pixels; `random-resized` cuts 8 to 100 % of
            its area at aspect ratios of 3/4 to 4/3, as the authors' for ImageNet.
        shift: Pixels each way.
        padding: What enters a shifted image: `black` pixels, or the `mean`, zero once normalised.
        flip: Mirror half of the images.
        colour_jitter: Most relative change of brightness, contrast and saturation.
        lighting: Standard deviation of the shift along ImageNet's principal colours.
        precision: `fp32`, or autocast to `bf16` or `fp16`; `fp16` scales the loss.
        channels_last: Keep activations as NHWC in memory.
        memory_efficient: Recompute what a dense block need not keep; not with `compile`, nor where
            BatchNorm is synchronised.
        compile: Use torch.compile.
        sync_batchnorm: Take BatchNorm's statistics over all processes' images.
        validation_images: Held out of the training images, and evaluated instead of the test
            images, for choosing a recipe or an epoch; 0 trains on all.
        select: The weights of the `last` epoch, or of the `best` on the validation images.
        seed: Of initial weights, order and augmentation.
    """

    epochs: int = 20
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 0.1
    schedule: Literal["cosine", "step"] = "cosine"
    drops: tuple[float, ...] = (0.5, 0.75)
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dropout: float = 0.0
    dropout_place: DropoutPlace = "every-convolution"
    initialisation: Initialisation = "fan-out"
    crop: Literal["shift", "random-resized"] = "shift"
    shift: int = 2
    padding: Literal["black", "mean"] = "black"
    flip: bool = True
    colour_jitter: float = 0.0
    lighting: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    channels_last: bool = True
    memory_efficient: bool = True
    compile: bool = False
    sync_batchnorm: bool = False
    validation_images: int = 0
    select: Literal["last", "best"] = "last"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate) < 1 or self.learning_rate <= 0:
            raise ValueError("epochs, batch_size, accumulate and learning_rate must be positive")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size {self.batch_size}")
        if not 0 <= self.momentum < 1 or not 0 <= self.dropout < 1 or self.seed < 0:
            raise ValueError("momentum and dropout must be in [0, 1) and seed not negative")
        least = (self.shift, self.validation_images, self.warmup_epochs, self.weight_decay)
        if min(*least, self.colour_jitter, self.lighting) < 0:
            raise ValueError(
                "shift, validation_images, warmup_epochs, weight_decay, colour_jitter and "
                "lighting must not be negative"
            )
        if not all(0 < drop < 1 for drop in self.drops) or list(self.drops) != sorted(self.drops):
            raise ValueError("drops must rise, each in (0, 1)")
        if self.select == "best" and not self.validation_images:
            raise ValueError("select best needs validation_images: test images choose nothing")
