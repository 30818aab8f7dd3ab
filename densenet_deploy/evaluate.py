"""Accuracy of a network on labelled images: top-1 and top-5, with one crop of each or ten."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densenet_deploy import data
from densenet_deploy.data import ImageSet, check_labels
from densenet_deploy.distributed import ALONE, Processes
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import DataError
from densenet_deploy.image_files import ImageFiles, list_files
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import DataConfig

Crops = Literal[1, 10]
_Cut = Callable[[int], NDArray[np.uint8]]
_Batches = Generator[tuple[range, NDArray[np.uint8]]]


@dataclass(frozen=True)
class Accuracy:
    """Share of images whose class is among the most probable ones.

    Attributes:
        top1: Percent.
        top5: Percent; None where there are no more than five classes.
        images: How many were looked at.
        crops: Of each image.
        source: What the images are.
    """

    top1: float
    top5: float | None
    images: int
    crops: int
    source: str

    def summary(self) -> str:
        """One line for people."""
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2f} %"
        crops = "" if self.crops == 1 else f", {self.crops} crops of each"
        return f"top-1 {self.top1:.2f} %{top5} ({self.source}{crops})"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    images: ImageSet | ImageFiles,
    preprocessing: Preprocessing,
    batch_size: int = 100,
    crops: Crops = 1,
    track: Track = silent,
    processes: Processes = ALONE,
) -> Accuracy:
    """Accuracy in fp32 and evaluation mode, on the device of the model's parameters.

    The logits of ten crops are averaged, not their probabilities: the authors' code sums the
    network's outputs over the crops (train.lua of liuzhuang13/DenseNet, as in fb.resnet.torch).

    Args:
        model: Makes logits (N, classes).
        images: Pixels, or files, which are read batch by batch. For ten crops the pixels are those
            before the crop.
        preprocessing: Geometry of files and crops; normalisation.
        batch_size: Crops that go through the network at once, at least those of one image.
        crops: 1 for the centre; 10 for the corners, the centre and their mirror images.
        track: Progress reporter.
        processes: This process among those that share the images; all get the accuracy on all.

    Raises:
        DataError: No images, unreadable ones, labels the model has no class for, or ten crops of
            images that are not larger than the crop.
    """
    if not len(images):
        raise DataError(f"{images.source}: no images", expected="at least one")
    if crops == 10 and isinstance(images, ImageFiles) and not preprocessing.resize:
        raise DataError(
            "10 crops where images are resized straight to the input",
            expected="a preprocessing that resizes to more than the crop",
            remedy="evaluate with a single crop",
        )
    share = math.ceil(len(images) / processes.world)
    size = max(min(batch_size // crops, share), 1)
    starts = range(0, len(images), size)
    batches = [range(start, min(start + size, len(images))) for start in starts]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            mine = track(batches[processes.rank :: processes.world], "Evaluating (batches)")
            threads = max(usable_cores() // processes.local_world, 1)
            cut = partial(_views, images, preprocessing, crops)
            in_memory = isinstance(images, ImageSet)
            read = _in_turn(cut, mine) if in_memory else _ahead(cut, mine, threads)
            with contextlib.closing(read) as pixels:
                hits, classes = _count(model, images, preprocessing, pixels)
    finally:
        model.train(training)
    # a process without images does not know how many classes there are
    first, among_five, many = processes.total(torch.tensor([*hits, classes > 5])).tolist()
    top1, top5 = 100 * first / len(images), 100 * among_five / len(images)
    return Accuracy(top1, top5 if many else None, len(images), crops, images.source)


def _count(
    model: nn.Module,
    images: ImageSet | ImageFiles,
    preprocessing: Preprocessing,
    batches: Iterable[tuple[range, NDArray[np.uint8]]],
) -> tuple[NDArray[np.int64], int]:
    """How many images have their class first, and among the first five; and how many classes."""
    hits, classes = np.zeros(2, np.int64), 0
    for rows, pixels in batches:
        labels = images.labels[rows.start : rows.stop]
        logits = _logits(model, preprocessing.normalise(pixels))
        if not classes:
            classes = logits.shape[1]
            check_labels(images, classes)
        hits += _hits(logits.reshape(len(rows), -1, classes).mean(1), labels)
    return hits, classes


def test_images(config: DataConfig, preprocessing: Preprocessing) -> ImageSet | ImageFiles:
    """The test images of a data set; a folder's as files, which memory need not hold.

    Of a limited number of files they are those of `data.load`.

    Raises:
        DataError: The data set is not where it is looked for, or damaged.
    """
    if config.name != "folder":
        return data.load(config, "test", preprocessing)
    files = list_files(config.directory, "test")
    if not config.test_images:
        return files
    if config.test_images > len(files):
        raise DataError(
            f"{files.source} has {len(files)} images", expected=f"at least {config.test_images}"
        )
    return files.pick(np.random.default_rng(0).permutation(len(files))[: config.test_images])


def ten_crops(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Crops (10, height, width, C) of an image (H, W, C), in the order of torchvision's `TenCrop`.

    Top left, top right, bottom left, bottom right and centre, then those of the mirrored image.

    Raises:
        DataError: The image is not larger than the crop.
    """
    below, right = pixels.shape[0] - height, pixels.shape[1] - width
    if min(below, right) < 0 or below == right == 0:
        raise DataError(
            f"10 crops of {height}x{width} from an image of {pixels.shape[0]}x{pixels.shape[1]}",
            expected="an image larger than the crop",
            remedy="evaluate with a single crop",
        )
    places = [(0, 0), (0, right), (below, 0), (below, right), (round(below / 2), round(right / 2))]
    return np.stack(
        [
            view[top : top + height, left : left + width]
            for view in (pixels, pixels[:, ::-1])
            for top, left in places
        ]
    )


def _in_turn(cut: _Cut, batches: Iterable[range]) -> _Batches:
    """Rows and crops (N * crops, height, width, channels) of each batch."""
    for rows in batches:
        yield rows, np.concatenate([cut(row) for row in rows])


def _ahead(cut: _Cut, batches: Iterable[range], threads: int) -> _Batches:
    """The same, but the next batch is read while the caller computes this one.

    In threads: decoders and resizes leave Python's lock to others.
    """
    pool = ThreadPoolExecutor(threads)
    reading: deque[tuple[range, Iterator[NDArray[np.uint8]]]] = deque()
    try:
        for rows in batches:
            reading.append((rows, pool.map(cut, rows)))
            if len(reading) > 1:
                first, crops = reading.popleft()
                yield first, np.concatenate(list(crops))
        for last, crops in reading:
            yield last, np.concatenate(list(crops))
    finally:
        pool.shutdown(cancel_futures=True)


def _views(
    images: ImageSet | ImageFiles, preprocessing: Preprocessing, crops: Crops, row: int
) -> NDArray[np.uint8]:
    """Crops (crops, height, width, channels) of one image."""
    if isinstance(images, ImageSet):
        pixels: NDArray[np.uint8] = images.pixels[row]
    else:
        whole = preprocessing.geometry if crops == 1 else preprocessing.uncropped
        pixels = images.read(row, preprocessing, whole)
    if crops == 1:
        return pixels[None]
    return ten_crops(pixels, preprocessing.height, preprocessing.width)


def _logits(model: nn.Module, inputs: NDArray[np.float32]) -> Tensor:
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    exact = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        allow_tf32=False,  # which convolutions use by default
    )
    with torch.autocast(device.type, enabled=False), exact:
        logits: Tensor = model(torch.from_numpy(inputs).to(device))
    return logits


def _hits(logits: Tensor, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images have their class first, and among the first five."""
    best = logits.topk(min(5, logits.shape[1])).indices.cpu().numpy()
    found = best == labels[:, None]
    return np.array([found[:, 0].sum(), found.any(1).sum()])
