"""One conformance test for every runner that can run here: the same verbs on every backend."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from densenet_deploy.bundle import MANIFEST, Bundle, open_bundle, write_manifest
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError, BundleError, CheckpointError
from densenet_deploy.recipe import PRECISIONS
from densenet_deploy.runtime import BACKENDS, GPU_BACKENDS, open_runner, runs, why_unavailable
from densenet_deploy.runtime.runner import Array, Runner

# Those of a GPU have tests/gpu.
HERE = [name for name in BACKENDS if name not in GPU_BACKENDS and not why_unavailable(name)]
CASES = [(backend, name) for backend in HERE for name in PRECISIONS if runs(backend, name)]
# Largest logit difference from PyTorch fp32, whose logits reach 13 here: least and most. The
# least says that a graph of this precision ran, and not another one.
DISTANCE = {"fp32": (0.0, 1e-4), "fp16": (5e-4, 0.05), "int8": (0.01, 1.5)}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def runner(request: pytest.FixtureRequest, fashion_bundle: Path) -> Iterator[Runner]:
    """Open during all tests of its case: what one test does to it, the next one meets."""
    backend, precision = request.param
    with open_runner(open_bundle(fashion_bundle), backend, precision, threads=1) as opened:
        yield opened


@pytest.fixture
def images(bundle: Bundle) -> Array:
    """The 16 sample images, normalised."""
    return bundle.manifest.preprocessing.normalise(bundle.sample_pixels())


def same(found: Array, expected: Array) -> None:
    """Equal but for summation order: PyTorch's kernels depend on how memory is aligned."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_golden_logits(runner: Runner, bundle: Bundle) -> None:
    inputs, expected = bundle.golden()
    found = runner.run({"images": inputs})
    assert list(found) == ["logits"]
    logits = found["logits"]
    assert (logits.shape, logits.dtype) == (expected.shape, np.float32)
    low, high = DISTANCE[runner.precision]
    assert low <= np.abs(logits - expected).max() <= high
    assert (logits.argmax(1) == expected.argmax(1)).all()


def test_the_batch_does_not_change_the_answers(runner: Runner, images: Array) -> None:
    together = runner.logits(images)
    assert together.shape == (16, 10)
    alone = np.concatenate([runner.logits(images[row : row + 1]) for row in range(16)])
    np.testing.assert_allclose(alone, together, atol=2e-2 if runner.precision == "fp16" else 1e-4)
    assert np.ptp(together, axis=0).min() > 0.1  # different images, different answers


@pytest.mark.parametrize("size", [1, 64])
def test_the_bounds_themselves_are_allowed(runner: Runner, images: Array, size: int) -> None:
    assert runner.logits(np.resize(images, (size, 1, 28, 28))).shape == (size, 10)


def test_results_are_not_overwritten_by_the_next_call(runner: Runner, images: Array) -> None:
    first = runner.logits(images[:4])
    before = first.copy()
    runner.logits(images[4:8])
    runner.logits(-images[:4])
    np.testing.assert_array_equal(first, before)
    first[:] = 0  # and what a caller does to them changes no later answer
    same(runner.logits(images[:4]), before)


def test_inputs_are_read_and_not_kept(runner: Runner, images: Array) -> None:
    mine = images[:4].copy()
    before = runner.logits(mine)
    np.testing.assert_array_equal(mine, images[:4])
    mine[:] = 7.0
    assert np.abs(runner.logits(mine) - before).max() > 0.1
    same(runner.logits(images[:4]), before)


def test_memory_layout_does_not_matter(runner: Runner, images: Array) -> None:
    expected = runner.logits(np.ascontiguousarray(images[::-2]))
    same(runner.logits(images[::-2]), expected)
    transposed = np.ascontiguousarray(images[::-2].transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
    assert not transposed.flags.c_contiguous
    same(runner.logits(transposed), expected)


def test_several_threads_may_call(runner: Runner, images: Array) -> None:
    expected = runner.logits(images)
    starts = [turn % 12 for turn in range(24)]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda row: runner.logits(images[row : row + 4]), starts)
        for row, logits in zip(starts, found, strict=True):
            atol = 2e-2 if runner.precision == "fp16" else 1e-4
            np.testing.assert_allclose(logits, expected[row : row + 4], atol=atol)


GOOD = np.zeros((2, 1, 28, 28), np.float32)


@pytest.mark.parametrize(
    "feeds, message",
    [
        ({"pixels": GOOD}, r"inputs 'pixels'; expected 'images'"),
        ({}, r"inputs none; expected 'images'"),
        ({"images": GOOD, "more": GOOD}, r"inputs 'images', 'more'; expected 'images'"),
        ({"images": GOOD.astype(np.float64)}, r"'images' is float64 \(2, 1, 28, 28\); expected fl"),
        ({"images": GOOD.astype(np.uint8)}, r"uint8 .* expected float32 \(N, 1, 28, 28\)"),
        ({"images": GOOD.astype(np.float16)}, r"float16 .* expected float32"),
        ({"images": GOOD[0]}, r"float32 \(1, 28, 28\); expected float32 \(N, 1, 28, 28\)"),
        ({"images": GOOD.reshape(2, 28, 28, 1)}, r"\(2, 28, 28, 1\); expected"),
        ({"images": GOOD[..., :27]}, r"\(2, 1, 28, 27\); expected"),
        ({"images": np.zeros((), np.float32)}, r"float32 \(\); expected"),
        ({"images": GOOD[:0]}, r"batch size 0; expected 1 to 64. Split the batch"),
        ({"images": np.resize(GOOD, (65, 1, 28, 28))}, r"batch size 65; expected 1 to 64"),
    ],
)
def test_wrong_input_is_refused_and_the_runner_still_works(
    runner: Runner, bundle: Bundle, feeds: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        runner.run(feeds)
    inputs, expected = bundle.golden()
    assert np.abs(runner.logits(inputs) - expected).max() <= DISTANCE[runner.precision][1]


@pytest.mark.parametrize("backend", HERE)
def test_closed_runner_refuses(backend: str, bundle: Bundle) -> None:
    inputs, _ = bundle.golden()
    with open_runner(bundle, backend, "fp32", 1) as opened:
        answers = opened.logits(inputs)
        kept = answers.copy()
    for _ in range(2):
        with pytest.raises(BackendError, match=f"this {backend} runner is closed"):
            opened.logits(inputs)
        opened.close()  # twice does no harm
    np.testing.assert_array_equal(answers, kept)  # results outlive their runner


@pytest.mark.parametrize("backend", HERE)
def test_an_error_inside_the_block_closes_too(backend: str, bundle: Bundle) -> None:
    with pytest.raises(ZeroDivisionError), open_runner(bundle, backend, "fp32", 1) as opened:
        raise ZeroDivisionError
    with pytest.raises(BackendError, match="is closed"):
        opened.logits(GOOD)


def test_pytorch_gives_the_threads_back(bundle: Bundle) -> None:
    import torch

    before = torch.get_num_threads()
    with open_runner(bundle, "pytorch", "fp32", threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_unknown_backend(bundle: Bundle) -> None:
    message = r"unknown backend 'cuda'; expected one of pytorch, onnxruntime, openvino, onnx"
    with pytest.raises(BackendError, match=message):
        open_runner(bundle, "cuda", "fp32")
    with pytest.raises(BackendError, match=message):
        why_unavailable("cuda")


def test_the_reference_has_one_precision(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="pytorch runs fp32 only, not int8"):
        open_runner(bundle, "pytorch", "int8")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_missing_precision(backend: str, damaged: Path) -> None:
    table = json.loads((damaged / MANIFEST).read_text())
    for files in (table["models"], *table["lowered"].values()):
        files.pop("int8", None)
    (damaged / MANIFEST).write_text(json.dumps(table))
    with pytest.raises(BundleError, match="has no int8 graph; expected fp32, fp16"):
        open_runner(open_bundle(damaged), backend, "int8")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if why_unavailable(name)])
def test_what_cannot_run_here_says_why_and_does_not_run(backend: str, bundle: Bundle) -> None:
    reason = why_unavailable(backend)
    assert len(reason) > 10 and not reason.endswith(".")
    for precision in filter(lambda name: runs(backend, name), bundle.precisions):
        with pytest.raises(BackendError) as caught:
            open_runner(bundle, backend, precision)
        assert f"{backend} cannot run here: {reason}" in str(caught.value)


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_gpu_provider_never_falls_back_to_the_cpu(
    backend: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the first check too: ONNX Runtime itself offers the CPU where one does not load."""
    if not why_unavailable(backend):
        pytest.skip("it works here; tests/gpu checks it")
    from densenet_deploy.runtime import onnxruntime as module

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # so that what is set is undone
    with pytest.raises(BackendError) as caught:
        module.open_model(bundle, backend, "fp32", 1, RunConfig())
    message = str(caught.value)
    assert message.startswith(backend)
    assert (
        "fell back to CPUExecutionProvider" in message
        or "assigned to the default CPU" in message
        or "Please install TensorRT libraries" in message
    )


def test_one_request_at_a_time_is_said(bundle: Bundle) -> None:
    from densenet_deploy.runtime import onnxruntime as module

    with pytest.raises(BackendError, match="onnxruntime-cuda cannot run 2 requests at once; expe"):
        module.open_model(bundle, "onnxruntime-cuda", "fp32", 1, RunConfig(contexts=2))


def rewritten(directory: Path, name: str, content: bytes) -> Bundle:
    """A bundle whose manifest vouches for other bytes."""
    manifest = open_bundle(directory).manifest
    (directory / name).write_bytes(content)
    return write_manifest(directory, manifest)


@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "text", "cut"])
@pytest.mark.parametrize("backend", HERE)
def test_damaged_model(backend: str, content: bytes | None, damaged: Path) -> None:
    name = "model.safetensors" if backend == "pytorch" else "onnxruntime/fp32.onnx"
    changed = (damaged / name).read_bytes()[:-100] if content is None else content
    opened = rewritten(damaged, name, changed)
    with pytest.raises((BackendError, CheckpointError)) as caught:
        open_runner(opened, backend, "fp32", 1)
    message = str(caught.value)
    assert Path(name).name in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("backend", [name for name in HERE if name != "pytorch"])
def test_graph_that_does_not_fit_its_manifest(backend: str, damaged: Path) -> None:
    """A graph for 3x32x32 images behind a manifest that promises 1x28x28."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[N, 3, 32, 32] images) =>'
        "(float[N, 3] logits) { logits = ReduceMean <keepdims = 0> (images, axes) }"
    )
    axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
    model.graph.initializer.append(axes)
    opened = rewritten(damaged, "onnxruntime/fp32.onnx", model.SerializeToString())
    with open_runner(opened, backend, "fp32", 1) as runner, pytest.raises(BackendError) as caught:
        runner.logits(GOOD)
    assert f"{backend} failed on fp32" in str(caught.value) and "\n" not in str(caught.value)


def test_a_bundle_with_a_narrow_batch_keeps_to_it(damaged: Path) -> None:
    manifest = dataclasses.replace(open_bundle(damaged).manifest, batch=(2, 2, 3))
    with open_runner(write_manifest(damaged, manifest), "onnxruntime", "fp32", 1) as runner:
        for size, allowed in ((1, False), (2, True), (3, True), (4, False)):
            feeds = {"images": np.zeros((size, 1, 28, 28), np.float32)}
            if allowed:
                assert len(runner.run(feeds)["logits"]) == size
            else:
                with pytest.raises(BackendError, match=f"batch size {size}; expected 2 to 3"):
                    runner.run(feeds)


@pytest.mark.parametrize("backend", HERE)
def test_the_conformance_test_has_met_every_backend(backend: str) -> None:
    expected = ["fp32"] if backend == "pytorch" else list(PRECISIONS)
    assert [precision for name, precision in CASES if name == backend] == expected


def test_what_every_machine_can_run_is_here() -> None:
    assert {"pytorch", "onnxruntime", "openvino"} <= set(HERE)
