"""A traffic suite from its file to verdicts: on a tiny net where TensorRT-RTX is installed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.engine.layers import EngineLayers, Layer, Tensor
from densenet_deploy.errors import MissingDependencyError, RecipeError
from densenet_deploy.suite import GraphKind, TrafficLimit, TrafficSuite
from densenet_deploy.weigh import Weighed, Weighing, weigh

pytestmark = pytest.mark.usefixtures("one_thread")
GRAPHS: tuple[GraphKind, ...] = ("plain-fp16", "fp16", "quantize-static-tensorrt", "int8")


def suite_of(model: Path | str, *limits: TrafficLimit) -> TrafficSuite:
    return TrafficSuite("small", (str(model),), GRAPHS, limits)


@pytest.fixture(scope="module")
def found(tiny_recipe: Path) -> Weighing:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    limits = (
        TrafficLimit("int8", float_convolutions=("features.conv0",)),
        TrafficLimit("int8", megabytes=100, goal=1e-6),
        TrafficLimit("fp16", megabytes=1e-6),
    )
    return weigh(suite_of(tiny_recipe, *limits))


def test_every_graph_is_compiled(found: Weighing, tiny_recipe: Path) -> None:
    assert [one.graph for one in found.weighed] == list(GRAPHS)
    assert {one.model for one in found.weighed} == {str(tiny_recipe)}
    assert len({one.graph_sha256 for one in found.weighed}) == 4
    for one in found.weighed:
        assert one.bytes_in > 0 and one.bytes_out > 0 and one.engine_bytes > 1000
        wide = set(one.layers.without_int8())
        if "fp16" in one.graph:
            assert one.int8_convolutions == 0 and len(wide) == one.convolutions > 1
        else:
            assert wide <= {"features.conv0"}


def test_limits_are_held_where_they_are_made(found: Weighing) -> None:
    plain, ours, naive, int8 = found.weighed
    assert (plain.verdict, naive.verdict) == (None, None)
    assert (ours.verdict, ours.goal_verdict) == ("fail", None)
    assert (int8.verdict, int8.goal_verdict) == ("pass", "fail")
    assert not found and replace(found, weighed=(plain, naive, int8))


def test_the_record_is_json(found: Weighing) -> None:
    told = json.loads(json.dumps(found.to_dict()))
    assert told["schema_version"] == 1 and told["passed"] is False
    assert told["suite"]["kind"] == "traffic" and told["builder"].startswith("tensorrt-rtx ")
    assert told["models"][0]["speed_only"] is True
    for row, one in zip(told["results"], found.weighed, strict=True):
        assert row["bytes"] == row["bytes_in"] + row["bytes_out"] == round(1e6 * one.megabytes)
        assert sum(role["bytes_in"] for role in row["roles"].values()) == row["bytes_in"]
        assert row["target"] == ("tensorrt-rtx" if row["graph"] in ("fp16", "int8") else None)
        assert row["kernels"] > row["convolutions"] > 0


def layer(name: str, dtype: str, size: int) -> Layer:
    data, written = Tensor("x", dtype, (1, size)), Tensor("y", "Half", (1, size))
    return Layer(name, "correlation", "kernel", (data,), (written,), (name,), name, name)


def weighed(*limits: TrafficLimit) -> Weighed:
    """A stem that reads half and a convolution that reads int8: 7 MB."""
    layers = (layer("features.conv0", "Half", 1_000_000), layer("features.conv1", "Int8", 1000_000))
    return Weighed("net", "int8", EngineLayers(layers), limits, "0" * 64, 1, 1, 1.0, 1.0)


@pytest.mark.parametrize(
    "limits, failures",
    [
        ([{"megabytes": 7.0, "goal": 7.0}], []),
        ([{"megabytes": 6.9}], ["7.00 MB, allowed 6.9"]),
        ([{"megabytes": 8.0}, {"megabytes": 6.0}], ["7.00 MB, allowed 6.0"]),
        ([{"float_convolutions": ("features.conv0",)}], []),
        ([{"float_convolutions": ("features.conv0", "another")}], []),
        ([{"float_convolutions": ()}], ["features.conv0 does not read Int8"]),
    ],
    ids=str,
)
def test_limits(limits: list[dict[str, Any]], failures: list[str]) -> None:
    one = weighed(*(TrafficLimit("int8", **limit) for limit in limits))
    assert (one.megabytes, one.int8_convolutions, one.convolutions) == (7.0, 1, 2)
    assert list(one.failures) == failures
    assert one.verdict == ("fail" if failures else "pass")
    assert all(failure in one.summary() for failure in failures)


def test_without_limits_there_is_no_verdict() -> None:
    one = weighed(TrafficLimit("int8", goal=6.0))
    assert one and (one.verdict, one.goal_verdict) == (None, "fail")
    assert (weighed().verdict, weighed().goal_verdict) == (None, None)


def test_nothing_is_compiled_where_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densenet_deploy.weigh.prepare", pytest.fail)
    monkeypatch.setattr("densenet_deploy.weigh.engine_version", lambda backend: "1.0")
    with pytest.raises(RecipeError, match="unknown model 'vgg16'"):
        weigh(suite_of("densenet121"), models=("densenet121", "vgg16"))
    monkeypatch.undo()
    monkeypatch.setattr("densenet_deploy.weigh.prepare", pytest.fail)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match="not installed"):
        weigh(suite_of("densenet121"))
