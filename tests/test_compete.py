"""A suite from its file to verdicts: once for real on a tiny net, the rest on made-up samples."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densenet_deploy import compete as competing
from densenet_deploy import rivals
from densenet_deploy.compete import Competition, Judged, Timed, compete
from densenet_deploy.errors import BackendError, RecipeError
from densenet_deploy.interleaved import Samples
from densenet_deploy.paired import Ratio, ratio
from densenet_deploy.spec import variant
from densenet_deploy.suite import Comparison, LatencySuite, Side

pytestmark = pytest.mark.usefixtures("one_thread")
SIDES = (
    Side("plain on onnxruntime", "plain", "onnxruntime"),
    Side("fp32 on onnxruntime", "fp32", "onnxruntime"),
    Side("fp32 on openvino", "fp32", "openvino", "onnxruntime"),
)


def suite_of(model: Path | str, **changes: Any) -> LatencySuite:
    """Claims that no machine can break or keep."""
    claims = (
        Comparison("fp32 on openvino", "plain on onnxruntime", floor=1e-6, goal=1e6),
        Comparison("fp32 on onnxruntime", "plain on onnxruntime", floor=1e6, batch_sizes=(2,)),
    )
    suite = LatencySuite("small", (str(model),), (1, 2), SIDES, claims, threads=1)
    return replace(suite, **changes)


@pytest.fixture(scope="module")
def found(tiny_recipe: Path) -> Competition:
    return compete(suite_of(tiny_recipe), pairs=2)


def test_only_the_sides_of_a_claim_are_timed(found: Competition, tiny_recipe: Path) -> None:
    timed = [(side.batch, side.side.name) for side in found.timed]
    names = [side.name for side in SIDES]
    assert timed == [(1, names[0]), (1, names[2]), *[(2, name) for name in names]]
    claimed = [(j.candidate.batch, j.claim.candidate) for j in found.judged]
    assert claimed == [(1, names[2]), (2, names[2]), (2, names[1])]
    assert {side.model for side in found.timed} == {str(tiny_recipe)}


def test_every_side_answers_as_pytorch(found: Competition) -> None:
    assert all(side.cosine == pytest.approx(1, abs=1e-6) for side in found.timed)


def test_sides_of_one_graph_share_it(found: Competition) -> None:
    graphs = {(side.side.graph, side.side.lowered_for): side.graph_sha256 for side in found.timed}
    assert len(graphs) == len(set(graphs.values())) == 2


def test_two_rounds_decide_nothing(found: Competition) -> None:
    assert (found.pairs, found.block, found.threads) == (2, 1, 1)
    assert {judged.verdict for judged in found.judged} == {"not decided"}
    assert bool(found)


def test_the_record_is_json_and_holds_every_sample(found: Competition) -> None:
    told = json.loads(json.dumps(found.to_dict()))
    assert told["schema_version"] == 2 and told["passed"] is True
    assert told["suite"]["name"] == "small" and told["environment"]["cores"]
    assert told["models"][0]["speed_only"] is True
    series = {(side["batch"], side["side"]): side["seconds"] for side in told["sides"]}
    for claim in told["comparisons"]:
        baseline = series[claim["batch"], claim["baseline"]]
        candidate = series[claim["batch"], claim["candidate"]]
        again = ratio(baseline, candidate)  # from the file, whose times have 1 us
        assert again.median == pytest.approx(claim["speedup"]["median"], rel=5e-3)
        assert claim["baseline_seconds"] == pytest.approx(np.median(baseline), abs=1e-6)
        assert claim["candidate_seconds"] == pytest.approx(np.median(candidate), abs=1e-6)
    for side in told["sides"]:
        assert len(side["seconds"]) == 2 and len(side["graph_sha256"]) == 64
        assert side["graph_bytes"] > 1000 and side["requests_per_sample"] >= 3


def timed(name: str, seconds: float, rounds: int = 20) -> Timed:
    side = next(side for side in SIDES if side.name == name)
    samples = Samples(0.1, True, 3, (seconds,) * rounds, np.zeros((1, 2), np.float32))
    return Timed("net", 1, side, 10, 20, hashlib.sha256().hexdigest(), 5, 1.0, samples)


def judged(floor: float | None, goal: float | None, speedup: float = 2.0) -> Judged:
    baseline, candidate = timed(SIDES[0].name, 0.02), timed(SIDES[1].name, 0.02 / speedup)
    claim = Comparison(SIDES[1].name, SIDES[0].name, floor, goal)
    found = ratio(baseline.samples.seconds, candidate.samples.seconds)
    return Judged(claim, candidate, baseline, found)


@pytest.mark.parametrize(
    "floor, goal, verdict, goal_verdict",
    [
        (1.9, 2.5, "pass", "fail"),
        (2.1, 2.5, "fail", "fail"),
        (None, 1.9, None, "pass"),
        (1.0, None, "pass", None),
        (None, None, None, None),
    ],
)
def test_a_missed_goal_is_no_failure(
    floor: Any, goal: Any, verdict: Any, goal_verdict: Any
) -> None:
    one = judged(floor, goal)
    assert (one.verdict, one.goal_verdict, bool(one)) == (verdict, goal_verdict, verdict != "fail")
    assert one.to_dict()["verdict"] == verdict


def test_one_failed_floor_fails_the_suite() -> None:
    records = (judged(1.9, None), judged(2.1, None))
    competition = Competition(suite_of("net"), 1, 20, 4, (), (), records)
    assert not competition and competition.to_dict()["passed"] is False
    assert replace(competition, judged=records[:1])


def test_a_claim_in_one_line() -> None:
    one = replace(judged(1.9, None), speedup=Ratio(2.0, 1.95, 2.06, 20))
    assert one.summary() == (
        "net, batch 1: fp32 on onnxruntime over plain on onnxruntime 2.00 [1.95, 2.06], "
        "floor 1.9: pass"
    )


def test_nothing_runs_where_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "prepare", pytest.fail)
    with pytest.raises(RecipeError, match="unknown model 'vgg16'"):
        compete(suite_of("densenet121"), models=("densenet121", "vgg16"))
    monkeypatch.setattr(competing, "why_unavailable", lambda backend: f"no {backend}")
    with pytest.raises(BackendError, match="side plain on onnxruntime: onnxruntime cannot run"):
        compete(suite_of("densenet121"))


RIVALS = (
    Side("DenseNet", "fp32", "onnxruntime"),
    Side("ResNet", "fp32", "onnxruntime", model="resnet-preact-8-4"),
    Side("wide", "fp32", "onnxruntime", model="resnet-preact-8-6"),
)


def test_a_side_may_be_another_network() -> None:
    """Each is itself, with its own answers, counts and graph; a rival nobody names is not made."""
    claims = (
        Comparison("DenseNet", "ResNet"),
        Comparison("DenseNet", "wide", models=("densenet-bc-16-4",)),
    )
    models = ("densenet-bc-10-4", "densenet-bc-16-4")
    suite = LatencySuite("rivals", models, (1,), RIVALS, claims, threads=1)
    found = compete(suite, models[:1], pairs=2)
    assert bool(found) and [judged.verdict for judged in found.judged] == [None]
    told = json.loads(json.dumps(found.to_dict()))
    assert [record["name"] for record in told["models"]] == [models[0], "resnet-preact-8-4"]
    assert [side["network"] for side in told["sides"]] == [models[0], "resnet-preact-8-4"]
    for side in (*told["sides"], *told["models"]):
        spec = variant(side.get("network") or side["name"])
        assert (side["parameters"], side["macs"]) == (spec.parameters, spec.macs)
    assert len({side["graph_sha256"] for side in told["sides"]}) == 2
    assert all(side["cosine"] == pytest.approx(1, abs=1e-6) for side in told["sides"])


def test_networks_that_take_other_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "prepare", pytest.fail)
    claims = (Comparison("DenseNet", "ResNet"), Comparison("DenseNet", "wide"))
    suite = LatencySuite("rivals", ("densenet121",), (1,), RIVALS, claims)
    with pytest.raises(
        RecipeError, match=r"resnet-preact-8-4 takes images of \(3, 32, 32\), densen"
    ):
        compete(suite)
