"""Preprocessing, defined once: the same numbers travel in the bundle to Python and C++.

An image goes through two steps. Geometry (decode, resize, crop) ends in 8-bit pixels of shape
(height, width, channels); normalisation turns those into float32 (channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densenet_deploy.errors import DataError

Interpolation = Literal["bilinear", "bicubic"]
Geometry = Callable[[Image.Image], NDArray[np.uint8]]
MAX_PIXELS = 64_000_000  # larger images are refused before they are decoded
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
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
        resize: Length of the shorter side after an antialiased resize, before the centre crop to
            (height, width); 0 resizes straight to (height, width) without a crop.
        interpolation: Of that resize.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int = 0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise ValueError("mean and std must both have 1 (grayscale) or 3 (RGB) values")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if min(self.height, self.width) < 1:
            raise ValueError("height and width must be positive")
        if self.resize and self.resize < max(self.height, self.width):
            raise ValueError("resize must be 0 or at least height and width")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation must be one of: {', '.join(get_args(Interpolation))}")

    @property
    def channels(self) -> int:
        """1 for grayscale, 3 for RGB."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one normalised image."""
        return self.channels, self.height, self.width

    def at(self, height: int, width: int) -> Preprocessing:
        """The same for another input size: what the crop leaves out stays in proportion."""
        if (height, width) == (self.height, self.width):
            return self
        scale = max(height / self.height, width / self.width)
        resize = max(round(self.resize * scale), height, width) if self.resize else 0
        return replace(self, height=height, width=width, resize=resize)

    def convert(self, image: Image.Image) -> Image.Image:
        """The decoded image in 8-bit grayscale or RGB, in its own size."""
        return _eight_bit(image).convert("L" if self.channels == 1 else "RGB")

    def geometry(self, image: Image.Image) -> NDArray[np.uint8]:
        """8-bit pixels (height, width, channels) of a decoded image.

        Raises:
            DataError: The image is so elongated that resizing it would take too much memory.
        """
        pixels = self.uncropped(image)
        top = round((pixels.shape[0] - self.height) / 2)
        left = round((pixels.shape[1] - self.width) / 2)
        cropped = pixels[top : top + self.height, left : left + self.width]
        return np.ascontiguousarray(cropped)

    def uncropped(self, image: Image.Image) -> NDArray[np.uint8]:
        """8-bit pixels (H, W, channels) of a decoded image, resized but not yet cropped.

        Raises:
            DataError: See `geometry`.
        """
        image = self.convert(image)
        size = self._resized(*image.size)
        if size[0] * size[1] > MAX_PIXELS:
            raise DataError(
                f"image of {image.width}x{image.height} pixels would be resized to "
                f"{size[0]}x{size[1]}",
                expected=f"at most {MAX_PIXELS} pixels",
            )
        if image.size != size:
            image = image.resize(size, _RESAMPLING[self.interpolation])
        return np.asarray(image, dtype=np.uint8).reshape(size[1], size[0], self.channels)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image after the resize."""
        if not self.resize:
            return self.width, self.height
        # torchvision's rule: the longer side is truncated, not rounded.
        if width <= height:
            return self.resize, max(self.resize * height // width, 1)
        return max(self.resize * width // height, 1), self.resize

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

    def read(self, path: Path, geometry: Geometry | None = None) -> NDArray[np.uint8]:
        """Decodes an image file to 8-bit pixels (height, width, channels).

        Args:
            path: The file.
            geometry: Cuts it, instead of this preprocessing's own.

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
                return (geometry or self.geometry)(image)
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
CIFAR100 = Preprocessing(32, 32, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
SVHN = Preprocessing(32, 32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IMAGENET = Preprocessing(
    224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256
)
