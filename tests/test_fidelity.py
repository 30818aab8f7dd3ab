"""Verdicts of an accuracy contract on made-up scores, and the signal to noise ratio."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from densenet_deploy.fidelity import RUNS_ON, Averaged, Scored, signal_to_noise
from densenet_deploy.paired import AccuracyDrop
from densenet_deploy.recipe import TARGETS
from densenet_deploy.suite import AccuracyContract

CONTRACT = AccuracyContract(mean_drop=0.10, upper_drop=0.30, agreement=99.3, agreement_goal=99.6)


def scored(seed: int = 0, points: float = 0.05, upper: float = 0.2, **changes: Any) -> Scored:
    one = Scored(
        target="openvino",
        seed=seed,
        top1=94.0,
        drop=AccuracyDrop(points, upper, 10_000, 9, 4),
        agreement=99.5,
        divergence=0.001,
        sqnr=30.0,
        nonfinite=0,
        graph_sha256="0" * 64,
        graph_bytes=7,
        quantize_seconds=1.0,
        predict_seconds=2.0,
        contract=CONTRACT,
    )
    return replace(one, **changes)


@pytest.mark.parametrize(
    "changes, failure",
    [
        ({}, ""),
        ({"upper": 0.30, "agreement": 99.3}, ""),  # the limits themselves pass
        ({"agreement": 100 * np.mean(np.arange(1000) < 993)}, ""),  # 99.3, but for its last bit
        ({"points": 99.0}, ""),  # what a single drop is does not count, its bound does
        ({"upper": 0.31}, "the drop may be 0.310 points, allowed 0.3"),
        ({"agreement": 99.29}, "agreement 99.29 %, required 99.3 %"),
        ({"nonfinite": 3}, "3 logits are NaN or infinite"),
        ({"upper": math.nan}, "the drop may be nan points, allowed 0.3"),
        ({"agreement": math.nan}, "agreement nan %, required 99.3 %"),
    ],
    ids=str,
)
def test_each_seed_is_held_to_its_bound_and_agreement(
    changes: dict[str, Any], failure: str
) -> None:
    one = scored(**changes)
    assert one.failures == ((failure,) if failure else ())
    assert (bool(one), one.verdict) == ((False, "fail") if failure else (True, "pass"))
    assert failure in one.summary()
    told = one.to_dict()
    assert (told["verdict"], told["failures"]) == (one.verdict, list(one.failures))


def test_everything_that_fails_is_said() -> None:
    assert len(scored(upper=1.0, agreement=90.0, nonfinite=1).failures) == 3


@pytest.mark.parametrize("agreement, goal, verdict", [(99.6, 99.6, "pass"), (99.5, 99.6, "fail")])
def test_a_missed_goal_is_no_failure(agreement: float, goal: float, verdict: str) -> None:
    one = scored(agreement=agreement)
    assert (bool(one), one.goal_verdict) == (True, verdict)
    assert replace(one, contract=replace(CONTRACT, agreement_goal=None)).goal_verdict is None


@pytest.mark.parametrize(
    "drops, complete, verdict",
    [
        ((0.3, 0.0, 0.0), True, "pass"),  # 0.1 in all, but for its last bit
        ((0.3, 0.01, 0.0), True, "fail"),
        ((-0.2, 0.3, 0.2), True, "pass"),
        ((9.0,), False, "not decided"),
    ],
)
def test_the_mean_of_the_seeds_is_held_to_its_drop(
    drops: tuple[float, ...], complete: bool, verdict: str
) -> None:
    group = tuple(scored(seed, points=points) for seed, points in enumerate(drops))
    mean = Averaged("openvino", group, complete, CONTRACT)
    assert mean.drop == pytest.approx(np.mean(drops))
    assert (mean.verdict, bool(mean)) == (verdict, verdict != "fail")
    assert mean.to_dict()["seeds"] == list(range(len(drops)))
    assert mean.summary().endswith(f"allowed 0.1: {verdict}")


def test_a_record_is_json_whatever_it_holds() -> None:
    """An int8 graph without any error has no finite signal to noise ratio."""
    told = json.loads(json.dumps(scored(sqnr=math.inf).to_dict(), allow_nan=False))
    assert told["logit_sqnr_db"] is None and told["backend"] == "openvino"
    mean = Averaged("openvino", (scored(divergence=math.nan),), True, CONTRACT)
    assert json.loads(json.dumps(mean.to_dict(), allow_nan=False))["kl_divergence"] is None


def test_every_target_runs_somewhere() -> None:
    assert tuple(RUNS_ON) == TARGETS


def test_signal_to_noise() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 5.0]], np.float32)
    assert signal_to_noise(reference, reference * np.float32(1.1)) == pytest.approx(20, abs=1e-5)
    assert signal_to_noise(reference, reference) == math.inf
    assert signal_to_noise(reference, 0 * reference) == 0
