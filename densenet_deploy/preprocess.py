"""Preprocessing, defined once: the same numbers travel in the bundle to Python and C++.

An image goes through two steps. Geometry (decode, resize, crop) ends in 8-bit pixels of shape
(height, width, channels); normalisation turns those into float32 (channels, height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densenet_deploy.errors import DataError

MAX_PIXELS = 64_000_000  # larger images are refused before they are decoded
# What Pillow's decoders raise on damaged files of the formats they know.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    Attributes:
        height: Pixels of the network's input.
        width: Pixels of the network's input.
        mean: Per-channel mean, in units of the 0..1 range; its length is the channel count,
            1 (grayscale) or 3 (RGB).
        std: Per-channel standard deviation, in the same units.
        resize: Length of the shorter side after an antialiased bilinear resize, before the centre
            crop to (height, width); 0 resizes straight to (height, width) without a crop.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int = 0

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise ValueError("mean and std must both have 1 (grayscale) or 3 (RGB) values")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if min(self.height, self.width) < 1:
            raise ValueError("height and width must be positive")
        if self.resize and self.resize < max(self.height, self.width):
            raise ValueError("resize must be 0 or at least height and width")

    @property
    def channels(self) -> int:
        """1 for grayscale, 3 for RGB."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one normalised image."""
        return self.channels, self.height, self.width

    def geometry(self, image: Image.Image) -> NDArray[np.uint8]:
        """8-bit pixels (height, width, channels) of a decoded image.

        Raises:
            DataError: The image is so elongated that resizing it would take too much memory.
        """
        image = _eight_bit(image).convert("L" if self.channels == 1 else "RGB")
        if self.resize:
            image = self._resize_and_crop(image)
        elif image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels.reshape(self.height, self.width, self.channels)

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        # torchvision's rule: the longer side is truncated, not rounded.
        if width <= height:
            size = (self.resize, max(self.resize * height // width, 1))
        else:
            size = (max(self.resize * width // height, 1), self.resize)
        if size[0] * size[1] > MAX_PIXELS:
            raise DataError(
                f"image of {width}x{height} pixels would be resized to {size[0]}x{size[1]}",
                expected=f"at most {MAX_PIXELS} pixels",
            )
        image = image.resize(size, Image.Resampling.BILINEAR)
        left = round((size[0] - self.width) / 2)
        top = round((size[1] - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 (N, channels, height, width) of 8-bit (N, height, width, channels)."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (*self.input_shape[1:], self.channels):
            raise DataError(
                f"pixels are {pixels.dtype} {pixels.shape}",
                expected=f"uint8 (N, {self.height}, {self.width}, {self.channels})",
            )
        scale = np.float32(1) / (np.float32(255) * np.asarray(self.std, np.float32))
        offset = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        normalised = pixels.astype(np.float32) * scale - offset
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Decodes an image file to 8-bit pixels (height, width, channels).

        Raises:
            DataError: The file is missing, not an image, damaged, or of more than 64 megapixels.
        """
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{path} is {image.width}x{image.height} pixels",
                        expected=f"at most {MAX_PIXELS} pixels",
                    )
                return self.geometry(image)
        except FileNotFoundError:
            raise DataError(f"image {path} does not exist", remedy="check the path") from None
        except Image.DecompressionBombError as error:  # Pillow's own, higher limit
            reason = str(error).split(",")[0]
            raise DataError(f"{path}: {reason}", expected=f"at most {MAX_PIXELS} pixels") from None
        except _DECODER_ERRORS as error:
            raise DataError(
                f"{path} cannot be read as an image ({error})",
                expected="a PNG, JPEG or other file that Pillow decodes",
            ) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grayscale by its high byte, as Pillow reads 16-bit RGB; `convert` would clip it."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))


FASHION_MNIST = Preprocessing(28, 28, mean=(0.2860,), std=(0.3530,))
CIFAR10 = Preprocessing(32, 32, mean=(0.4914, 0.4824, 0.4467), std=(0.2471, 0.2435, 0.2616))
CIFAR100 = Preprocessing(32, 32, mean=(0.5071, 0.4867, 0.4408), std=(0.2682, 0.2565, 0.2761))
SVHN = Preprocessing(32, 32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IMAGENET = Preprocessing(
    224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256
)
