"""ONNX Runtime's CUDA and TensorRT providers on a device: skipped elsewhere, with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from densenet_deploy.bundle import Bundle, open_bundle, write_manifest
from densenet_deploy.data import ImageSet
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision, Recipe
from densenet_deploy.runtime import open_runner, why_unavailable
from densenet_deploy.runtime.runner import Array, Runner
from densenet_deploy.verify import verify

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]  # engines are compiled here
PROVIDERS = {
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            bool(reason := why_unavailable(name)), reason=f"{name} cannot run here: {reason}"
        ),
    )
    for name in PROVIDERS
]
# Largest logit difference from PyTorch fp32: least and most. The least says that a graph of this
# precision ran; TF32, the default of both providers, would miss the most of fp32.
DISTANCE = {"fp32": (0.0, 1e-3), "fp16": (5e-4, 0.05), "int8": (0.01, 1.5)}
# Between batch sizes, whose kernels sum in another order: rounding may go the other way.
SPREAD = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.3}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module", params=BACKENDS, autouse=True)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Its name; engines go into a cache of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield request.param


@pytest.fixture(scope="module", params=[True, False], ids=["CUDA graph", "no CUDA graph"])
def config(request: pytest.FixtureRequest) -> RunConfig:
    return RunConfig(cuda_graph=request.param)


@pytest.fixture(scope="module", params=PRECISIONS)
def runner(
    request: pytest.FixtureRequest, backend: str, config: RunConfig, fashion_bundle: Path
) -> Iterator[Runner]:
    bundle = open_bundle(fashion_bundle)
    with open_runner(bundle, backend, request.param, config=config) as opened:
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


def test_batch_sizes_change_and_come_back(runner: Runner, images: Array) -> None:
    """Each with buffers and a CUDA graph of its own: three rounds capture and then replay."""
    together = runner.logits(images)
    assert np.ptp(together, axis=0).min() > 0.1
    for _ in range(3):
        for size in (1, 5, 16, 2):
            for start in (0, 16 - size):
                rows = slice(start, start + size)
                np.testing.assert_allclose(
                    runner.logits(images[rows]), together[rows], atol=SPREAD[runner.precision]
                )


def test_results_are_kept(runner: Runner, images: Array) -> None:
    first = runner.logits(images[:4])
    kept = first.copy()
    runner.logits(-images[:4])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(runner.logits(images[:4]), kept, atol=SPREAD[runner.precision])


def test_the_bounds_of_the_bundle(runner: Runner, images: Array) -> None:
    low, _, high = runner.manifest.batch
    for size in (low, high):
        batch = np.resize(images, (size, *images.shape[1:]))
        assert np.isfinite(runner.logits(batch)).all()


def test_several_threads_at_once(runner: Runner, images: Array) -> None:
    expected = runner.logits(images)

    def ask(start: int) -> float:
        rows = np.arange(start, start + 1 + start % 4) % len(images)
        return float(np.abs(runner.logits(images[rows]) - expected[rows]).max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(ask, range(64))) <= SPREAD[runner.precision]


def test_every_precision_meets_its_contract(
    backend: str, bundle: Bundle, fashion_recipe: Recipe, sample: tuple[ImageSet, ImageSet]
) -> None:
    records = verify(bundle, sample[1], fashion_recipe.verify, [backend])
    assert [record.precision for record in records] == list(PRECISIONS)
    for record in records:
        assert record.reference == "pytorch fp32"
        assert record, record.summary()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_node_runs_on_the_cpu(
    backend: str, bundle: Bundle, precision: Precision, tmp_path: Path
) -> None:
    """The graph alone, in a session whose profile names the provider of every kernel."""
    provider = PROVIDERS[backend]
    ort.preload_dlls()
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    if backend == "onnxruntime-tensorrt":  # as the runner does
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = str(bundle.model(precision, backend))
    session = ort.InferenceSession(path, options, providers=[provider])
    assert session.get_providers()[0] == provider
    session.run(None, {"images": bundle.golden()[0]})
    events = json.loads(Path(session.end_profiling()).read_text())
    providers = {event["args"].get("provider") for event in events if event.get("cat") == "Node"}
    assert providers - {None} == {provider}


def test_a_device_that_is_not_there(backend: str, bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=f"^{backend}"):
        open_runner(bundle, backend, "fp32", config=RunConfig(device=63))


def test_requests_at_once_are_refused(backend: str, bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="cannot run 2 requests at once"):
        open_runner(bundle, backend, "fp32", config=RunConfig(contexts=2))


def test_the_tensorrt_provider_keeps_engines_by_their_content(
    backend: str, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same file name, same nodes, other weights: it must not answer with the first engine."""
    if backend != "onnxruntime-tensorrt":
        pytest.skip("only the TensorRT provider has a cache")
    import onnx

    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / name)
    opened = open_bundle(damaged)
    inputs, _ = opened.golden()
    with open_runner(opened, backend, "fp32") as runner:
        before = runner.logits(inputs)
    engines = list(tmp_path.rglob("*.engine"))
    assert len(engines) == 1
    with open_runner(opened, backend, "fp32") as runner:
        np.testing.assert_allclose(runner.logits(inputs), before, atol=1e-3)
    assert list(tmp_path.rglob("*.engine")) == engines
    path = opened.model("fp32", backend)
    model = onnx.load(path)
    name = model.graph.node[-1].input[-1]  # the classifier's bias
    (bias,) = [item for item in model.graph.initializer if item.name == name]
    changed = onnx.numpy_helper.to_array(bias) + np.float32(1)
    bias.CopyFrom(onnx.numpy_helper.from_array(changed, name))
    onnx.save(model, path)
    with open_runner(write_manifest(damaged, opened.manifest), backend, "fp32") as runner:
        np.testing.assert_allclose(runner.logits(inputs), before + 1, atol=1e-3)
