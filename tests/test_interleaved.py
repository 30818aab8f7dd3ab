"""What a sample is, what is kept of several launches, and two real backends."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy import interleaved
from densenet_deploy.bench import rotate
from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.interleaved import Entrant, _samples, interleave, sample
from densenet_deploy.runtime.runner import Array

IMAGES = np.zeros((4, 1, 28, 28), np.float32)


def test_a_sample_is_the_median_of_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 0.1, 0.4, 0.2])  # the first is not timed
    clock = types.SimpleNamespace(now=0.0)
    requests: list[Array] = []

    def infer(images: Array) -> Array:
        clock.now += next(seconds)
        requests.append(images)
        return images

    monkeypatch.setattr(interleaved, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    numbered = IMAGES + np.arange(4, dtype=np.float32)[:, None, None, None]
    assert sample(infer, rotate(numbered, 1), 3) == pytest.approx(0.2)
    assert [int(images[0, 0, 0, 0]) for images in requests] == [0, 1, 2, 3]


def test_what_is_kept_of_several_launches() -> None:
    found = _samples([(0.5, True, 5, IMAGES), (0.1, False, 3, 0), (0.2, True, 4, 0)], (1.0, 2.0))
    assert (found.load_seconds, found.steady, found.requests) == (0.2, False, 3)
    assert found.seconds == (1.0, 2.0) and found.logits is IMAGES
    assert _samples([(0.5, True, 5, IMAGES)], (1.0,)).steady


def test_two_backends_for_real(bundle: Bundle) -> None:
    images = bundle.manifest.preprocessing.normalise(bundle.sample_pixels())[:5]
    entrants = [
        Entrant("int8 on onnxruntime", bundle.model("int8"), "onnxruntime"),
        Entrant("fp32 on openvino", bundle.model("fp32"), "openvino"),
    ]
    found = interleave(entrants, images, 2, 1, 2, 1)
    assert len(found) == 2
    for side in found:
        assert side.load_seconds > 0
        assert len(side.seconds) == 2 and min(side.seconds) > 1e-5
        assert side.requests >= 3
        assert side.logits.shape == (5, 10)
    np.testing.assert_allclose(found[0].logits, found[1].logits, atol=1.5)
    assert np.abs(found[0].logits - found[1].logits).max() > 0.01


def test_a_graph_that_is_refused_names_its_backend(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    entrant = Entrant("broken", tmp_path / "graph.onnx", "onnxruntime")
    with pytest.raises(BackendError, match=r"^onnxruntime refuses graph\.onnx: "):
        interleave([entrant], IMAGES, 1, 1, 1, 1)
