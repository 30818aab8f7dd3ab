"""Turns: who is asked when, what a sample is, and two real backends."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densenet_deploy import interleaved
from densenet_deploy.bench import rotate
from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.interleaved import Entrant, interleave, sample
from densenet_deploy.runtime.runner import Array

IMAGES = np.zeros((4, 1, 28, 28), np.float32)


class Recorder:
    """Stands in for `Worker`: writes down who was asked for what."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def __call__(self, module: str, task: str) -> Any:
        log = self.log

        class Worker:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: Any) -> None:
                log.append((task, "end"))

            def ask(self, request: Any) -> Any:
                log.append((task, "open" if request else "sample"))
                return (0.5, True, 3, IMAGES) if request else float(len(log))

        return Worker()


def test_every_second_round_goes_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    monkeypatch.setattr(interleaved, "Worker", Recorder(log))
    entrants = [Entrant(name, Path(f"{name}.onnx"), "openvino") for name in "abc"]
    shown: list[Any] = []

    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        shown.append((description, total))
        yield from items

    found = interleave(entrants, IMAGES, 1, 1, 3, track, "title")
    assert [task for task, what in log if what == "open"] == ["a", "b", "c"]
    assert "".join(task for task, what in log if what == "sample") == "abccbaabc"
    assert sorted(task for task, what in log[-3:] if what == "end") == ["a", "b", "c"]
    assert shown == [("title: loading", 3), ("title", 3)]
    # each side's samples in the order of the rounds: 4 to 12 in the log
    assert [side.seconds for side in found] == [(4, 9, 10), (5, 8, 11), (6, 7, 12)]
    assert all((s.load_seconds, s.steady, s.requests) == (0.5, True, 3) for s in found)


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


def test_two_backends_for_real(bundle: Bundle) -> None:
    images = bundle.manifest.preprocessing.normalise(bundle.sample_pixels())[:5]
    entrants = [
        Entrant("int8 on onnxruntime", bundle.model("int8"), "onnxruntime"),
        Entrant("fp32 on openvino", bundle.model("fp32"), "openvino"),
    ]
    found = interleave(entrants, images, 2, 1, 2)
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
        interleave([entrant], IMAGES, 1, 1, 1)
