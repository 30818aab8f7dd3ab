"""What several test files share: the images, and hypothesis without its deadline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from densenet_deploy import data, preprocess
from densenet_deploy.data import ImageSet
from densenet_deploy.recipe import DataConfig

# A machine that also trains or builds engines makes any single example slow at times.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

FASHION_MNIST_PLACES = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path.home() / ".cache" / "densenet-deploy" / "FashionMNIST" / "raw",
)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: for small networks more only wait for each other on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def counts() -> dict[str, Any]:
    """Parameter and MAC counts computed outside this project, see its `source`."""
    path = Path(__file__).parent / "reference" / "densenet_counts.json"
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def sample() -> tuple[ImageSet, ImageSet]:
    """Training and test images of the sample in the package."""
    return (
        data.load(DataConfig(), "train", preprocess.FASHION_MNIST),
        data.load(DataConfig(), "test", preprocess.FASHION_MNIST),
    )


@pytest.fixture(scope="session")
def full_fashion_mnist() -> Path:
    """Folder of the whole data set; skips where it is not installed."""
    for place in FASHION_MNIST_PLACES:
        if any(place.glob("train-images-idx3-ubyte*")):
            return place
    pytest.skip(f"the full Fashion-MNIST is in none of {', '.join(map(str, FASHION_MNIST_PLACES))}")
