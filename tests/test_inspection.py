"""Inspecting a model for real: every target, both precisions, and a rule that is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy import inspection
from densenet_deploy.choose import find_recipe
from densenet_deploy.errors import DataError
from densenet_deploy.graph_costs import costs_of
from densenet_deploy.inspection import Inspection, inspect_model
from densenet_deploy.quantize.int8 import to_int8
from densenet_deploy.recipe import Recipe, Target, load_recipe
from densenet_deploy.rewrite import INT8_RULES, RULES, Outcome, Rule, pool_before_conv
from densenet_deploy.source import Source
from densenet_deploy.spec import variant
from tests.test_graph_costs import saved

pytestmark = pytest.mark.usefixtures("one_thread", "export_once")
TARGETS: tuple[Target, ...] = get_args(Target)


_PLAIN: dict[tuple[Any, ...], bytes] = {}


@pytest.fixture
def export_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes longest, and gives the same bytes for the same weights."""
    export = inspection._plain

    def cached(source: Source, opset: int) -> bytes:
        key = (source.model.spec, repr(source.training), opset)
        if key not in _PLAIN:
            _PLAIN[key] = export(source, opset)
        return _PLAIN[key]

    monkeypatch.setattr(inspection, "_plain", cached)


@pytest.fixture
def tiny(tiny_recipe: Path) -> Recipe:
    recipe = load_recipe(str(tiny_recipe))
    return replace(recipe, quantize=replace(recipe.quantize, method="minmax"))


def names(rules: tuple[Rule, ...]) -> list[str]:
    return [rule.__name__ for rule in rules]  # type: ignore[attr-defined]


def check_certificates(found: Inspection) -> None:
    assert found, found.summary()
    double, single = found.certificates
    assert (double.bound, single.bound) == (1e-12, 1e-5)
    assert double.difference <= 1e-12 and 0 < single.difference <= 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_float_rewrites(tiny: Recipe, target: Target) -> None:
    found = inspect_model(tiny, target)
    check_certificates(found)
    spec = variant("densenet-bc-10-4", (1, 12, 12), 10)
    assert [step.rule for step in found.steps] == names(RULES[target])
    assert found.plain.macs == spec.macs
    assert found.steps[0].applied == ("features.transition1.conv", "features.transition2.conv")
    assert found.steps[-1].costs.macs == spec.macs - saved(spec)
    assert found.certificates[0].images == "4 images at full size"
    assert (found.policy, found.blocks, found.silenced) == ("", (), None)


@pytest.mark.parametrize("target", TARGETS)
def test_int8_rewrites(tiny: Recipe, target: Target) -> None:
    found = inspect_model(tiny, target, "int8")
    check_certificates(found)
    *before, last = (step.rule for step in found.steps)
    rules = names(INT8_RULES[target])
    assert last == "quantize" and before[-len(rules) :] == rules
    assert before[0] == "unfold_preactivation" and "equalize_concat" in before
    assert found.policy == "equalized" and found.silenced is not None
    assert [block.block for block in found.blocks] == [
        f"features.denseblock{number}" for number in (1, 2, 3)
    ]
    *_, lowered, quantized = (step.costs for step in found.steps)
    assert quantized.weight_bytes < lowered.weight_bytes
    assert "QuantizeLinear" in quantized.nodes and "QuantizeLinear" not in lowered.nodes
    told = found.to_dict()
    assert json.loads(json.dumps(told)) == json.loads(json.dumps(told, allow_nan=False))
    assert [block["block"] for block in told["blocks"]] == [b.block for b in found.blocks]
    assert all(block.summary() in found.summary() for block in found.blocks)


def test_int8_after_the_float_rewrites(tiny: Recipe) -> None:
    config = replace(tiny.quantize, policy="after-bn-relu")
    found = inspect_model(replace(tiny, quantize=config), "tensorrt", "int8")
    check_certificates(found)
    assert "equalize_concat" not in [step.rule for step in found.steps]
    assert found.steps[-2].rule == "fold_preactivation" and found.steps[-2].applied
    assert (found.blocks, found.silenced) == ((), None)


def test_int8_of_a_policy_that_a_measurement_decides(tiny: Recipe) -> None:
    found = inspect_model(
        replace(tiny, quantize=replace(tiny.quantize, policy="auto")), "openvino", "int8"
    )
    assert found and found.policy == "equalized"


def test_the_quantized_graph_is_the_one_that_quantize_makes(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def spy(*arguments: Any) -> Any:
        made.append(to_int8(*arguments))
        return made[-1]

    monkeypatch.setattr(inspection, "to_int8", spy)
    found = inspect_model(tiny, "onnxruntime", "int8")
    assert found.steps[-1].costs == costs_of(made[0].model)
    assert found.steps[-2].costs == costs_of(made[0].reference)
    assert found.steps[-1].applied == made[0].quantized


def test_a_recipe_with_trained_weights(fashion_recipe: Recipe) -> None:
    found = inspect_model(fashion_recipe, "tensorrt-rtx")
    check_certificates(found)
    spec = variant("densenet-bc-40-12", (1, 28, 28), 10)
    assert found.plain.macs == spec.macs
    assert [len(step.applied) for step in found.steps] == [2, 21]
    first, *_ = found.summary().splitlines()
    assert first == "fashion-mnist, fp32 for tensorrt-rtx, costs of one image"


def test_trained_weights_without_images(fashion_recipe: Recipe) -> None:
    none = replace(fashion_recipe, data=replace(fashion_recipe.data, name="synthetic"))
    assert inspect_model(none, "onnxruntime")
    with pytest.raises(DataError, match="int8 with 0 calibration images"):
        inspect_model(none, "onnxruntime", "int8")


def almost(graph: ir.Graph) -> Outcome:
    """Changes one weight by one part in a million."""
    outcome = Outcome("almost")
    conv = next(node for node in graph if node.op_type == "Conv")
    weight = conv.inputs[1]
    assert weight is not None and weight.const_value is not None
    array = weight.const_value.numpy()
    changed = array * array.dtype.type(1 + 1e-6)
    weight.const_value = ir.tensor(changed, name=weight.name)
    outcome.apply(conv.name)
    return outcome


def spoils(graph: ir.Graph) -> Outcome:
    """Makes a weight into something that is not a number."""
    outcome = almost(graph)
    conv = next(node for node in graph if node.op_type == "Conv")
    weight = conv.inputs[1]
    assert weight is not None and weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.nan, name=weight.name)
    return outcome


@pytest.mark.parametrize(("rule", "verdicts"), [(almost, [False, True]), (spoils, [False, False])])
def test_a_rule_that_is_wrong(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch, rule: Rule, verdicts: list[bool]
) -> None:
    monkeypatch.setitem(RULES, "tensorrt", (pool_before_conv, rule))
    found = inspect_model(tiny, "tensorrt")
    assert not found and [bool(item) for item in found.certificates] == verdicts
    assert "NOT EQUAL" in found.summary()
    assert found.to_dict()["passed"] is False
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "shape", "count", "size"),
    [
        ("densenet121", None, 1, (64, 64)),
        ("densenet121", (3, 225, 225), 1, (225, 225)),
        ("densenet-bc-190-40", None, 1, (16, 16)),
        ("densenet-bc-40-12", (1, 28, 28), 4, (28, 28)),
    ],
)
def test_what_numpy_takes_seconds_for(
    name: str, shape: tuple[int, int, int] | None, count: int, size: tuple[int, int]
) -> None:
    spec = variant(name, shape)
    images = np.zeros((8, *spec.input_shape), np.float32)
    found, what = inspection._for_reference(images, spec)
    assert (len(found), found.shape[2:]) == (count, size)
    assert what.startswith(f"{count} image")


def test_a_plain_densenet() -> None:
    found = inspect_model(find_recipe("densenet-10-4"), "tensorrt")
    check_certificates(found)
    assert not [refusal for step in found.steps for refusal in step.refusals]
