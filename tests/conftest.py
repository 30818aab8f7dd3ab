"""What several test files share: the images, and hypothesis without its deadline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from densenet_deploy import data, preprocess
from densenet_deploy.bundle import Bundle, open_bundle
from densenet_deploy.data import ImageSet
from densenet_deploy.recipe import (
    BenchConfig,
    DataConfig,
    Recipe,
    Tolerance,
    VerifyConfig,
    load_recipe,
)

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


@pytest.fixture(scope="session")
def fashion_recipe() -> Recipe:
    """The shipped recipe with short benchmarks, few test images and a contract of the tests' own.

    How accurate the shipped weights are is not the business of these tests.
    """
    recipe = load_recipe("fashion-mnist")
    tolerances = {"fp32": Tolerance(0, 100, 1e-3, 0.999999), "fp16": Tolerance(1, 99, 0.25, 0.999)}
    return replace(
        recipe,
        data=replace(recipe.data, test_images=100),
        verify=VerifyConfig(tolerances | {"int8": Tolerance(5, 90, 0, 0.95)}),
        bench=BenchConfig(batch_sizes=(1, 3), seconds=0.05, threads=1),
    )


@pytest.fixture(scope="session")
def fashion_bundle(fashion_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint exported in every precision, once; copy it to damage it."""
    from densenet_deploy.pipeline import export_bundle

    out = tmp_path_factory.mktemp("session") / "fashion"
    export_bundle(fashion_recipe, out)
    return out


@pytest.fixture
def bundle(fashion_bundle: Path) -> Bundle:
    """`fashion_bundle`, opened."""
    return open_bundle(fashion_bundle)


@pytest.fixture
def damaged(fashion_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `fashion_bundle` that a test may harm."""
    return Path(shutil.copytree(fashion_bundle, tmp_path / "damaged"))
