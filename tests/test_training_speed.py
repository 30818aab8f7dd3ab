"""A training-speed suite on tiny nets: who meets whom, what is judged and recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from densenet_deploy import training_speed
from densenet_deploy.errors import RecipeError
from densenet_deploy.training_speed import TrainingSpeed, measure_speed
from densenet_deploy.training_suite import Mode, StepComparison, StepTask, TrainingSpeedSuite

MODEL, SHAPE = "densenet-bc-10-4", (1, 8, 8)
OURS: tuple[Mode, Mode] = ("memory-efficient", "naive")
TIMES = {"torchvision": 1.5, "naive": 1.25, "memory-efficient": 1.0}
SUITE = TrainingSpeedSuite(
    "small",
    (
        StepComparison("densenet121", "memory-efficient", "torchvision", (1, 2), floor=1, goal=2),
        StepComparison("densenet121", "memory-efficient", "naive", (2,), ("bf16",), floor=1.3),
    ),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[StepTask, ...]]:
    """Who took turns, with times that are known."""
    groups: list[tuple[StepTask, ...]] = []

    def time_steps(tasks: Sequence[StepTask], rounds: int, *_: object) -> list[tuple[float, ...]]:
        groups.append(tuple(tasks))
        return [(TIMES[task.mode],) * rounds for task in tasks]

    monkeypatch.setattr(training_speed, "time_steps", time_steps)
    return groups


def verdicts(found: TrainingSpeed) -> list[tuple[object, ...]]:
    return [
        (
            *(one.candidate.task.batch, one.candidate.task.precision, one.claim.baseline),
            *(round(one.speedup.median, 3), one.verdict, one.goal_verdict),
        )
        for one in found.judged
    ]


def test_all_sides_of_a_batch_size_and_precision_take_turns(
    asked: list[tuple[StepTask, ...]],
) -> None:
    found = measure_speed(SUITE)
    modes = [(group[0].batch, group[0].precision, [t.mode for t in group]) for group in asked]
    two = ["memory-efficient", "torchvision"]
    assert modes == [
        *((1, "fp32", two), (1, "bf16", two), (2, "fp32", two)),
        (2, "bf16", [*two, "naive"]),
    ]
    assert verdicts(found) == [
        (1, "fp32", "torchvision", 1.5, "pass", "fail"),
        (1, "bf16", "torchvision", 1.5, "pass", "fail"),
        (2, "fp32", "torchvision", 1.5, "pass", "fail"),
        (2, "bf16", "torchvision", 1.5, "pass", "fail"),
        (2, "bf16", "naive", 1.25, "fail", None),
    ]
    assert not found and len(found.timed) == 9


def test_other_batch_sizes_and_models_claim_nothing(asked: list[tuple[StepTask, ...]]) -> None:
    found = measure_speed(SUITE, batch_sizes=[1, 3])
    assert [row[0] for row in verdicts(found)] == [1, 1, 1, 3, 3, 3]
    assert [row[4] for row in verdicts(found)] == ["pass", "pass", None, None, None, None]
    found = measure_speed(SUITE, models=["densenet169"], pairs=3)
    assert {task.model for group in asked[-4:] for task in group} == {"densenet169"}
    assert found.pairs == 3 and all(row[4:] == (None, None) for row in verdicts(found))
    with pytest.raises(RecipeError, match="unknown model 'x'"):
        measure_speed(SUITE, models=["x"])


def test_what_is_recorded(asked: list[tuple[StepTask, ...]]) -> None:
    claim = StepComparison(MODEL, *OURS, (2,), ("fp32",), SHAPE, floor=1e-6, goal=1e6)
    suite = TrainingSpeedSuite("small", (claim,), threads=1)
    found = measure_speed(suite, pairs=1)
    assert asked[0][0] == StepTask(MODEL, "memory-efficient", 2, SHAPE, "fp32")
    told = json.loads(json.dumps(found.to_dict()))
    assert found and told["passed"] and told["pairs"] == 1
    (row,) = told["comparisons"]
    assert (row["model"], row["input_shape"], row["batch"]) == (MODEL, [1, 8, 8], 2)
    assert (row["verdict"], row["goal_verdict"]) == ("not decided", "not decided")
    seconds = {step["mode"]: step["median_seconds"] for step in told["steps"]}
    assert row["speedup"]["median"] == pytest.approx(seconds["naive"] / seconds[OURS[0]])
    assert [step["images_per_second"] for step in told["steps"]] == [2 / 1.0, 2 / 1.25]
    assert told["suite"] == json.loads(json.dumps(suite.to_dict()))
    assert told["environment"]["torchvision"]


def test_what_torchvision_lacks_is_not_compared_with_it(asked: list[tuple[StepTask, ...]]) -> None:
    found = measure_speed(SUITE, models=[MODEL, MODEL])
    assert {one.claim.baseline for one in found.judged} == {"naive"}
    assert len(found.judged) == 2 * 2  # batch sizes and precisions
    only = TrainingSpeedSuite("small", SUITE.comparisons[:1])
    with pytest.raises(RecipeError, match=f"torchvision has no model '{MODEL}', and the suite"):
        measure_speed(only, models=[MODEL])
