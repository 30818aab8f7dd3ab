"""What only an NVIDIA GPU can show. Elsewhere each test is skipped with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.bench import bench
from densenet_deploy.bundle import Bundle, open_bundle
from densenet_deploy.data import ImageSet
from densenet_deploy.recipe import BenchConfig, Precision, Recipe
from densenet_deploy.runtime import open_runner, why_unavailable
from densenet_deploy.verify import verify

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    if reason := why_unavailable("onnxruntime-cuda"):
        pytest.skip(f"onnxruntime-cuda cannot run here: {reason}")


def test_every_precision_meets_its_contract_on_the_gpu(
    fashion_bundle: Path, fashion_recipe: Recipe, sample: tuple[ImageSet, ImageSet]
) -> None:
    """Against PyTorch fp32, on all test images of the package."""
    opened = open_bundle(fashion_bundle)
    records = verify(opened, sample[1], fashion_recipe.verify, ["onnxruntime-cuda"])
    assert [record.precision for record in records] == ["fp32", "fp16", "int8"]
    for record in records:
        assert record.reference == "pytorch fp32"
        assert record, record.summary()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_no_node_runs_on_the_cpu(
    bundle: Bundle, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph alone, in a session whose profile names the provider of every kernel."""
    import json

    import onnxruntime as ort

    ort.preload_dlls()
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(
        bundle.model(precision), options, providers=["CUDAExecutionProvider"]
    )
    session.run(None, {"images": bundle.golden()[0]})
    events = json.loads(Path(session.end_profiling()).read_text())
    providers = {event["args"].get("provider") for event in events if event.get("cat") == "Node"}
    assert providers - {None} == {"CUDAExecutionProvider"}


def test_a_runner_on_the_gpu_keeps_its_results(bundle: Bundle) -> None:
    inputs, expected = bundle.golden()
    with open_runner(bundle, "onnxruntime-cuda", "fp32") as runner:
        first = runner.logits(inputs)
        kept = first.copy()
        runner.logits(-inputs)
        np.testing.assert_array_equal(first, kept)
    assert np.abs(first - expected).max() < 1e-3  # TF32, its default, would keep ten bits
    assert (first.argmax(1) == expected.argmax(1)).all()


def test_the_gpu_is_measured_in_its_own_process(bundle: Bundle) -> None:
    config = BenchConfig(batch_sizes=(1, 64), seconds=0.2)
    records = bench(bundle, ["onnxruntime-cuda"], ["fp16"], config)
    assert [(record.backend, record.batch) for record in records] == [
        ("onnxruntime-cuda", 1),
        ("onnxruntime-cuda", 64),
    ]
    small, large = records
    assert large.images_per_second > small.images_per_second
