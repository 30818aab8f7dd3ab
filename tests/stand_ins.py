"""Small data sets in the files of the large ones, read by torchvision as those are.

Their images are Fashion-MNIST's sample, in colour and enlarged. torchvision checks the sums of the
files it reads; `patch` is told these.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import io
from torchvision import datasets

from densenet_deploy import data, preprocess
from densenet_deploy.recipe import DataConfig


def photographs(split: Any, count: int, size: int = 32) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Pixels (N, size, size, 3) and labels of the sample's first images."""
    sample = data.load(DataConfig(), split, preprocess.FASHION_MNIST).take(count)
    images = [
        np.asarray(Image.fromarray(image[..., 0]).resize((size, size)).convert("RGB"))
        for image in sample.pixels
    ]
    tint = np.array([1.0, 0.8, 0.6])
    return (np.stack(images) * tint).astype(np.uint8), sample.labels


def cifar(root: Path, name: str, patch: pytest.MonkeyPatch, images: int = 160) -> Path:
    """CIFAR-10 or CIFAR-100 of `images` training and 50 test images."""
    kind = getattr(datasets, name)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key, parts = ("labels", 5) if name == "CIFAR10" else ("fine_labels", 1)
    pixels, labels = photographs("train", images)
    files = {}
    for index, rows in enumerate(np.array_split(np.arange(images), parts)):
        files[kind.train_list[index][0]] = pixels[rows], labels[rows]
    files[kind.test_list[0][0]] = photographs("test", 50)
    for file, (some, of_some) in files.items():
        flat = some.transpose(0, 3, 1, 2).reshape(len(some), -1)
        (folder / file).write_bytes(pickle.dumps({"data": flat, key: of_some.tolist()}))
    classes = [str(label) for label in range(10 if name == "CIFAR10" else 100)]
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: classes}))
    for listed in ("train_list", "test_list"):
        sums = [[file, md5(folder / file)] for file, _ in getattr(kind, listed)]
        patch.setattr(kind, listed, sums)
    patch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})
    return root


def svhn(root: Path, patch: pytest.MonkeyPatch, extra: int = 100) -> Path:
    """SVHN of 60 training, `extra` more and 50 test images; the digit 0 is labelled 10."""
    root.mkdir(parents=True)
    pixels, labels = photographs("train", 60 + extra)
    files = {
        "train": (pixels[:60], labels[:60]),
        "extra": (pixels[60:], labels[60:]),
        "test": photographs("test", 50),
    }
    sums = {}
    for split, (some, of_some) in files.items():
        path = root / f"{split}_32x32.mat"
        digits = np.where(of_some == 0, 10, of_some).astype(np.uint8)[:, None]
        io.savemat(path, {"X": some.transpose(1, 2, 3, 0), "y": digits})
        url, file, _ = datasets.SVHN.split_list[split]
        sums[split] = [url, file, md5(path)]
    patch.setattr(datasets.SVHN, "split_list", sums)
    return root


def imagenet(root: Path, images: int = 24) -> Path:
    """A folder of JPEG files in three classes, ROOT/train/CLASS/* and ROOT/val/CLASS/*."""
    for split, place in (("train", "train"), ("test", "val")):
        pixels, _ = photographs(split, images, size=96)
        for index, image in enumerate(pixels):
            path = root / place / f"n{index % 3:08}" / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[: 60 + index]).save(path)
    return root


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
