"""The self-consistency gate: each rule catches a runner that breaks it, and no healthy one fails.

Broken runners are ONNX Runtime on the real net, with the fault put around it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.bundle import Bundle, open_bundle
from densenet_deploy.consistency import TOLERANCE, Consistency, check, check_bundle, tolerance
from densenet_deploy.consistency_rules import RULES
from densenet_deploy.data import ImageSet
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import CheckFailedError, DataError
from densenet_deploy.progress import Track
from densenet_deploy.recipe import PRECISIONS, load_recipe
from densenet_deploy.runtime import BACKENDS, open_runner, runs, why_unavailable
from densenet_deploy.runtime.runner import Array, Infer, Runner

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = [backend for backend in BACKENDS if not why_unavailable(backend)]
PAIRS = [(backend, name) for backend in HERE for name in PRECISIONS if runs(backend, name)]
WITHOUT_GRAPH = set(RULES) - {"CUDA graph"}


@pytest.fixture
def images(bundle: Bundle) -> Array:
    """The 16 sample images, normalised."""
    return bundle.manifest.preprocessing.normalise(bundle.sample_pixels())


@pytest.fixture
def sound(bundle: Bundle) -> Iterator[Runner]:
    with open_runner(bundle, "onnxruntime", "fp32", threads=1) as runner:
        yield runner


def applied(result: Consistency) -> set[str]:
    return {finding.rule for finding in result.findings if not finding.skipped}


def broken(result: Consistency) -> set[str]:
    return {finding.rule for finding in result.findings if not finding}


@pytest.mark.parametrize("backend, precision", PAIRS)
def test_every_backend_of_this_machine_is_consistent(
    bundle: Bundle, sample: tuple[ImageSet, ImageSet], backend: str, precision: str
) -> None:
    (result,) = check_bundle(bundle, sample[1], [backend], [precision])  # type: ignore[list-item]
    assert result, result.summary()
    assert (result.backend, result.precision) == (backend, precision)
    assert applied(result) == WITHOUT_GRAPH
    assert result.rows == 8 and result.apart >= 8 and result.spread > 1
    bounds = {finding.bound for finding in result.findings}
    assert bounds == {TOLERANCE[precision] * result.spread}
    assert 0 < result.seconds < 60
    assert result.summary().endswith(": pass")


@settings(max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    st.sampled_from(["onnxruntime", "openvino"]),
    st.sampled_from(["fp32", "int8"]),
)
def test_no_images_make_a_healthy_runner_fail(
    fashion_bundle: Path, seed: int, noise: float, backend: str, precision: str
) -> None:
    """Shuffled and noisy; that they are told apart is not promised, that no rule breaks is."""
    opened = open_bundle(fashion_bundle)
    random = np.random.default_rng(seed)
    sharp = opened.manifest.preprocessing.normalise(opened.sample_pixels())
    shuffled = random.permutation(sharp)
    noisy = shuffled + noise * random.standard_normal(sharp.shape).astype(np.float32)
    with open_runner(opened, backend, precision, 1) as runner:  # type: ignore[arg-type]
        result = check(runner, noisy)
    assert not broken(result), result.summary()


# Faults: each maps a sound `infer` to a broken one that only the rule it is named after notices.


def rows_of_equals_differ(infer: Infer) -> Infer:
    """Four equal rows, four answers."""

    def run(images: Array) -> Array:
        logits: Array = infer(images)
        if (images == images[0]).all():
            logits = logits + np.arange(len(images), dtype=np.float32)[:, None]
        return logits

    return run


def the_first_row_counts(images: Array) -> Callable[[Infer], Infer]:
    """One image is wrong where it comes first; `images` are those of the check, in its order."""

    def fault(infer: Infer) -> Infer:
        def run(batch: Array) -> Array:
            wrong = len(batch) == 8 and np.array_equal(batch[0], images[7])
            return np.roll(infer(batch), 1, axis=0) if wrong else infer(batch)

        return run

    return fault


def wrong_at_three(infer: Infer) -> Infer:
    """One batch size is wrong in every row, as batch 2 was in the field."""
    return lambda images: infer(images) + (len(images) == 3)


def extremes_leak(infer: Infer) -> Infer:
    """What pads a batch reaches the rows before it."""
    return lambda images: infer(images) + float(np.abs(images).max() > 1000)


def drifts(infer: Infer) -> Infer:
    """The fourth answer in a row to the same question is another one."""
    last, count = b"", 0

    def run(images: Array) -> Array:
        nonlocal last, count
        asked = images.tobytes()
        last, count = asked, count + 1 if asked == last else 1
        return infer(images) + (count == 4)

    return run


def shares_its_buffer(infer: Infer) -> Infer:
    """One input buffer for all threads."""
    buffer: dict[str, Array] = {}

    def run(images: Array) -> Array:
        buffer["images"] = images
        time.sleep(0.01)
        return infer(buffer["images"])

    return run


def replays_a_stale_graph(infer: Infer) -> Infer:
    """After the largest batch the graph of the usual one reads what that left behind."""
    before: list[Array] = []

    def run(images: Array) -> Array:
        stale = len(images) == 8 and bool(before) and len(before[-1]) == 64
        before.append(images)
        return infer(before[-2][8:16]) if stale else infer(images)

    return run


def wrong_at_the_maximum(infer: Infer) -> Infer:
    """The largest batch of the profile overflows into its last row."""

    def run(images: Array) -> Array:
        logits: Array = infer(images)
        if len(images) == 64:
            logits[-1] = logits[0] + 1
        return logits

    return run


def with_fault(bundle: Bundle, sound: Runner, fault: Callable[[Infer], Infer]) -> Runner:
    """A runner like `sound` that claims to replay CUDA graphs, with a fault in it."""
    return Runner(bundle, "onnxruntime", "fp32", fault(sound.logits), cuda_graph=True)


@pytest.mark.parametrize(
    "rule, fault",
    [
        ("equal rows", rows_of_equals_differ),
        ("permuted batch", None),
        ("batch sizes", wrong_at_three),
        ("padding", extremes_leak),
        ("repeats", drifts),
        ("concurrent", shares_its_buffer),
        ("CUDA graph", replays_a_stale_graph),
        ("profiles", wrong_at_the_maximum),
    ],
)
def test_each_rule_catches_what_no_other_does(
    bundle: Bundle,
    sound: Runner,
    images: Array,
    rule: str,
    fault: Callable[[Infer], Infer] | None,
) -> None:
    fault = fault or the_first_row_counts(images)
    # Without CUDA graphs it is the same engine, faults and all; only a graph's own fault is gone.
    plain = sound if rule == "CUDA graph" else with_fault(bundle, sound, fault)
    result = check(with_fault(bundle, sound, fault), images, plain)
    assert applied(result) == set(RULES)
    assert broken(result) == {rule}
    assert not result
    assert "FAIL: " + rule in result.summary()


def test_every_rule_has_its_fault() -> None:
    """The table above and the rules are the same set."""
    (marker,) = test_each_rule_catches_what_no_other_does.pytestmark  # type: ignore[attr-defined]
    assert [rule for rule, _ in marker.args[1]] == list(RULES)


def wrong_at_two(infer: Infer) -> Infer:
    """NVIDIA/TensorRT#4853: batch 2 wrong while trtexec says PASSED."""
    return lambda images: infer(images[::-1] if len(images) == 2 else images)


def four_answers(infer: Infer) -> Infer:
    """NVIDIA/TensorRT#4813: four byte-equal rows, four answers."""
    return lambda images: infer(
        images + np.arange(len(images), dtype=np.float32)[:, None, None, None]
    )


def wrong_at_one(infer: Infer) -> Infer:
    """NVIDIA/TensorRT#4813 too: batch 1 in a profile tuned for 16."""
    return lambda images: infer(images[:, :, ::-1] if len(images) == 1 else images)


@pytest.mark.parametrize(
    "fault, rules",
    [
        (wrong_at_two, {"batch sizes"}),
        (four_answers, {"equal rows", "permuted batch", "batch sizes", "profiles"}),
        (wrong_at_one, {"batch sizes", "padding", "profiles"}),
    ],
)
def test_bugs_that_users_met(
    bundle: Bundle,
    sound: Runner,
    images: Array,
    fault: Callable[[Infer], Infer],
    rules: set[str],
) -> None:
    runner = Runner(bundle, "tensorrt", "fp32", fault(sound.logits), profiles=((1, 16, 32),))
    assert rules <= broken(check(runner, images))


@pytest.mark.parametrize(
    "fault, reason",
    [
        (lambda infer: lambda images: infer(images) * np.float32("nan"), "differ by inf"),
        (lambda infer: lambda images: infer(images)[:1], "1 answers to 8 images"),
    ],
    ids=["NaN", "one row"],
)
def test_answers_that_are_none_fail(
    bundle: Bundle,
    sound: Runner,
    images: Array,
    fault: Callable[[Infer], Infer],
    reason: str,
) -> None:
    result = check(Runner(bundle, "tensorrt", "fp32", fault(sound.logits)), images)
    assert not result and reason in result.summary()


def test_a_refusal_fails_the_rule_that_met_it(bundle: Bundle, sound: Runner, images: Array) -> None:
    def infer(batch: Array) -> Array:
        if len(batch) == 64:
            raise RuntimeError("out of memory")
        return sound.logits(batch)

    result = check(Runner(bundle, "tensorrt", "fp32", infer), images)
    assert broken(result) == {"profiles"}
    assert "FAIL: profiles: tensorrt failed on fp32: out of memory" in result.summary()


def test_images_that_are_not_told_apart_prove_nothing(sound: Runner, images: Array) -> None:
    result = check(sound, np.repeat(images[:1], 16, axis=0))
    assert not broken(result) and not result
    assert result.failures == ("proves nothing: 8 images have 1 answers",)


def test_a_constant_runner_proves_nothing(bundle: Bundle, images: Array) -> None:
    """It keeps every rule, and is no classifier."""
    runner = Runner(bundle, "tensorrt", "fp32", lambda batch: np.ones((len(batch), 10), np.float32))
    result = check(runner, images)
    assert not broken(result) and not result


def test_fewer_than_two_images_are_refused(sound: Runner, images: Array) -> None:
    with pytest.raises(DataError, match="1 images; expected at least 2 that differ"):
        check(sound, images[:1])


def test_rules_that_do_not_apply_say_why(bundle: Bundle, sound: Runner, images: Array) -> None:
    single = Runner(bundle, "tensorrt", "fp32", sound.logits, profiles=((1, 1, 1),))
    result = check(single, images)
    assert result
    reasons = {finding.rule: finding.skipped for finding in result.findings if finding.skipped}
    one_row = dict.fromkeys(
        ("equal rows", "permuted batch", "batch sizes", "padding"), "its batches hold one row"
    )
    assert reasons == {**one_row, "CUDA graph": "it runs without CUDA graphs"}
    assert "(does not apply: equal rows, permuted batch, batch sizes, padding, CUDA graph)" in (
        result.summary()
    )
    graphs = Runner(bundle, "tensorrt", "fp32", sound.logits, cuda_graph=True)
    (reason,) = [finding.skipped for finding in check(graphs, images).findings if finding.skipped]
    assert reason == "no second runner without CUDA graphs was given"


def test_profiles_that_take_no_single_row_are_checked_from_their_least(
    bundle: Bundle, sound: Runner, images: Array
) -> None:
    sizes = []

    def infer(batch: Array) -> Array:
        sizes.append(len(batch))
        return sound.logits(batch)

    manifest = dataclasses.replace(bundle.manifest, batch=(3, 4, 16))
    narrow = dataclasses.replace(bundle, manifest=manifest)
    runner = Runner(narrow, "tensorrt", "fp32", infer, profiles=((3, 4, 6), (7, 8, 12)))
    result = check(runner, images)
    assert result, result.summary()
    assert set(sizes) == {3, 4, 5, 6, 7, 8, 12, 16}  # 16: promised, and to be split


def test_tf32_rounds_like_fp16(bundle: Bundle, sound: Runner) -> None:
    recipe = {**bundle.manifest.recipe, "build": {**bundle.manifest.recipe["build"], "tf32": True}}
    manifest = dataclasses.replace(bundle.manifest, recipe=recipe)
    tf32 = dataclasses.replace(bundle, manifest=manifest)
    assert tolerance(Runner(tf32, "tensorrt", "fp32", sound.logits)) == TOLERANCE["fp16"]
    assert tolerance(Runner(tf32, "onnxruntime", "fp32", sound.logits)) == TOLERANCE["fp32"]
    assert tolerance(Runner(tf32, "tensorrt", "int8", sound.logits)) == TOLERANCE["int8"]
    assert tolerance(Runner(bundle, "tensorrt", "fp32", sound.logits)) == TOLERANCE["fp32"]


def test_the_record_is_strict_json(bundle: Bundle, sound: Runner, images: Array) -> None:
    nan = Runner(bundle, "tensorrt", "fp32", lambda batch: sound.logits(batch) * math.nan)
    for runner, passed in ((sound, True), (nan, False)):
        table = json.loads(json.dumps(check(runner, images).to_dict(), allow_nan=False))
        assert table["passed"] is passed and bool(table["failures"]) is not passed
        assert [finding["rule"] for finding in table["findings"]] == list(RULES)
        applies = [finding for finding in table["findings"] if not finding["skipped"]]
        assert {finding["worst"] is None for finding in applies} == {not passed}


def test_progress_counts_the_rules(sound: Runner, images: Array) -> None:
    seen = []

    def track(items: list[str], description: str) -> Iterator[str]:
        seen.append((description, len(items)))
        yield from items

    check(sound, images, track=track)  # type: ignore[arg-type]
    assert seen == [("Checking onnxruntime fp32", len(RULES))]


def test_a_bundle_is_checked_with_two_contexts_and_against_no_graph(
    bundle: Bundle, sample: tuple[ImageSet, ImageSet]
) -> None:
    opened: list[tuple[str, RunConfig]] = []

    def opener(
        bundle: Bundle, backend: str, precision: str, threads: int, config: RunConfig
    ) -> Runner:
        opened.append((precision, config))
        real = open_runner(bundle, "onnxruntime", precision, 1)  # type: ignore[arg-type]
        return Runner(
            bundle,
            backend,
            precision,  # type: ignore[arg-type]
            real.logits,
            real.close,
            cuda_graph=config.cuda_graph,
        )

    results = check_bundle(bundle, sample[1], ["tensorrt"], ["fp32", "fp16"], opener=opener)
    assert [result.precision for result in results] == ["fp32", "fp16"]
    for result in results:
        assert result and applied(result) == set(RULES)
    two = RunConfig(contexts=2)
    plain = dataclasses.replace(two, cuda_graph=False)
    assert opened == [("fp32", two), ("fp32", plain), ("fp16", two), ("fp16", plain)]
    opened.clear()
    check_bundle(bundle, sample[1], ["onnxruntime-cuda"], ["fp32"], opener=opener)
    assert [config.contexts for _, config in opened] == [1, 1]  # others have none, and refuse two


def test_a_bundle_that_contradicts_itself_is_not_published(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from densenet_deploy import pipeline

    def contradicting(*arguments: object, track: Track) -> list[Consistency]:
        results = check_bundle(*arguments, track=track)  # type: ignore[arg-type]
        findings = tuple(dataclasses.replace(f, worst=9.0) for f in results[0].findings)
        return [dataclasses.replace(results[0], findings=findings), *results[1:]]

    monkeypatch.setattr(pipeline, "check_bundle", contradicting)
    with pytest.raises(CheckFailedError, match=r"tiny contradicts itself: .*equal rows: differ by"):
        pipeline.run(load_recipe(str(tiny_recipe)), tmp_path / "out", engines=False)
    assert not (tmp_path / "out").exists()
