"""A folder of image files with a sub-folder for each class, read only as far as it is needed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.errors import DataError
from densenet_deploy.preprocess import Geometry, Preprocessing


@dataclass(frozen=True)
class ImageFiles:
    """Labelled image files.

    Attributes:
        root: The folder they are in.
        names: Their paths below it, as the system encodes them. One array: a million Python
            strings are many times larger, and every worker process would come to own a copy.
        labels: int64 (N,), indices into `classes`.
        classes: Names of the sub-folders.
        source: What the images are, for records.
    """

    root: Path
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.names)

    def pick(self, rows: NDArray[np.int64]) -> ImageFiles:
        """The files of some rows."""
        source = f"{len(rows)} of {self.source}"
        return replace(self, names=self.names[rows], labels=self.labels[rows], source=source)

    def split(self, count: int, seed: int) -> tuple[ImageFiles, ImageFiles]:
        """(the rest, `count` files held out), drawn without replacement.

        Raises:
            DataError: Nothing would be left.
        """
        rest, held_out = hold_out(len(self), count, seed, self.source)
        return self.pick(rest), self.pick(held_out)

    def read(
        self, row: int, preprocessing: Preprocessing, geometry: Geometry | None = None
    ) -> NDArray[np.uint8]:
        """8-bit pixels (height, width, channels) of one file, see `Preprocessing.read`."""
        return preprocessing.read(self.root / os.fsdecode(bytes(self.names[row])), geometry)


def list_files(directory: str, split: Literal["train", "test"]) -> ImageFiles:
    """DIRECTORY/train/CLASS/* and DIRECTORY/test/CLASS/* (or val/); train/ names the classes.

    Files are in the order of their classes and names; hidden ones are none.

    Raises:
        DataError: There are no such folders, or no files, or classes that train/ lacks.
    """
    names = ("train",) if split == "train" else ("test", "val")
    root = next((Path(directory) / n for n in names if (Path(directory) / n).is_dir()), None)
    if not directory or root is None:
        raise DataError(
            f"no folder {' or '.join(names)} in {directory or 'data.directory'}",
            expected="DIRECTORY/train/CLASS/image files and DIRECTORY/test/CLASS/image files",
        )
    train = root.parent / "train"
    classes = _class_folders(train if train.is_dir() else root)
    if unknown := sorted(set(_class_folders(root)) - set(classes)):
        raise DataError(f"{root} has classes that train/ lacks: {', '.join(unknown)}")
    files = [
        (os.fsencode(f"{name}/{file}"), index)
        for index, name in enumerate(classes)
        if (root / name).is_dir()
        for file in _visible_files(root / name)
    ]
    if not files:
        raise DataError(f"{root} holds no images", expected="one sub-folder of images per class")
    paths, labels = zip(*files, strict=True)
    source = f"{root.name} images of {root.parent.name}"
    return ImageFiles(root, np.array(paths), np.array(labels, np.int64), classes, source)


def hold_out(
    images: int, count: int, seed: int, source: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows of the rest, `count` rows held out), both ascending, drawn without replacement.

    Raises:
        DataError: Nothing would be left.
    """
    if count >= images:
        raise DataError(f"{source} has {images} images", expected=f"more than {count}")
    held_out = np.sort(np.random.default_rng(seed).permutation(images)[:count])
    return np.setdiff1d(np.arange(images), held_out), held_out


def _class_folders(root: Path) -> tuple[str, ...]:
    return tuple(
        sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    )


def _visible_files(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
