"""What several test files share: the images, and hypothesis without its deadline."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import densenet_deploy
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
from tests.bindings.install import Unavailable
from tests.bindings.surface import VERSIONS, Surface, load_surface

# A machine that also trains or builds engines makes any single example slow at times.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

FASHION_MNIST_PLACES = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path.home() / ".cache" / "densenet-deploy" / "FashionMNIST" / "raw",
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The build cache of this session, also for the commands it starts; never the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: for small networks more only wait for each other on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=VERSIONS)
def surface(request: pytest.FixtureRequest) -> Surface:
    """The surface of real TensorRT bindings, one version after the other."""
    try:
        return load_surface(request.param)
    except Unavailable as error:
        pytest.skip(f"no TensorRT {request.param} bindings: {error}")


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


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose every stage takes a second or less: seeded weights, synthetic images."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


TINY = """
name = "tiny"
description = "A tiny net for tests"
precisions = ["fp32", "int8"]

[model]
variant = "densenet-bc-10-4"
input_shape = [1, 12, 12]
weights = ""

[data]
name = "synthetic"

[export]
batch = [1, 2, 4]

[quantize]
images = 16

[build]
profiles = [[1, 2, 4]]
compute_capabilities = ["8.6"]
optional_compute_capabilities = []

[verify.tolerances.fp32]
agreement = 90.0
max_abs = 1e-3

[verify.tolerances.fp16]
agreement = 50.0

[verify.tolerances.int8]
agreement = 0.0
cosine = 0.5

[bench]
batch_sizes = [2]
seconds = 0.02
threads = 1
"""


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end in a process of its own."""

    code: int
    out: str
    err: str
    directory: Path


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`densenet-deploy run tiny.toml --json`, the whole chain, once."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    command = [sys.executable, "-m", "densenet_deploy.cli.app", "run", str(tiny_recipe)]
    done = subprocess.run(
        [*command, "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        cwd=Path(densenet_deploy.__file__).parents[1],
        timeout=280,
    )
    return Finished(done.returncode, done.stdout, done.stderr, out)
