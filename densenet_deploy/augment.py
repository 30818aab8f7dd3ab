"""What augmentation does to the pixels of training images.

Crops, colours and light are those of the authors' code for ImageNet (datasets/imagenet.lua and
transforms.lua of facebookarchive/fb.resnet.torch) but for two things. Colours change on 8-bit
pixels. And aspect ratios are torchvision's, 3/4 to 4/3: there, width and height are multiplied and
divided by one factor in that range, so that their ratio reaches 16/9.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.train_config import TrainConfig

Pixel = TypeVar("Pixel", bound=np.generic)

AREA = (0.08, 1.0)  # share of the image a random crop covers
RATIO = (3 / 4, 4 / 3)  # its width over its height
_ATTEMPTS = 10  # at a box that fits
# Principal components of ImageNet's pixels, RGB in rows, in units of the 0..1 range
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def translate(pixels: NDArray[Pixel], shifts: NDArray[np.int64]) -> NDArray[Pixel]:
    """Moves each image (N, H, W, C) by its (rows, columns); zeros enter at the edges."""
    reach = int(np.abs(shifts).max(initial=0))
    count, height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    rows = (reach - shifts[:, 0])[:, None] + np.arange(height)
    columns = (reach - shifts[:, 1])[:, None] + np.arange(width)
    moved: NDArray[Pixel] = padded[
        np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return moved


def is_varied(config: TrainConfig) -> bool:
    """Whether `vary` does anything."""
    return config.crop == "random-resized" or config.colour_jitter > 0


def vary(
    image: Image.Image, config: TrainConfig, preprocessing: Preprocessing, generator: Generator
) -> NDArray[np.uint8]:
    """8-bit pixels (height, width, channels) of a decoded image: a crop, in other colours."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    if config.crop == "random-resized":
        size = [preprocessing.height, preprocessing.width]
        box = random_box(image.width, image.height, generator)
        how = InterpolationMode(preprocessing.interpolation)
        image = resized_crop(preprocessing.convert(image), *box, size, how)
    else:
        image = as_image(preprocessing.geometry(image))
    if config.colour_jitter:
        image = jitter_colours(image, config.colour_jitter, generator)
    pixels = np.asarray(image, np.uint8)
    return pixels.reshape(preprocessing.height, preprocessing.width, preprocessing.channels)


def as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """8-bit pixels (height, width, channels) as Pillow has them."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def random_box(width: int, height: int, generator: Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a part of an image, see `AREA` and `RATIO`.

    Areas are drawn uniformly, ratios uniformly in their logarithm. An image so elongated that no
    box of ten fits is cut in its middle, to the nearest ratio.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(*AREA)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = generator.integers(0, (height - down + 1, width - across + 1))
            return int(top), int(left), down, across
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    across = max(min(width, round(height * ratio)), 1)
    down = max(min(height, round(width / ratio)), 1)
    return (height - down) // 2, (width - across) // 2, down, across


def jitter_colours(image: Image.Image, strength: float, generator: Generator) -> Image.Image:
    """Scales brightness, contrast and saturation, in random order, by factors around 1.

    Args:
        image: RGB or grayscale.
        strength: Factors are uniform in 1 - strength to 1 + strength, and not negative.
        generator: Draws the order and the factors.
    """
    from torchvision.transforms.v2 import functional

    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    order = generator.permutation(len(changes))
    factors = generator.uniform(max(1 - strength, 0), 1 + strength, len(changes))
    for index in order:
        image = changes[index](image, float(factors[index]))
    return image


def light(strength: float, generator: Generator) -> NDArray[np.float64]:
    """What AlexNet's lighting adds to R, G and B, in units of the 0..1 range.

    Each principal component times its eigenvalue times a normal number of standard deviation
    `strength` (Krizhevsky, Sutskever, Hinton 2012, section 4.1).
    """
    return EIGENVECTORS @ (EIGENVALUES * generator.normal(0, strength, 3))
