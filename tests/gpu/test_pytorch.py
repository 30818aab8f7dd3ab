"""The forms of PyTorch on a device: skipped elsewhere, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.bundle import Bundle, open_bundle
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime import open_runner, runs, why_unavailable
from densenet_deploy.runtime.runner import Array, Runner
from densenet_deploy.runtime.torch_forms import FORMS

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]  # some forms compile each batch size


def needs(backend: str) -> pytest.MarkDecorator:
    """Skips where a backend cannot run."""
    reason = why_unavailable(backend)
    return pytest.mark.skipif(bool(reason), reason=f"{backend} cannot run here: {reason}")


CASES = [
    pytest.param((name, precision), marks=needs(name), id=f"{name}-{precision}")
    for name, form in FORMS.items()
    for precision in form.precisions
    if form.device == "cuda"
]
# From the golden logits, which are PyTorch's on a CPU in fp32. TF32 would miss that of fp32.
DISTANCE = {"fp32": (0.0, 1e-3), "fp16": (5e-4, 0.1)}


@pytest.fixture(scope="module", params=CASES)
def runner(request: pytest.FixtureRequest, fashion_bundle: Path) -> Iterator[Runner]:
    backend, precision = request.param
    with open_runner(open_bundle(fashion_bundle), backend, precision) as opened:
        yield opened


@pytest.fixture
def images(bundle: Bundle) -> Array:
    return bundle.manifest.preprocessing.normalise(bundle.sample_pixels())


def test_golden_logits(runner: Runner, bundle: Bundle) -> None:
    inputs, expected = bundle.golden()
    found = runner.logits(inputs)
    low, high = DISTANCE[runner.precision]
    assert low <= np.abs(found - expected).max() <= high
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_batch_sizes_change_and_results_are_kept(runner: Runner, images: Array) -> None:
    """A compiled form replays a CUDA graph of each size into the same memory."""
    tolerance = 1e-3 if runner.precision == "fp32" else 0.05
    together = runner.logits(images)
    kept = together.copy()
    for _ in range(4):
        for size in (1, 3, 16):
            answer = runner.logits(images[:size])
            np.testing.assert_allclose(answer, kept[:size], atol=tolerance)
            runner.logits(-images[:size])
            np.testing.assert_allclose(answer, kept[:size], atol=tolerance)
    np.testing.assert_array_equal(together, kept)


def test_several_threads_at_once(runner: Runner, images: Array) -> None:
    """CUDA graphs of torch.compile belong to one thread."""
    expected = runner.logits(images[:3])

    def ask(_: int) -> float:
        return float(np.abs(runner.logits(images[:3]) - expected).max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(ask, range(24))) < (1e-3 if runner.precision == "fp32" else 0.05)


def test_the_model_is_on_the_device(runner: Runner) -> None:
    import torch

    assert torch.cuda.memory_allocated() > 100_000  # of the smallest net's weights
    assert not torch.backends.cudnn.allow_tf32


@needs("pytorch-cuda")
def test_a_device_that_is_not_there(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="device 63; expected less than"):
        open_runner(bundle, "pytorch-cuda", "fp32", config=RunConfig(device=63))
    assert not runs("pytorch-cuda", "int8")
