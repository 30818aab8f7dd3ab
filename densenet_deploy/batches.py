"""Batches of training images: their order, their augmentation, and each process's share of them.

Everything random about an epoch is drawn from (seed, epoch), or for one image from (seed, epoch,
image): a run that is interrupted and resumed anywhere sees the same batches, and so do any number
of processes and workers together.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from densenet_deploy import augment, data
from densenet_deploy.data import ImageSet
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import DataError, RecipeError
from densenet_deploy.image_files import ImageFiles, list_files
from densenet_deploy.preprocess import Geometry, Preprocessing
from densenet_deploy.recipe import DataConfig
from densenet_deploy.train_config import TrainConfig

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes gets.

    Attributes:
        rank: Which one, from 0.
        world: How many there are; it divides the batch size.
        local_world: How many of them this machine has.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1


class TrainingImages(Protocol):
    """Where training takes its batches from.

    Attributes:
        labels: int64 (N,), indices into `classes`; -1 where unknown.
        classes: Class names.
        source: What the images are, for records.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int: ...

    def batches(
        self, config: TrainConfig, epoch: int, first_step: int, share: Share = Share()
    ) -> Iterator[Batch]:
        """This process's part of each batch of an epoch, from step `first_step` on.

        Yields:
            Inputs, float32 (n, channels, height, width), as `config.channels_last` lays them out
            in memory; and labels, int64 (n,).

        Raises:
            RecipeError: The images cannot be augmented so.
            DataError: A file cannot be read.
        """
        ...


class ImagesInMemory:
    """Training images that are all decoded.

    Args:
        images: The images.
        preprocessing: Their normalisation.
    """

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing
        self.labels, self.classes, self.source = images.labels, images.classes, images.source

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, config: TrainConfig, epoch: int, first_step: int, share: Share = Share()
    ) -> Iterator[Batch]:
        """See `TrainingImages.batches`."""
        drawn = _draw(config, self.preprocessing, epoch, len(self))
        for rows in drawn.parts(first_step, share):
            pixels = self.images.pixels[rows]
            if augment.is_varied(config):
                pairs = zip(map(augment.as_image, pixels), rows, strict=True)
                pixels = np.stack([drawn.geometry(row)(image) for image, row in pairs])
            yield drawn.inputs(pixels, rows), torch.from_numpy(self.labels[rows])


class ImagesInFolder:
    """Training images in files, decoded as they are needed; no more than a few batches are held.

    Args:
        files: The image files.
        preprocessing: Their geometry, where `TrainConfig.crop` is `shift`, and normalisation.
        workers: Processes that decode, each at most two batches ahead; 0 decodes in this one, and
            None shares the cores of this machine among the processes that train.
    """

    def __init__(
        self, files: ImageFiles, preprocessing: Preprocessing, workers: int | None = None
    ) -> None:
        self.files, self.preprocessing = files, preprocessing
        self.labels, self.classes, self.source = files.labels, files.classes, files.source
        self.workers = workers

    def __len__(self) -> int:
        return len(self.files)

    def batches(
        self, config: TrainConfig, epoch: int, first_step: int, share: Share = Share()
    ) -> Iterator[Batch]:
        """See `TrainingImages.batches`."""
        drawn = _draw(config, self.preprocessing, epoch, len(self))
        workers = self.workers
        if workers is None:
            workers = max(usable_cores() // share.local_world, 1)
        loader = DataLoader(
            _Decoding(self.files, drawn),
            batch_size=None,  # an item is a batch already
            sampler=list(drawn.parts(first_step, share)),
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # the loader draws a seed; dropout's generator is not its
        )
        with _handler_of_children():
            for batch in loader:
                if isinstance(batch, DataError):
                    raise batch
                yield batch


@contextlib.contextmanager
def _handler_of_children() -> Iterator[None]:
    """Puts back what handles SIGCHLD: the loader leaves its own behind.

    With it, and after other libraries had run, the kernel ended processes here by SIGSEGV when a
    child of theirs ended.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def open_images(
    config: DataConfig,
    preprocessing: Preprocessing,
    held_out: int = 0,
    seed: int = 0,
    workers: int | None = None,
) -> tuple[TrainingImages, ImageSet | ImageFiles | None]:
    """Training images of a data set, in memory or, those of a folder, as files.

    Args:
        config: Which data set, and where.
        preprocessing: Geometry and normalisation.
        held_out: Images to keep from training.
        seed: Draws those.
        workers: See `ImagesInFolder`.

    Returns:
        The training images, and those held out, if any.

    Raises:
        DataError: The data set is not where it is looked for, damaged, or too small.
    """
    if config.name == "folder":
        files = data.training_images(list_files(config.directory, "train"), config.train_images)
        files, kept = files.split(held_out, seed) if held_out else (files, None)
        return ImagesInFolder(files, preprocessing, workers), kept
    images = data.load(config, "train", preprocessing)
    images, held = images.split(held_out, seed) if held_out else (images, None)
    return ImagesInMemory(images, preprocessing), held


@dataclass(frozen=True)
class _Epoch:
    """One epoch's order and augmentation.

    Attributes:
        config: What to draw.
        preprocessing: Of the images.
        number: The epoch, from 0.
        order: Rows of all images.
        flips: Whether each image, by its row, is mirrored.
        shifts: (rows, columns) that each moves.
    """

    config: TrainConfig
    preprocessing: Preprocessing
    number: int
    order: NDArray[np.int64]
    flips: NDArray[np.bool_]
    shifts: NDArray[np.int64]

    def parts(self, first: int, share: Share) -> Iterator[NDArray[np.int64]]:
        """A process's rows of each batch from step `first` on; an incomplete one is dropped."""
        size = self.config.batch_size
        for step in range(first, len(self.order) // size):
            ends = [step * size + size * rank // share.world for rank in range(share.world + 1)]
            yield self.order[ends[share.rank] : ends[share.rank + 1]]

    def geometry(self, row: int) -> Geometry:
        """How the image of a row becomes pixels."""
        if not augment.is_varied(self.config):
            return self.preprocessing.geometry
        generator = self._generator(row, 1)
        return lambda image: augment.vary(image, self.config, self.preprocessing, generator)

    def inputs(self, pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
        """Normalised inputs (n, channels, height, width) of the pixels of some rows."""
        config, shifts = self.config, self.shifts[rows]
        shifted = config.crop == "shift" and config.shift > 0
        if config.flip:
            pixels = np.where(self.flips[rows, None, None, None], pixels[:, :, ::-1], pixels)
        if shifted and config.padding == "black":
            pixels = augment.translate(pixels, shifts)
        inputs = self.preprocessing.normalise(pixels)
        if config.lighting:
            drawn = [augment.light(config.lighting, self._generator(row, 2)) for row in rows]
            added = np.stack(drawn) / np.asarray(self.preprocessing.std)
            inputs += added[:, :, None, None].astype(np.float32)
        if shifted and config.padding == "mean":
            moved = augment.translate(inputs.transpose(0, 2, 3, 1), shifts)
            inputs = np.ascontiguousarray(moved.transpose(0, 3, 1, 2))
        tensor = torch.from_numpy(inputs)
        return tensor.to(memory_format=torch.channels_last) if config.channels_last else tensor

    def _generator(self, row: int, use: int) -> np.random.Generator:
        # numpy pads seeds with zeros: without `use`, row 0 would repeat the epoch's own draws
        return np.random.default_rng((self.config.seed, self.number, int(row), use))


def _draw(config: TrainConfig, preprocessing: Preprocessing, epoch: int, images: int) -> _Epoch:
    if config.lighting and preprocessing.channels != 3:
        raise RecipeError(
            f"train.lighting with {preprocessing.channels} channel", expected="RGB images"
        )
    generator = np.random.default_rng((config.seed, epoch))
    order = generator.permutation(images)
    flips = generator.random(images) < 0.5
    shifts = generator.integers(-config.shift, config.shift + 1, (images, 2))
    return _Epoch(config, preprocessing, epoch, order, flips, shifts)


@dataclass(frozen=True)
class _Decoding(Dataset[Any]):
    """Whole batches by their rows, made where the loader wants them, mostly in a worker."""

    files: ImageFiles
    drawn: _Epoch

    def __getitem__(self, rows: NDArray[np.int64]) -> Batch | DataError:
        try:
            read = [
                self.files.read(row, self.drawn.preprocessing, self.drawn.geometry(row))
                for row in rows
            ]
        except DataError as error:  # torch would wrap it in the worker's traceback
            return error
        inputs = self.drawn.inputs(np.stack(read), rows)
        return inputs, torch.from_numpy(self.files.labels[rows])


def _unchanged(batch: Any) -> Any:
    return batch
