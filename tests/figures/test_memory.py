"""Memory against depth: the records of the suite that measures it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.figures.memory import Step, memory, read_results
from tests.figures.conftest import Drawn


def point(depth: int, mode: str, size: int, **changed: Any) -> dict[str, Any]:
    return {
        "model": f"densenet-bc-{depth}-12",
        "mode": mode,
        "batch": 16,
        "input_shape": [3, 32, 32],
        "precision": "fp32",
        "held_bytes": size,
        "peak_rss_bytes": 2 * size,
        "step_seconds": 0.25,
        "variant": "bc",
        "depth": depth,
        "growth_rate": 12,
    } | changed


SWEEP = [
    *(point(100, "naive", 9_000_000), point(100, "memory-efficient", 3_000_000)),
    *(point(40, "naive", 3_000_000), point(40, "memory-efficient", 1_000_000)),
]


def results(path: Path, points: Any) -> Path:
    path.write_text(json.dumps({"schema_version": 1, "points": points}), encoding="utf-8")
    return path


def test_published_curves_alone(drawn: Drawn) -> None:
    said = drawn(memory())
    assert said["measured"] == []
    curves = {one["name"]: one["points"] for one in said["published"]["series"]}
    assert curves["Lua, naive"][-1] == {"depth": 154, "gigabytes": 11.24}
    assert "1707.06990" in said["caption"]


def test_measured_curves(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> None:
    path = results(tmp_path_factory.mktemp("in") / "training-memory.json", SWEEP)
    naive, efficient = read_results(path)
    assert (naive.mode, naive.points) == (
        *("naive", (Step(40, 3_000_000, 6_000_000, 0.25), Step(100, 9_000_000, 18_000_000, 0.25))),
    )
    assert naive.name == efficient.name == "DenseNet-BC (k = 12), batch 16 of 3x32x32, fp32"
    picture = memory([naive, efficient], path.name)
    said = drawn(picture)
    assert [one["mode"] for one in said["measured"]] == ["naive", "memory-efficient"]
    assert "training-memory.json" in said["caption"]
    assert picture.lines[0] == (naive.name, "naive", "40", "3.0 MB", "250 ms")


def test_what_is_no_sweep_is_left_out(tmp_path: Path) -> None:
    alone = point(190, "naive", 5, growth_rate=40, batch=4)
    again = point(100, "naive", 9_000_000)  # a claim repeats a point of the sweep
    other = [point(d, "naive", d, variant="plain") for d in (10, 13)]
    path = results(tmp_path / "x.json", [*SWEEP, alone, again, *other, point(40, "torchvision", 7)])
    found = read_results(path)
    assert [(one.name.partition(",")[0], one.mode, len(one.points)) for one in found] == [
        ("DenseNet-BC (k = 12)", "naive", 2),
        ("DenseNet-BC (k = 12)", "memory-efficient", 2),
        ("DenseNet (k = 12)", "naive", 2),
    ]


def test_several_sweeps_are_drawn(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> None:
    other = [point(d, "naive", d * 1000, variant="plain", batch=2) for d in (40, 100)]
    path = results(tmp_path_factory.mktemp("in") / "x.json", [*SWEEP, *other])
    assert len(drawn(memory(read_results(path), path.name))["measured"]) == 3


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "{}", '{"points": 3}', '{"points": []}', '{"points": [3]}'),
        json.dumps({"points": SWEEP[:2]}),  # one depth is no curve
        json.dumps({"points": [point(40, "naive", 0), point(46, "naive", 1)]}),
        json.dumps({"points": [point(40, "naive", True), point(46, "naive", 1)]}),
        json.dumps({"points": [point(40, "naive", 1, variant=3), point(46, "naive", 1)]}),
        json.dumps({"points": [point(40, "naive", 1, input_shape=3), point(46, "naive", 1)]}),
        json.dumps({"points": [{"depth": 40}]}),
        json.dumps({"points": [point(d, "naive", 1, peak_rss_bytes=-1) for d in (40, 46)]}),
        json.dumps({"points": [point(d, "naive", 1, step_seconds=0) for d in (40, 46)]}),
        json.dumps({"points": [point(d, "naive", 1, step_seconds="x") for d in (40, 46)]}),
        json.dumps({"points": [point(40, ["naive"], 1), point(46, "naive", 1)]}),  # type: ignore[arg-type]
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="holds no memory against depth") as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FileNotFoundError"):
        read_results(tmp_path / "none.json")


@pytest.mark.usefixtures("one_thread")
def test_the_suite_that_measures_writes_what_is_drawn(tmp_path: Path) -> None:
    """Points as the suite's own code makes them, measured on tiny networks."""
    from densenet_deploy import held_memory, training_memory
    from densenet_deploy.training_step import TrainingStep
    from densenet_deploy.training_suite import DepthSweep, MemoryLimit, Mode, StepTask

    def held(mode: Mode) -> held_memory.Held:
        task = StepTask(limit.model, mode, limit.batch)
        return held_memory.Held(task, held_memory.held_bytes(TrainingStep(task)), 1)

    sweep = DepthSweep((10, 16), growth_rate=4, batch=2)
    points = []
    for depth in sweep.depths:
        limit = MemoryLimit(sweep.model(depth), sweep.batch)
        saved = training_memory.Saved(
            limit, held("naive"), held("memory-efficient"), (1.0, 3.0), (2.0,), 1
        )
        points += training_memory._points(saved)
    found = read_results(results(tmp_path / "x.json", points))
    assert [one.mode for one in found] == ["naive", "memory-efficient"]
    assert found[0].name == "DenseNet-BC (k = 4), batch 2 of 3x32x32, fp32"
    for naive, efficient in zip(found[0].points, found[1].points, strict=True):
        assert efficient.held_bytes < naive.held_bytes
        assert (naive.step_seconds, efficient.step_seconds) == (2.0, 2.0)
