"""Parity against computations that are not ours: torch.topk, scipy, counting by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import distance

from densenet_deploy.bundle import Bundle, open_bundle, write_manifest
from densenet_deploy.data import ImageSet
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Recipe, Tolerance, VerifyConfig
from densenet_deploy.results import Parity
from densenet_deploy.runtime import open_runner
from densenet_deploy.runtime.runner import Array
from densenet_deploy.verify import accuracy, compare, predict, verify

LAX = Tolerance(top1_drop=100, agreement=0, max_abs=0, cosine=-1)


def logits(count: int = 200, classes: int = 10, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, classes)).astype(np.float32)


def images(labels: Any) -> ImageSet:
    """An image set of which only the labels matter."""
    targets = np.asarray(labels, np.int64)
    return ImageSet(np.zeros((len(targets), 1, 1, 1), np.uint8), targets, (), "made here")


def parity(
    reference: Array, candidate: Array, labels: Any = None, tolerance: Tolerance = LAX
) -> Parity:
    """By default the reference is right about every image."""
    targets = reference.argmax(1) if labels is None else labels
    return compare(
        reference, candidate, images(targets), tolerance, "int8", "openvino", "pytorch fp32"
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 20), st.integers(1, 25))
def test_accuracy_is_torchs_topk(seed: int, count: int, classes: int, k: int) -> None:
    values = logits(count, classes, seed)
    labels = np.random.default_rng(seed).integers(0, classes, count)
    best = torch.topk(torch.from_numpy(values), min(k, classes), dim=1).indices
    hits = (best == torch.from_numpy(labels)[:, None]).any(dim=1)
    assert accuracy(values, labels, k) == pytest.approx(100 * hits.double().mean().item())


def test_accuracy_counts_a_nan_as_the_worst_class() -> None:
    values = np.array([[np.nan, 1.0, 0.0], [2.0, np.nan, 1.0]], np.float32)
    assert accuracy(values, np.array([0, 1]), 1) == 0
    assert accuracy(values, np.array([1, 0]), 1) == 100


def test_every_number_of_a_comparison() -> None:
    reference, noise = logits(), 0.4 * logits(seed=1)
    candidate = reference + noise
    labels = np.random.default_rng(3).integers(0, 10, 200)
    found = parity(reference, candidate, labels)

    def right(values: Array, k: int) -> float:
        ranked = [sorted(range(10), key=lambda c, row=row: -row[c])[:k] for row in values]  # type: ignore[misc]
        return 100 * sum(label in best for label, best in zip(labels, ranked, strict=True)) / 200

    assert found.top1 == pytest.approx(right(candidate, 1))
    assert found.top5 == pytest.approx(right(candidate, 5))
    assert found.reference_top1 == pytest.approx(right(reference, 1))
    assert found.top1 != found.reference_top1  # or the two could be confused unseen
    same = sum(int(np.argmax(a) == np.argmax(b)) for a, b in zip(reference, candidate, strict=True))
    assert 0 < same < 200
    assert found.agreement == pytest.approx(100 * same / 200)
    assert found.max_abs == pytest.approx(np.abs(candidate - reference).max())
    expected = 1 - distance.cosine(reference.ravel().astype(float), candidate.ravel().astype(float))
    assert found.cosine == pytest.approx(expected, abs=1e-12)
    assert (found.nonfinite, found.images, found.source) == (0, 200, "made here")
    assert (found.precision, found.backend, found.reference) == ("int8", "openvino", "pytorch fp32")
    assert found and found.failures == ()


def test_equal_logits_meet_the_strictest_contract() -> None:
    found = parity(logits(), logits(), tolerance=Tolerance(0, 100, 1e-12, 1.0))
    assert found, found.summary()
    assert (found.agreement, found.max_abs) == (100, 0)
    zeros = np.zeros((3, 10), np.float32)
    assert parity(zeros, zeros, tolerance=Tolerance(0, 100, 1e-12, 1.0)).cosine == 1
    assert parity(zeros, zeros + 1).cosine == 0


def swapped(values: Array, rows: int) -> Array:
    """The largest and smallest logit of the first rows change places."""
    changed = values.copy()
    for row in range(rows):
        high, low = values[row].argmax(), values[row].argmin()
        changed[row, [high, low]] = values[row, [low, high]]
    return changed


FAILURES = {
    "top1_drop": ("top-1 drops 1.00 points, allowed 0.5", {"top1_drop": 0.5}),
    "agreement": ("agreement 99.00 %, required 99.5 %", {"agreement": 99.5}),
    "max_abs": ("max |d logit| ", {"max_abs": 0.1}),
    "cosine": ("cosine 0.9", {"cosine": 0.9999}),
}


@pytest.mark.parametrize("term", FAILURES)
def test_each_term_of_the_contract_fails_alone(term: str) -> None:
    reference = logits()
    candidate = swapped(reference, 2)
    message, change = FAILURES[term]
    found = parity(reference, candidate, tolerance=dataclasses.replace(LAX, **change))  # type: ignore[arg-type]
    assert not found
    assert len(found.failures) == 1 and found.failures[0].startswith(message), found.failures
    assert found.summary().endswith(f"FAIL: {found.failures[0]}")
    assert parity(reference, candidate, tolerance=LAX)


def test_all_terms_are_reported_together() -> None:
    reference = logits()
    strict = Tolerance(top1_drop=0.5, agreement=99.5, max_abs=0.1, cosine=0.9999)
    assert len(parity(reference, swapped(reference, 2), tolerance=strict).failures) == 4


def test_the_limits_themselves_are_allowed() -> None:
    reference = logits()  # 200 images, so that one is half a point
    candidate = swapped(reference, 1)
    difference = float(np.abs(candidate - reference).max())
    exact = Tolerance(0.5, 99.5, difference, parity(reference, candidate).cosine)
    assert parity(reference, candidate, tolerance=exact), "on the limit"
    for tighter in ({"top1_drop": 0.49}, {"agreement": 99.51}, {"max_abs": difference * 0.99}):
        assert not parity(reference, candidate, tolerance=dataclasses.replace(exact, **tighter))


def test_a_candidate_better_than_the_reference_passes() -> None:
    reference = logits()
    labels = reference.argmax(1)
    worse = swapped(reference, 20)
    found = parity(worse, reference, labels, dataclasses.replace(LAX, top1_drop=0))
    assert found
    assert (found.top1, found.reference_top1) == (100, 90)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_one_logit_that_is_no_number_fails_any_contract(value: float) -> None:
    candidate = logits()
    candidate[150, 3] = value
    found = parity(logits(), candidate)
    assert not found
    assert found.nonfinite == 1
    assert "1 logits are NaN or infinite" in found.failures
    found = parity(candidate, logits())  # a reference that is broken proves nothing either
    assert not found


def test_images_without_labels_have_no_accuracy() -> None:
    reference = logits()
    strict = Tolerance(top1_drop=0, agreement=99.0, max_abs=0, cosine=-1)
    found = parity(reference, swapped(reference, 2), np.full(200, -1), strict)
    assert found, "agreement is 99 %, and there is no accuracy to lose"
    assert (found.top1, found.top5, found.reference_top1) == (None, None, None)
    assert found.agreement == pytest.approx(99)
    found = parity(reference, swapped(reference, 3), np.full(200, -1), strict)
    assert not found and found.to_dict()["top1"] is None


def test_fewer_than_five_classes_are_all_in_the_top_five() -> None:
    found = parity(logits(classes=3), logits(classes=3, seed=1))
    assert found.top5 == 100


@pytest.fixture(scope="module")
def few(sample: tuple[ImageSet, ImageSet]) -> ImageSet:
    return sample[1].take(11)


def narrow(directory: Path, low: int, high: int) -> Bundle:
    manifest = dataclasses.replace(open_bundle(directory).manifest, batch=(low, low, high))
    return write_manifest(directory, manifest)


@pytest.mark.parametrize("low, high", [(3, 5), (4, 4), (16, 20), (1, 1), (1, 64)])
def test_batches_within_the_bounds_give_every_image_its_answer(
    damaged: Path, few: ImageSet, low: int, high: int
) -> None:
    inputs = open_bundle(damaged).manifest.preprocessing.normalise(few.pixels)
    with open_runner(open_bundle(damaged), "onnxruntime", "fp32", 1) as runner:
        expected = runner.logits(inputs)
    with open_runner(narrow(damaged, low, high), "onnxruntime", "fp32", 1) as runner:
        found = predict(runner, few.pixels)
    assert found.shape == (11, 10)
    np.testing.assert_allclose(found, expected, atol=1e-4)


class Recorder:
    """A track that keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int | None, int]] = []

    def __call__(
        self, items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        things = list(items)
        self.calls.append((description, total, len(things)))
        yield from things


def test_progress_counts_batches(bundle: Bundle, sample: tuple[ImageSet, ImageSet]) -> None:
    track = Recorder()
    with open_runner(bundle, "onnxruntime", "fp16", 1) as runner:
        predict(runner, sample[1].take(65).pixels, track)
    assert track.calls == [("Running onnxruntime fp16", 2, 2)]


@pytest.fixture(scope="module")
def real(
    fashion_bundle: Path, fashion_recipe: Recipe, sample: tuple[ImageSet, ImageSet]
) -> tuple[Bundle, ImageSet, list[Parity]]:
    """Every precision on every CPU backend, on 60 real test images."""
    opened, test = open_bundle(fashion_bundle), sample[1].take(60)
    backends = ["pytorch", "onnxruntime", "openvino"]
    return opened, test, verify(opened, test, fashion_recipe.verify, backends)


def test_the_shipped_model_meets_its_contract_everywhere(
    real: tuple[Bundle, ImageSet, list[Parity]],
) -> None:
    _, _, records = real
    assert [(record.backend, record.precision) for record in records] == [
        (backend, precision)
        for backend in ("onnxruntime", "openvino")
        for precision in ("fp32", "fp16", "int8")
    ]
    for record in records:
        assert record, record.summary()
        assert record.reference == "pytorch fp32"
        assert record.images == 60
        assert record.top1 is not None and record.top1 > 70, "these weights are trained"
        assert record.top5 is not None and record.top5 >= record.top1
        json.dumps(record.to_dict(), allow_nan=False)
    distances = {(record.backend, record.precision): record.max_abs for record in records}
    for backend in ("onnxruntime", "openvino"):
        assert distances[backend, "fp32"] < distances[backend, "fp16"] < distances[backend, "int8"]


def test_the_reference_is_the_checkpoint_in_torch(
    real: tuple[Bundle, ImageSet, list[Parity]],
) -> None:
    """The checkpoint, loaded with safetensors and run here, on pixels normalised here."""
    from safetensors.torch import load_file

    from densenet_deploy.model import create_model

    opened, test, records = real
    model = create_model("densenet-bc-40-12", (1, 28, 28), 10).eval()
    model.load_state_dict(load_file(opened.file("model.safetensors")))
    pixels = torch.from_numpy(test.pixels).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        answers = model((pixels / 255 - 0.2860) / 0.3530).argmax(1).numpy()
    assert records[0].reference_top1 == pytest.approx(100 * (answers == test.labels).mean())


def test_the_contract_is_looked_up_by_precision(bundle: Bundle, few: ImageSet) -> None:
    config = VerifyConfig({"fp32": LAX, "fp16": dataclasses.replace(LAX, cosine=1.5)})
    records = verify(bundle, few, config, ["onnxruntime"], ["fp16", "fp32"])
    assert [(record.precision, bool(record)) for record in records] == [
        ("fp16", False),
        ("fp32", True),
    ]
    assert records[0].tolerance.cosine == 1.5


@pytest.mark.parametrize("backends", [["pytorch"], []])
def test_nothing_to_compare(bundle: Bundle, few: ImageSet, backends: list[str]) -> None:
    with pytest.raises(BackendError, match=r"nothing to compare.*; expected a backend besides"):
        verify(bundle, few, VerifyConfig(), backends)


def test_without_torch_the_records_name_another_reference(
    bundle: Bundle, few: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    records = verify(bundle, few, VerifyConfig(), ["onnxruntime"], ["fp32", "fp16"])
    assert [(record.precision, record.reference) for record in records] == [
        ("fp16", "onnxruntime fp32")  # and nothing is compared with itself
    ]
    assert records[0].max_abs > 0
    with pytest.raises(BackendError, match="nothing to compare on onnxruntime"):
        verify(bundle, few, VerifyConfig(), ["onnxruntime"], ["fp32"])
