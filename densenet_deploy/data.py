"""Real images for calibration, training and tests, as 8-bit arrays with labels.

Fashion-MNIST is read with numpy alone, so a serving host can verify itself; CIFAR, SVHN and their
downloads come from torchvision.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from densenet_deploy import preprocess
from densenet_deploy.errors import DataError, MissingDependencyError
from densenet_deploy.image_files import ImageFiles, hold_out, list_files
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.recipe import DataConfig

Split = Literal["train", "test"]

ASSETS = Path(__file__).parent / "assets"
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_MNIST_PLACES = (
    Path("/usr/share/datasets/fashion-mnist"),  # Debian package dataset-fashion-mnist
    Path.home() / ".cache" / "densenet-deploy" / "FashionMNIST" / "raw",
)
_CACHE = Path.home() / ".cache" / "densenet-deploy"


@dataclass(frozen=True)
class ImageSet:
    """Images after geometry, before normalisation.

    Attributes:
        pixels: uint8 (N, height, width, channels).
        labels: int64 (N,), indices into `classes`; -1 where unknown.
        classes: Class names.
        source: What the images are, for records.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, count: int) -> ImageSet:
        """The first `count` images; all for 0.

        Raises:
            DataError: There are fewer.
        """
        if count > len(self):
            raise DataError(f"{self.source} has {len(self)} images", expected=f"at least {count}")
        if count in (0, len(self)):
            return self
        source = f"{count} of {self.source}"
        return ImageSet(self.pixels[:count], self.labels[:count], self.classes, source)

    def split(self, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
        """(the rest, `count` images held out), drawn without replacement.

        Raises:
            DataError: Nothing would be left.
        """
        rest, held_out = hold_out(len(self), count, seed, self.source)
        return self.pick(rest), self.pick(held_out)

    def draw(self, count: int, seed: int) -> NDArray[np.int64]:
        """Rows, ascending, of `count` images drawn without replacement; of all, if fewer."""
        return np.sort(np.random.default_rng(seed).permutation(len(self))[:count])

    def pick(self, rows: NDArray[np.int64]) -> ImageSet:
        """The images of some rows."""
        source = f"{len(rows)} of {self.source}"
        return ImageSet(self.pixels[rows], self.labels[rows], self.classes, source)


def load(
    config: DataConfig, split: Split, preprocessing: Preprocessing, limit: int = 0
) -> ImageSet:
    """The images of one split.

    Args:
        config: Which data set, and where.
        split: Training images calibrate and train, test images verify.
        preprocessing: Geometry of image files, and size of synthetic images.
        limit: Images the caller will use, 0 for all: no more files than that are decoded.

    Raises:
        DataError: The data set is not where it is looked for, or damaged.
        MissingDependencyError: It needs torchvision.
    """
    if split == "test":
        limit = config.test_images
    if config.name == "fashion-mnist":
        sample = config.sample and not config.directory
        images = _fashion_mnist_sample(split) if sample else _fashion_mnist(config.directory, split)
    elif config.name == "folder":
        images = _folder(config, split, preprocessing, limit)
    elif config.name == "synthetic":
        count = limit or (config.train_images if split == "train" else 0) or 64
        return synthetic(count, preprocessing, seed=int(split == "test"))
    else:
        images = _torchvision(config, split)
    if split == "test":
        return images.take(limit)
    if config.name != "folder":
        images = training_images(images, config.train_images)
    return images.take(min(limit, len(images)))


Images = TypeVar("Images", ImageSet, ImageFiles)


def training_images(images: Images, count: int) -> Images:
    """`count` training images, always the same ones, drawn at random; all for 0.

    Raises:
        DataError: There are fewer.
    """
    if count > len(images):
        raise DataError(f"{images.source} are fewer than data.train_images = {count}")
    if count in (0, len(images)):
        return images
    return images.pick(np.sort(np.random.default_rng(0).permutation(len(images))[:count]))


def synthetic(count: int, preprocessing: Preprocessing, seed: int = 0) -> ImageSet:
    """Seeded images for timing and for calibrating weights nobody trained.

    Coarse random colour fields plus noise: like photographs, neighbouring pixels are correlated.
    """
    generator = np.random.default_rng(seed)
    height, width, channels = preprocessing.height, preprocessing.width, preprocessing.channels
    coarse = generator.uniform(0, 255, (count, -(-height // 8), -(-width // 8), channels))
    fields = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    noise = generator.normal(0, 16, fields.shape)
    pixels = np.clip(fields + noise, 0, 255).astype(np.uint8)
    return ImageSet(pixels, np.full(count, -1, np.int64), (), f"synthetic images, seed {seed}")


class Labelled(Protocol):
    """Images with labels, see `ImageSet`."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def source(self) -> str: ...


def check_labels(images: Labelled, classes: int) -> None:
    """Refuses images that cannot train or test a classifier of `classes` classes.

    Raises:
        DataError: Labels are missing or out of range.
    """
    low, high = int(images.labels.min(initial=0)), int(images.labels.max(initial=0))
    if low < 0 or high >= classes:
        found = "no labels" if low < 0 else f"labels up to {high}"
        raise DataError(f"{images.source} has {found}", expected=f"labels 0 to {classes - 1}")


def none(preprocessing: Preprocessing) -> ImageSet:
    """An empty set."""
    shape = (0, preprocessing.height, preprocessing.width, preprocessing.channels)
    return ImageSet(np.zeros(shape, np.uint8), np.zeros(0, np.int64), (), "no images")


def _fashion_mnist_sample(split: Split) -> ImageSet:
    with np.load(ASSETS / "fashion_mnist_sample.npz", allow_pickle=False) as sample:
        pixels, labels = sample[f"{split}_pixels"], sample[f"{split}_labels"]
    source = f"Fashion-MNIST sample, {len(pixels)} {split} images"
    return ImageSet(pixels[..., None], labels.astype(np.int64), FASHION_MNIST_CLASSES, source)


def _fashion_mnist(directory: str, split: Split) -> ImageSet:
    places = (Path(directory),) if directory else _FASHION_MNIST_PLACES
    prefix = "train" if split == "train" else "t10k"
    for place in places:
        images = _first_file(place, f"{prefix}-images-idx3-ubyte")
        labels = _first_file(place, f"{prefix}-labels-idx1-ubyte")
        if images and labels:
            pixels, targets = read_idx(images), read_idx(labels).astype(np.int64)
            if pixels.shape[1:] != (28, 28) or targets.shape != pixels.shape[:1]:
                raise DataError(f"{place}: {pixels.shape} images and {targets.shape} labels")
            source = f"Fashion-MNIST, {len(pixels)} {split} images"
            return ImageSet(pixels[..., None], targets, FASHION_MNIST_CLASSES, source)
    if directory:
        raise DataError(
            f"no Fashion-MNIST files in {directory}", expected=f"{prefix}-images-idx3-ubyte[.gz]"
        )
    _torchvision_dataset("FashionMNIST", split, str(_CACHE))
    return _fashion_mnist(str(_FASHION_MNIST_PLACES[1]), split)


def _first_file(directory: Path, stem: str) -> Path | None:
    candidates = (directory / stem, directory / f"{stem}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes (the MNIST format), gzipped or not.

    Raises:
        DataError: The header or the length is not that of an IDX file.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        zero, kind, dimensions = struct.unpack(">HBB", raw[:4])
        if (zero, kind) != (0, 8):
            raise ValueError(f"it begins with {raw[:4].hex()}, unsigned bytes with 000008")
        shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path} is not a readable IDX file ({error})") from None


def _folder(config: DataConfig, split: Split, preprocessing: Preprocessing, limit: int) -> ImageSet:
    """Files are shuffled with a fixed seed, so that the first of them cover the classes."""
    files = list_files(config.directory, split)
    if split == "train":
        files = training_images(files, config.train_images)
    order = np.random.default_rng(0).permutation(len(files))[: limit or None]
    return replace(read_files(files.pick(order), preprocessing), source=files.source)


def read_files(files: ImageFiles, preprocessing: Preprocessing) -> ImageSet:
    """All of some image files, decoded.

    Raises:
        DataError: One of them cannot be read.
    """
    pixels = np.stack([files.read(row, preprocessing) for row in range(len(files))])
    return ImageSet(pixels, files.labels, files.classes, files.source)


def _torchvision(config: DataConfig, split: Split) -> ImageSet:
    name = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}[config.name]
    root = config.directory or str(_CACHE)
    parts: tuple[str, ...] = (split,)
    if name == "SVHN" and split == "train":
        parts = ("train", "extra")  # "we use all the training data", section 4.1 of 1608.06993
    sets = [_torchvision_dataset(name, part, root) for part in parts]
    pixels, labels = sets[0].data, getattr(sets[0], "targets", None)
    if name == "SVHN":  # stores channels first
        views = [each.data.transpose(0, 2, 3, 1) for each in sets]
        pixels = np.empty((sum(map(len, views)), *views[0].shape[1:]), np.uint8)
        np.concatenate(views, out=pixels)
        labels = np.concatenate([each.labels for each in sets])
    classes = tuple(getattr(sets[0], "classes", None) or map(str, range(10)))
    source = f"{name}, {len(pixels)} {' and '.join(parts)} images"
    return ImageSet(np.ascontiguousarray(pixels), np.asarray(labels, np.int64), classes, source)


def _torchvision_dataset(name: str, part: str, root: str):  # type: ignore[no-untyped-def]
    try:
        from torchvision import datasets
    except ImportError:
        raise MissingDependencyError.of("torchvision", "export", f"reading {name}") from None
    which = {"split": part} if name == "SVHN" else {"train": part == "train"}
    try:
        return getattr(datasets, name)(root, download=True, **which)
    except ModuleNotFoundError as error:  # SVHN's files are MATLAB's, which scipy reads
        raise MissingDependencyError(
            f"reading {name} needs {error.name}, which is not installed",
            remedy=f"install it with: pip install {error.name}",
        ) from None
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{name} is not in {root} and could not be downloaded ({str(error)[:120]})",
            remedy="point data.directory at a copy, or connect to a network"
            + (" or install Debian's dataset-fashion-mnist" if name == "FashionMNIST" else ""),
        ) from None


PREPROCESSING = {
    "fashion-mnist": preprocess.FASHION_MNIST,
    "cifar10": preprocess.CIFAR10,
    "cifar100": preprocess.CIFAR100,
    "svhn": preprocess.SVHN,
}
