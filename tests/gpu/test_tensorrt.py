"""Engines on a real GPU: compiled here for it, run by the runner. Elsewhere skipped, with why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densenet_deploy import _cuda, _tensorrt
from densenet_deploy.bundle import EngineRecord, open_bundle, write_manifest
from densenet_deploy.engine.build import build_widest
from densenet_deploy.engine.inspector import read_engine
from densenet_deploy.engine_config import BuildConfig, EngineBackend, RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime.runner import Array
from densenet_deploy.runtime.tensorrt import EngineRunner, open_plan
from tests.gpu.conftest import why_no_engine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]  # engines are compiled here
ONE, BUCKETS = ((1, 8, 64),), ((1, 1, 1), (2, 4, 8), (9, 16, 32))
# Largest logit difference from PyTorch fp32, whose logits reach 13 on the golden images.
DISTANCE = {"fp32": 1e-3, "fp16": 0.1, "int8": 1.5}
Open = Callable[..., EngineRunner]


@pytest.fixture(scope="module", params=["tensorrt-rtx", "tensorrt"])
def backend(request: pytest.FixtureRequest) -> EngineBackend:
    if reason := why_no_engine(request.param):
        pytest.skip(f"{request.param} cannot run here: {reason}")
    return request.param


@pytest.fixture(scope="module")
def opened(backend: EngineBackend, fashion_bundle: Path) -> Open:
    """Opens an engine compiled for this GPU; each is compiled once."""
    bundle, made = open_bundle(fashion_bundle), {}

    def open_engine(
        profiles: Any = ONE, precision: Precision = "fp32", weights: Any = "embedded", **config: Any
    ) -> EngineRunner:
        key = profiles, precision, weights
        if key not in made:
            how = BuildConfig(
                backend, profiles, targets(backend), (), weights=weights, timing_cache=False
            )
            made[key] = build_widest(bundle.model(precision, backend), how)
        built = made[key]
        record = EngineRecord(
            file="",
            backend=backend,
            precision=precision,
            version=built.version,
            profiles=profiles,
            compute_capabilities=built.compute_capabilities,
            weights=weights,
        )
        options = RunConfig(**config)
        runner = open_plan(bundle, backend, precision, built.plan, record, options)
        assert isinstance(runner, EngineRunner)
        return runner

    return open_engine


def targets(backend: EngineBackend) -> tuple[str, ...]:
    """This GPU, for TensorRT-RTX; TensorRT is told none, since it compiles for what it finds."""
    if backend == "tensorrt":
        return BuildConfig().compute_capabilities
    return (_cuda.compute_capability(0),)


@pytest.fixture(scope="module")
def golden(fashion_bundle: Path) -> tuple[Array, Array]:
    return open_bundle(fashion_bundle).golden()


@pytest.fixture(scope="module")
def images(golden: tuple[Array, Array]) -> Array:
    """70 different images: the golden ones, with some noise from the second copy on."""
    noise = np.random.default_rng(0).normal(0, 0.1, (70, *golden[0].shape[1:]))
    noise[: len(golden[0])] = 0
    return (np.resize(golden[0], noise.shape) + noise).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_golden_logits(opened: Open, golden: tuple[Array, Array], precision: Precision) -> None:
    inputs, expected = golden
    with opened(precision=precision) as runner:
        found = runner.logits(inputs)
    assert np.abs(found - expected).max() <= DISTANCE[precision]
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("profiles", [ONE, BUCKETS])
def test_every_batch_size(opened: Open, images: Array, profiles: Any, cuda_graph: bool) -> None:
    """Against rows that went alone; one and the same engine may use other kernels for a batch."""
    with opened(profiles, cuda_graph=cuda_graph) as runner:
        alone = np.concatenate([runner.logits(images[row : row + 1]) for row in range(70)])
        for size in (70, 65, 64, 33, 32, 9, 8, 7, 2, 1, 8, 32):
            np.testing.assert_allclose(runner.logits(images[:size]), alone[:size], atol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_graphs_answer_as_plain_runs(opened: Open, images: Array, precision: Precision) -> None:
    """With other shapes in between, so that every graph is also replayed after them."""
    sizes = (1, 8, 3, 1, 17, 8, 3)
    with opened(BUCKETS, precision, cuda_graph=False) as runner:
        plain = [runner.logits(images[size : 2 * size]) for size in sizes]
    with opened(BUCKETS, precision, cuda_graph=True) as runner:
        assert runner.cuda_graph
        for size, expected in zip(sizes, plain, strict=True):
            found = runner.logits(images[size : 2 * size])
            np.testing.assert_allclose(found, expected, atol=DISTANCE[precision] / 10)


@pytest.mark.parametrize("contexts", [1, 3])
def test_threads_at_once(opened: Open, images: Array, contexts: int) -> None:
    starts = [7 * turn % 60 for turn in range(100)]
    with opened(BUCKETS, contexts=contexts) as runner, ThreadPoolExecutor(8) as threads:
        expected = np.concatenate([runner.logits(images[row : row + 1]) for row in range(70)])
        asked = threads.map(lambda row: runner.logits(images[row : row + row % 9 + 1]), starts)
        for row, found in zip(starts, asked, strict=True):
            np.testing.assert_allclose(found, expected[row : row + row % 9 + 1], atol=2e-3)


@pytest.fixture
def torch() -> Iterator[Any]:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip(f"torch {module.__version__} sees no GPU")
    return module


@pytest.mark.parametrize("dlpack", [False, True])
@pytest.mark.parametrize("own_stream", [False, True])
def test_tensors_of_torch_without_a_copy(
    opened: Open, images: Array, torch: Any, own_stream: bool, dlpack: bool
) -> None:
    """Nothing here synchronizes until the answer is read: order is the streams' alone."""

    class OnlyDlpack:
        def __init__(self, tensor: Any) -> None:
            self._tensor = tensor

        def __dlpack__(self, **wishes: Any) -> Any:
            return self._tensor.__dlpack__(**wishes)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self._tensor.__dlpack_device__()

    offer = OnlyDlpack if dlpack else lambda tensor: tensor
    with opened(BUCKETS) as runner:
        expected = runner.logits(images[:40])
        stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            given = torch.from_numpy(images[:40]).cuda(non_blocking=True) * 4
            given /= 4
            taken = torch.full((40, *expected.shape[1:]), torch.nan, device="cuda")
            for _ in range(3):
                runner.run_device(
                    {"images": offer(given)}, {"logits": offer(taken)}, stream.cuda_stream
                )
                found = (taken + 1).cpu().numpy() - 1
                np.testing.assert_allclose(found, expected, atol=2e-3)


def test_tensors_that_do_not_fit(opened: Open, torch: Any) -> None:
    image, logits = torch.zeros((4, 1, 28, 28), device="cuda"), torch.zeros((4, 10), device="cuda")
    with opened() as runner:
        for wrong, message in (
            (image.half(), "float32"),
            (image[:, :, ::2], r"shape \(4, 1, 14, 28\)|C-contiguous"),
            (image.cpu(), "host memory"),
            (image.clone().requires_grad_(), "grad"),
        ):
            with pytest.raises(BackendError, match=message):
                runner.run_device({"images": wrong}, {"logits": logits})
        runner.run_device({"images": image}, {"logits": logits})


def test_kernels_are_kept_for_the_next_process(opened: Open, backend: str, images: Array) -> None:
    if backend == "tensorrt":
        pytest.skip("TensorRT compiles no kernels on the device")
    profiles = ((1, 3, 5),)  # an engine of this test's own
    answers = []
    for hit in (False, True):
        with opened(profiles, dynamic_shapes="eager") as runner:
            assert runner.runtime_cache_hit is hit
            answers.append(runner.logits(images[:5]))
    np.testing.assert_allclose(*answers, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stripped_engine_gets_its_weights_back(
    opened: Open, golden: tuple[Array, Array], precision: Precision
) -> None:
    inputs, expected = golden
    with opened(precision=precision, weights="stripped") as runner:
        assert np.abs(runner.logits(inputs) - expected).max() <= DISTANCE[precision]


def test_a_stripped_engine_refuses_other_weights(
    opened: Open, backend: EngineBackend, damaged: Path
) -> None:
    """Right names and shapes, wrong values: the golden output tells."""
    onnx = pytest.importorskip("onnx")
    bundle = open_bundle(damaged)
    path = bundle.model("fp32", backend)
    graph = onnx.load(path)
    for weight in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.ndim == 4:
            weight.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weight.name))
    opened(weights="stripped").close()  # with its own weights it opens
    path.write_bytes(graph.SerializeToString())
    other = write_manifest(damaged, bundle.manifest)
    how = BuildConfig(backend, ONE, targets(backend), (), weights="stripped", timing_cache=False)
    built = build_widest(open_bundle(damaged).model("fp32", backend), how)
    record = EngineRecord(
        "", backend, "fp32", built.version, ONE, built.compute_capabilities, weights="stripped"
    )
    with pytest.raises(BackendError, match="its answers to the golden input are not the bundle's"):
        open_plan(other, backend, "fp32", built.plan, record, RunConfig())


def test_a_damaged_plan_is_an_error_and_no_crash(
    backend: EngineBackend, fashion_bundle: Path, opened: Open, images: Array
) -> None:
    bundle = open_bundle(fashion_bundle)
    version = _tensorrt.version(_tensorrt.load(backend))
    record = EngineRecord("", backend, "fp32", version, ONE, (_cuda.compute_capability(0),))
    with pytest.raises(BackendError, match=f"{backend} cannot load the engine"):
        open_plan(bundle, backend, "fp32", b"garbage" * 100, record, RunConfig())
    with opened() as runner:  # and the device still works
        assert np.isfinite(runner.logits(images[:3])).all()


def test_kernel_times_are_measured_once(
    backend: EngineBackend, fashion_bundle: Path, tmp_path: Path
) -> None:
    """The second build, of another engine, finds those of the first; the third is no build."""
    if backend == "tensorrt-rtx":
        pytest.skip("TensorRT-RTX measures no kernels")
    model = open_bundle(fashion_bundle).model("fp16", backend)
    how = BuildConfig(backend, ONE, targets(backend), ())
    other = replace(how, profiling_verbosity="none")
    built = [build_widest(model, config, cache=tmp_path) for config in (how, other, how)]
    assert [one.cached for one in built] == [False, False, True]
    assert built[0].timing_cache == "missed" and built[1].timing_cache in ("hit", "extended")
    assert built[2].plan == built[0].plan


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_inspector_names_the_layers(
    opened: Open, backend: EngineBackend, fashion_bundle: Path, precision: Precision
) -> None:
    """On a device, by TensorRT's own inspector, for each profile."""
    how = BuildConfig(backend, BUCKETS, targets(backend), (), timing_cache=False)
    plan = build_widest(open_bundle(fashion_bundle).model(precision, backend), how).plan
    for profile in range(len(BUCKETS)):
        layers = read_engine(plan, backend, profile=profile)
        convolutions = layers.of("convolution").layers
        assert convolutions and layers.bytes_in and layers.bytes_out
        assert any("denseblock1.denselayer1" in name for name in layers.parts())
        assert any(layer.reads_int8 for layer in convolutions) == (precision == "int8")


def test_an_engine_for_later_versions_and_gpus_runs_here(
    backend: EngineBackend, fashion_bundle: Path, golden: tuple[Array, Array]
) -> None:
    """Version compatible: it brings a small runtime of its own. Portable from Ampere on."""
    if backend == "tensorrt-rtx":
        pytest.skip("TensorRT-RTX has neither")
    if float(_cuda.compute_capability(0)) < 8:
        pytest.skip("portable engines run from Ampere on")
    bundle = open_bundle(fashion_bundle)
    options: dict[str, Any] = {"hardware_compatibility": "ampere-plus", "version_compatible": True}
    how = BuildConfig(backend, ONE, targets(backend), (), timing_cache=False, **options)
    built = build_widest(bundle.model("fp32", backend), how)
    record = EngineRecord(
        "", backend, "fp32", built.version, ONE, built.compute_capabilities, **options
    )
    with open_plan(bundle, backend, "fp32", built.plan, record, RunConfig()) as runner:
        assert np.abs(runner.logits(golden[0]) - golden[1]).max() <= DISTANCE["fp32"]


def test_closing_gives_the_memory_back(opened: Open, images: Array) -> None:
    """All of it, to 2 MiB, the step of CUDA's own count; the first one also loads kernels."""
    runtime = pytest.importorskip("cuda.bindings.runtime")

    def free() -> int:
        with opened(BUCKETS, contexts=2) as runner:
            for size in (1, 8, 32, 70):
                runner.logits(images[:size])
        status, left, _ = runtime.cudaMemGetInfo()
        assert status == runtime.cudaError_t.cudaSuccess
        return int(left)

    free()
    left = [free() for _ in range(20)]
    assert left[0] - left[-1] <= 2 * 2**20, left
