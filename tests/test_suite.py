"""Suites: what a file may say, what is refused, and the shipped ones."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy import suite as suites
from densenet_deploy.choose import find_recipe
from densenet_deploy.embedding_suite import EmbeddingSuite
from densenet_deploy.errors import RecipeError
from densenet_deploy.inference_suite import InferenceMemorySuite
from densenet_deploy.recipe import DataConfig, load_recipe
from densenet_deploy.rivals import find_recipes, lot_of
from densenet_deploy.spec import DenseNetSpec, variant
from densenet_deploy.study import check_alike
from densenet_deploy.study_suite import StudySuite
from densenet_deploy.suite import (
    KINDS,
    AccuracySuite,
    Comparison,
    LatencySuite,
    Side,
    Suite,
    TrafficLimit,
    TrafficSuite,
    load_suite,
)
from densenet_deploy.training_suite import (
    DepthSweep,
    MemoryLimit,
    TrainingMemorySuite,
    TrainingSpeedSuite,
)

SUITE = """
kind = "latency"
name = "small"
models = ["densenet-bc-10-4", "densenet-bc-16-4"]
batch_sizes = [1, 2]

[[sides]]
name = "before"
graph = "plain"
backend = "onnxruntime"

[[sides]]
name = "after"
graph = "fp32"
backend = "openvino"

[[comparisons]]
candidate = "after"
baseline = "before"
batch_sizes = [2]
floor = 1
goal = 1.5

[[comparisons]]
candidate = "before"
baseline = "after"
models = ["densenet-bc-16-4"]
"""
STUDY = {
    "kind": "training-accuracy",
    "name": "small",
    "recipes": ["study-densenet"],
    "seeds": [0, 3],
}
EMBEDDING = {"kind": "embedding", "name": "small", "models": ["densenet-bc-10-4"]}
ACCURACY = """
kind = "accuracy"
name = "small"
recipe = "fashion-mnist"
targets = ["openvino", "tensorrt"]
seeds = [0, 7]

[contract]
mean_drop = 0.1
upper_drop = 0.3
agreement = 99
agreement_goal = 99.5
"""
TRAFFIC = """
kind = "traffic"
name = "small"
models = ["densenet-bc-10-4", "densenet-bc-16-4"]
graphs = ["plain-fp16", "int8"]

[[limits]]
graph = "int8"
float_convolutions = []

[[limits]]
graph = "int8"
models = ["densenet-bc-16-4"]
megabytes = 2
goal = 1.5
"""
INFERENCE = {"kind": "inference-memory", "name": "small", "models": ["resnet50"]}
MEMORY = {
    "kind": "training-memory",
    "name": "small",
    "limits": [{"model": "densenet-bc-10-4", "batch": 2}],
}
SPEED = {
    "kind": "training-speed",
    "name": "small",
    "comparisons": [
        {
            "model": "densenet121",
            "candidate": "memory-efficient",
            "baseline": "torchvision",
            "batch_sizes": [1],
        }
    ],
}
SHIPPED = sorted(path.stem for path in suites.suite_folder().glob("*.toml"))


def parse(tmp_path: Path, text: str) -> Suite:
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    return load_suite(str(path))


def latency(tmp_path: Path) -> LatencySuite:
    found = parse(tmp_path, SUITE)
    assert isinstance(found, LatencySuite)
    return found


def test_a_file_becomes_a_suite(tmp_path: Path) -> None:
    found = latency(tmp_path)
    assert found.sides == (
        Side("before", "plain", "onnxruntime"),
        Side("after", "fp32", "openvino"),
    )
    assert (found.pairs, found.block, found.threads, found.description) == (24, 4, 0, "")
    claim = found.comparisons[0]
    assert (claim.floor, claim.goal, claim.batch_sizes) == (1.0, 1.5, (2,))
    assert found.to_dict()["comparisons"][0]["candidate"] == "after"


def test_only_lowered_graphs_have_a_target() -> None:
    assert Side("a", "plain", "onnxruntime").lowered_for is None
    assert Side("a", "quantize-static", "onnxruntime").lowered_for is None
    assert Side("a", "int8", "openvino").lowered_for == "openvino"
    assert Side("a", "fp32", "openvino", "tensorrt").lowered_for == "tensorrt"


def test_claims_are_made_where_the_file_says(tmp_path: Path) -> None:
    found = latency(tmp_path)
    first, second = found.comparisons
    assert found.comparisons_at("densenet-bc-10-4", 1) == ()
    assert found.comparisons_at("densenet-bc-10-4", 2) == (first,)
    assert found.comparisons_at("densenet-bc-16-4", 1) == (second,)
    assert found.comparisons_at("densenet-bc-16-4", 2) == (first, second)
    anywhere = (Comparison("after", "before"), Comparison("before", "after"))
    assert found.comparisons_at("densenet121", 2) == anywhere  # without floors
    assert found.comparisons_at("densenet-bc-10-4", 64) == anywhere


def test_an_accuracy_file_becomes_a_suite(tmp_path: Path) -> None:
    found = parse(tmp_path, ACCURACY)
    assert isinstance(found, AccuracySuite)
    assert (found.targets, found.seeds, found.threads) == (("openvino", "tensorrt"), (0, 7), 0)
    assert found.data == DataConfig(sample=False)  # nothing less than all images by default
    assert (found.contract.agreement, found.contract.agreement_goal) == (99.0, 99.5)
    assert found.to_dict()["contract"]["mean_drop"] == 0.1


def test_a_traffic_file_becomes_a_suite(tmp_path: Path) -> None:
    found = parse(tmp_path, TRAFFIC)
    assert isinstance(found, TrafficSuite) and found.compute_capability == "8.9"
    everywhere = TrafficLimit("int8", float_convolutions=())
    there = TrafficLimit("int8", ("densenet-bc-16-4",), 2.0, 1.5)
    assert found.limits == (everywhere, there)
    assert found.limits_at("densenet-bc-10-4", "int8") == (everywhere,)
    assert found.limits_at("densenet-bc-16-4", "int8") == (everywhere, there)
    assert found.limits_at("densenet-bc-16-4", "plain-fp16") == ()
    assert found.limits_at("densenet121", "int8") == ()  # claims nothing about others
    assert found.to_dict()["kind"] == "traffic"


def test_training_files_become_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"memory": limit(goal=1) | {"sweep": {"depths": [22, 40]}}, "speed": SPEED}
    path = tmp_path / "small.toml"
    monkeypatch.setattr(suites.schema, "load_table", lambda name, *_: (tables[name], path))
    memory, speed = load_suite("memory"), load_suite("speed")
    assert isinstance(memory, TrainingMemorySuite) and memory.sweep
    assert memory.limits == (MemoryLimit("densenet-bc-10-4", 2, goal=1.0),)
    assert [memory.sweep.model(depth) for depth in memory.sweep.depths] == [
        "densenet-bc-22-12",
        "densenet-bc-40-12",
    ]
    assert DepthSweep((40,), 12, "plain").model(40) == "densenet-40-12"
    assert (memory.pairs, memory.block) == (24, 4)
    assert isinstance(speed, TrainingSpeedSuite)
    (claim,) = speed.comparisons
    assert (claim.precisions, claim.floor, claim.input_shape) == (("fp32", "bf16"), None, None)
    assert speed.to_dict()["comparisons"][0]["baseline"] == "torchvision"


def change(*place: Any, value: Any, text: str = SUITE) -> dict[str, Any]:
    """A small suite with another value at a place."""
    table: dict[str, Any] = copy.deepcopy(tomllib.loads(text))
    inner: Any = table
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return table


def accuracy(*place: Any, value: Any) -> dict[str, Any]:
    return change(*place, value=value, text=ACCURACY)


def traffic(*place: Any, value: Any) -> dict[str, Any]:
    return change(*place, value=value, text=TRAFFIC)


def limit(**values: Any) -> dict[str, Any]:
    return MEMORY | {"limits": [MEMORY["limits"][0] | values]}  # type: ignore[operator]


def steps(**values: Any) -> dict[str, Any]:
    return SPEED | {"comparisons": [SPEED["comparisons"][0] | values]}  # type: ignore[operator]


@pytest.mark.parametrize(
    "table, message",
    [
        (change("side", value=1), "unknown key 'side' in the file (did you mean 'sides'?)"),
        (change("sides", 1, "graph", value="int4"), "sides[1] graph is 'int4', expected one of: "),
        (change("sides", 1, "backend", value="pytorch"), "expected one of: onnxruntime, openvino"),
        (change("sides", 0, "target", value="openvino"), "a plain graph is made for no target"),
        (change("sides", 0, "name", value="after"), "two sides are called 'after'"),
        (change("sides", 0, "name", value="now"), "names side 'before'; there are: now, after"),
        (change("comparisons", 0, "candidate", value="before"), "compared with itself"),
        (change("comparisons", 0, "floor", value="2"), "comparisons[0] floor is '2', expected a n"),
        (change("comparisons", 0, "floor", value=-1), "floor and goal must be positive"),
        (change("comparisons", 0, "floor", value=0), "floor and goal must be positive"),
        (change("comparisons", 0, "batch_sizes", value=[3]), "names batch size 3; there are: 1, 2"),
        (change("comparisons", 1, "models", value=["x"]), "a comparison names model 'x'"),
        (change("comparisons", value=[]), "side 'before' is in no comparison"),
        (change("pairs", value=19), "pairs must be at least 20, and a multiple of block"),
        (change("threads", value=-1), "threads must not be negative"),
        (change("models", value=[]), "models must not be empty"),
        (change("batch_sizes", value=[0]), "batch_sizes must be positive"),
        (change("kind", value="speed"), "kind is 'speed'; expected one of latency, accuracy, traf"),
        (change("kind", value=["latency"]), "kind is ['latency']; expected one of latency, "),
        (change("kind", value=None), "kind is missing; expected one of latency, accuracy, traffic"),
        (change("kind", value="traffic"), "unknown key 'sides' in the file"),
        (accuracy("targets", value=["cuda"]), "targets[0] is 'cuda', expected one of: tensorrt, "),
        (accuracy("targets", value=[]), "targets must not be empty"),
        (accuracy("seeds", value=[1, 1]), "seeds must not be empty, and each be named once"),
        (accuracy("seeds", value=[-1]), "seeds and threads must not be negative"),
        (
            accuracy("contract", "agreement", value=101),
            "agreement_goal must be in [0, 100]",
        ),
        (accuracy("contract", "mean", value=1), "unknown key 'mean' in contract"),
        (accuracy("contract", value={}), "contract mean_drop is missing"),
        (accuracy("data", value={"name": "imagenet"}), "data name is 'imagenet', expected one"),
        (traffic("models", value=[]), "models must not be empty"),
        (traffic("graphs", value=["int8", "int8"]), "graphs must not be empty, and each be named"),
        (traffic("graphs", value=["fp16"]), "a limit names graph 'int8', which is not compiled"),
        (traffic("limits", 1, "models", value=["x"]), "names model 'x'; there are: densenet-bc-10"),
        (traffic("limits", 1, "goal", value=0), "megabytes and goal must be positive"),
        (STUDY | {"recipes": []}, "recipes must not be empty, and each be named once"),
        (STUDY | {"seeds": [1, 1]}, "seeds must not be empty, and each be named once"),
        (STUDY | {"seeds": [0, -1]}, "seeds must not be negative"),
        (STUDY | {"epochs": 1}, "unknown key 'epochs'"),
        (EMBEDDING | {"models": []}, "models must not be empty"),
        (EMBEDDING | {"precisions": ["fp32", "fp32"]}, "precisions must not be empty, and each"),
        (EMBEDDING | {"precisions": ["bf16"]}, "precisions[0] is 'bf16', expected one of: fp32"),
        (EMBEDDING | {"floor": 0}, "floor and starts must be positive"),
        (EMBEDDING | {"starts": 0}, "floor and starts must be positive"),
        (EMBEDDING | {"pairs": 3}, "pairs must be at least 20"),
        (EMBEDDING | {"block": 5}, "pairs must be at least 20, and a multiple of block"),
        (EMBEDDING | {"backend": "tensorrt"}, "backend is 'tensorrt', expected one of: openvino"),
        (MEMORY | {"limits": []}, "limits must not be empty"),
        (MEMORY | {"limits": 2 * MEMORY["limits"]}, "and name each model once"),
        (limit(held=0), "limits[0]: held, goal and seconds must be positive"),
        (limit(batch=0), "limits[0]: batch must be positive"),
        (MEMORY | {"sweep": {"depths": [40, 22]}}, "sweep: depths must rise"),
        (MEMORY | {"sweep": {"depths": [22], "batch": 0}}, "sweep: depths must rise, and batch"),
        (INFERENCE | {"batch_sizes": []}, "batch_sizes must not be empty, and each be named once"),
        (INFERENCE | {"batch_sizes": [0]}, "batch_sizes must be positive"),
        (INFERENCE | {"models": ["a", "a"]}, "models must not be empty, and each be named once"),
        (INFERENCE | {"threads": -1}, "threads not negative"),
        (MEMORY | {"block": 6}, "and a multiple of block, 5 times at least"),
        (MEMORY | {"block": 7}, "pairs must be at least 20, and a multiple of block"),
        (MEMORY | {"threads": -1}, "threads must not be negative"),
        (SPEED | {"comparisons": []}, "comparisons must not be empty"),
        (SPEED | {"pairs": 19}, "pairs must be at least 20"),
        (steps(baseline="memory-efficient"), "'memory-efficient' is compared with itself"),
        (steps(batch_sizes=[]), "precisions must not be empty and batch_sizes must be positive"),
        (steps(precisions=["fp16"]), "precisions[0] is 'fp16', expected one of: fp32, bf16"),
        (steps(floor=-1), "floor and goal must be positive"),
        (steps(input_shape=[1, 28, 28]), "torchvision's models have an input_shape of their own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(
    table: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.toml"
    monkeypatch.setattr(suites.schema, "load_table", lambda *_: (table, path))
    with pytest.raises(RecipeError) as caught:
        load_suite("small")
    assert message in str(caught.value)
    assert str(caught.value).startswith("small.toml: ")


def test_a_file_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no suite 'nothing'; expected .* one of: .*int8-cpu"):
        load_suite("nothing")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        parse(tmp_path, "name = ")


def test_the_package_ships_suites() -> None:
    int8 = ["int8-accuracy", "int8-cpu", "int8-family", "int8-traffic"]
    rivals = ["resnet-cpu", "small-data"]
    training = ["training-memory", "training-speed"]
    assert {"embedding", "fp32-cpu", "inference-memory", *int8, *training, *rivals} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suites_can_run(name: str) -> None:
    found = load_suite(name)
    assert found.name == name and found.description
    assert type(found) is KINDS[found.kind]
    if isinstance(found, AccuracySuite):
        assert load_recipe(found.recipe).model.weights
        return
    if isinstance(found, TrainingMemorySuite | TrainingSpeedSuite):
        claims = found.limits if isinstance(found, TrainingMemorySuite) else found.comparisons
        assert all(isinstance(variant(claim.model), DenseNetSpec) for claim in claims)
        return
    if isinstance(found, InferenceMemorySuite):
        assert found.models == ("densenet121", "resnet50")
        return
    if isinstance(found, StudySuite):
        check_alike([load_recipe(recipe) for recipe in found.recipes])
        return
    recipes = {model: find_recipe(model) for model in found.models}
    if isinstance(found, EmbeddingSuite):  # an unknown model would have been refused
        return
    for model, recipe in recipes.items():
        assert recipe.model.weights == ""
        if isinstance(found, TrafficSuite):
            assert any(found.limits_at(model, graph) for graph in found.graphs)
        else:
            assert all(found.comparisons_at(model, batch) for batch in found.batch_sizes)


def test_the_shipped_accuracy_suite_asks_about_every_image() -> None:
    found = load_suite("int8-accuracy")
    assert isinstance(found, AccuracySuite)
    assert found.data == DataConfig("fashion-mnist", sample=False, test_images=0)
    assert len(found.seeds) == 3 and len(found.targets) == 4


def test_shipped_rivals_take_the_same_images() -> None:
    found = load_suite("resnet-cpu")
    assert isinstance(found, LatencySuite)
    lots = [lot_of(found, model, batch) for model in found.models for batch in found.batch_sizes]
    find_recipes(lots)  # refuses others
    named = {lot.model: lot.networks[1:] for lot in lots}
    assert named == {
        "densenet121": ["resnet34", "resnet50"],
        "densenet169": ["resnet50"],
        "densenet201": ["resnet34", "resnet101"],
        "densenet-bc-100-12": ["resnet-preact-b-74"],
    }
    assert all(comparison.floor is None for comparison in found.comparisons)
