"""A training-memory suite on tiny nets: what is measured, judged and recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from densenet_deploy.errors import RecipeError
from densenet_deploy.held_memory import Held, held_bytes
from densenet_deploy.paired import Ratio
from densenet_deploy.training_memory import Saved, at_most, measure_memory
from densenet_deploy.training_step import TrainingStep
from densenet_deploy.training_suite import (
    DepthSweep,
    MemoryLimit,
    StepTask,
    TrainingMemorySuite,
)

MODEL = "densenet-bc-16-4"


def saved(limit: MemoryLimit, seconds: float = 1.0) -> Saved:
    naive = Held(StepTask(limit.model, "naive", 2), 1000, 5000)
    efficient = Held(StepTask(limit.model, "memory-efficient", 2), 200, 2000)
    return Saved(limit, naive, efficient, (1.0,) * 20, (seconds,) * 20, 4)


@pytest.mark.parametrize(
    ("limit", "verdicts", "holds"),
    [
        (MemoryLimit(MODEL, 2), (None, None, None), True),
        (MemoryLimit(MODEL, 2, 0.2, 0.19, 1.25), ("pass", "fail", "pass"), True),
        (MemoryLimit(MODEL, 2, 0.19, 0.1, 1.25), ("fail", "fail", "pass"), False),
        (MemoryLimit(MODEL, 2, 0.5, 0.3, 1.0), ("pass", "pass", "fail"), False),
    ],
)
def test_verdicts(limit: MemoryLimit, verdicts: tuple[str | None, ...], holds: bool) -> None:
    one = saved(limit, seconds=1.2)
    assert (one.held, one.peak) == (0.2, 0.4)
    assert one.seconds.median == pytest.approx(1.2)
    assert (one.verdict, one.goal_verdict, one.seconds_verdict) == verdicts
    assert bool(one) == holds


def test_a_peak_that_did_not_grow_has_no_share() -> None:
    one = saved(MemoryLimit(MODEL, 2))
    flat = replace(one, naive=replace(one.naive, peak_rss_bytes=0))
    assert flat.peak is None and flat.to_dict()["peak_rss_ratio"] is None


@pytest.mark.parametrize(
    ("low", "high", "pairs", "verdict"),
    [
        (1.0, 1.25, 20, "pass"),
        (1.2, 1.3, 20, "not decided"),
        (1.25, 1.3, 20, "not decided"),
        (1.26, 1.3, 20, "fail"),
        (1.0, 1.1, 19, "not decided"),
        (1.3, 1.4, 19, "not decided"),
    ],
)
def test_a_limit_on_time(low: float, high: float, pairs: int, verdict: str) -> None:
    assert at_most(Ratio((low + high) / 2, low, high, pairs), 1.25) == verdict


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held bytes are counted in this process, where the resident set says little; no clock runs."""

    def measure(task: StepTask, threads: int) -> Held:
        return Held(task, held_bytes(TrainingStep(task)), 1)

    def time_steps(tasks: Sequence[StepTask], rounds: int, *_: object) -> list[tuple[float, ...]]:
        return [(1.0,) * rounds for _ in tasks]

    monkeypatch.setattr("densenet_deploy.held_memory.measure", measure)
    monkeypatch.setattr("densenet_deploy.training_memory.time_steps", time_steps)


@pytest.mark.usefixtures("here")
def test_a_suite_on_tiny_nets() -> None:
    limit = MemoryLimit(MODEL, 2, held=0.9, goal=0.1)
    sweep = DepthSweep((10,), growth_rate=4, batch=1)
    suite = TrainingMemorySuite("small", (limit,), sweep, threads=1)
    found = measure_memory(suite, pairs=1)
    assert found and len(found.saved) == 1
    told = json.loads(json.dumps(found.to_dict()))
    (row,) = told["comparisons"]
    assert (row["model"], row["batch"], row["verdict"], row["goal_verdict"]) == (
        *(MODEL, 2, "pass", "fail"),
    )
    assert row["seconds_ratio"]["pairs"] == 1 and row["seconds_verdict"] is None
    assert 0.1 < row["held_ratio"] < 0.6
    points = {(p["depth"], p["mode"]): p for p in told["points"]}
    assert set(points) == {(d, m) for d in (10, 16) for m in ("naive", "memory-efficient")}
    for (depth, mode), point in points.items():
        assert (point["variant"], point["growth_rate"]) == ("bc", 4)
        assert (point["batch"], point["input_shape"]) == (1 if depth == 10 else 2, [3, 32, 32])
        assert point["held_bytes"] > 0 and point["peak_rss_bytes"] == point["step_seconds"] == 1
        assert point["held_bytes"] <= points[depth, "naive"]["held_bytes"], mode
    (swept,) = told["sweep"]
    assert (swept["seconds_ratio"]["pairs"], swept["limit"]) == (10, None)
    assert told["passed"] and told["environment"]["packages"]["torch"]
    assert told["suite"] == json.loads(json.dumps(suite.to_dict()))


def test_what_cannot_be_measured_is_refused_first() -> None:
    suite = TrainingMemorySuite("small", (MemoryLimit(MODEL, 2),))
    with pytest.raises(RecipeError, match="unknown model 'x'"):
        measure_memory(suite, models=["x"])
    with pytest.raises(RecipeError, match="resnet50 recomputes nothing"):
        measure_memory(suite, models=[MODEL, "resnet50"])


def test_nothing_is_measured_before_all_of_the_suite_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "densenet_deploy.training_memory._compare", lambda *_: pytest.fail("measured")
    )
    suite = TrainingMemorySuite("small", (MemoryLimit(MODEL, 2),))
    with pytest.raises(RecipeError, match="depth 11 does not fit"):
        measure_memory(replace(suite, sweep=DepthSweep((10, 11), growth_rate=4)))
