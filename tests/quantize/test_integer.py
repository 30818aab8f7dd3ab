"""Moving DequantizeLinear changes no number, and happens only where it may."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.export import to_bytes
from densenet_deploy.quantize.dialect import Scale
from densenet_deploy.quantize.integer import compute_in_integers, round_limits, selected_scale
from densenet_deploy.quantize.qdq import add_pair
from tests.graphs import graph, normal, operators, run_onnxruntime, run_reference

SAME = Scale(np.float32(0.03), np.uint8(100))
LIMITS = {"t": normal(4, 1, 1, seed=5), "u": normal(8, 1, 1, seed=6)}
POOL = "MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>"
BODIES = {
    "Concat": "z = Concat <axis = 1>(a, b)",
    "Concat of pixels": "z = Concat <axis = -1>(a, b)",
    "MaxPool": f"z = {POOL}(a)",
    "Max": "z = Max(a, t)",
    "Min": "z = Min(t, a)",
    "Max of two": "z = Max(a, b)",
    "a dense layer": f"p = {POOL}(a) q = {POOL}(b) k = Concat <axis = 1>(p, q)"
    " m = Max(k, u) z = Min(m, u)",
}


def quantized(body: str, scales: Sequence[Scale]) -> ir.Model:
    """A graph from x to y = -z, where `a` and `b`, as far as used, lie behind Q/DQ pairs."""
    used = {name: array for name, array in LIMITS.items() if name in re.findall(r"\w+", body)}
    model = graph(f"a = Neg(x) b = Sin(x) {body} y = Neg(z)", used)
    values = [node.outputs[0] for node in model.graph][:2]
    for value, scale in zip(values, scales, strict=False):
        if value.uses():
            add_pair(model.graph, value, scale, [(use.node, use.idx) for use in value.uses()])
    return model


def moved(model: ir.Model) -> ir.Model:
    copy = model.clone()
    compute_in_integers(copy.graph)
    to_bytes(copy)
    return copy


@pytest.mark.parametrize("scale", [SAME, Scale(np.float32(0.02), np.int8(0))], ids=["u8", "s8"])
@pytest.mark.parametrize("body", BODIES)
def test_the_same_numbers(body: str, scale: Scale) -> None:
    model = quantized(BODIES[body], [scale, scale])
    round_limits(model.graph)
    result = moved(model)
    *_, writer, dequantize, _ = result.graph
    assert writer.op_type == re.findall(r"z = (\w+)", BODIES[body])[0]
    assert dequantize.inputs[0] is writer.outputs[0] and dequantize.op_type == "DequantizeLinear"
    assert writer.outputs[0].dtype == (ir.DataType.UINT8 if scale is SAME else ir.DataType.INT8)
    assert selected_scale(dequantize.outputs[0]) == scale
    images = normal(2, 4, 8, 8)
    for run in (run_reference, run_onnxruntime):
        np.testing.assert_array_equal(run(result, images), run(model, images))


@settings(max_examples=20, derandomize=True)
@given(st.floats(0.004, 0.1), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_the_same_numbers_whatever_the_scale(step: float, zero: int, seed: int) -> None:
    scale = Scale(np.float32(step), np.uint8(zero))
    model = quantized(BODIES["a dense layer"], [scale, scale])
    round_limits(model.graph)
    images = 3 * normal(2, 4, 8, 8, seed=seed)
    found, expected = run_onnxruntime(moved(model), images), run_onnxruntime(model, images)
    np.testing.assert_array_equal(found, expected)
    levels = -found / scale.scale
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3, err_msg="all on the grid")


@pytest.mark.parametrize(
    "other", [Scale(np.float32(0.031), np.uint8(100)), Scale(np.float32(0.03), np.uint8(99)), None]
)
@pytest.mark.parametrize("body", ["Concat", "Max of two", "a dense layer"])
def test_different_scales_stay_apart(body: str, other: Scale | None) -> None:
    model = quantized(BODIES[body], [SAME, other] if other else [SAME])
    result = moved(model)
    joins = [node for node in result.graph if node.op_type in ("Concat", "Max", "Min")]
    assert all(value.dtype == ir.DataType.FLOAT for node in joins for value in node.outputs)
    assert selected_scale(joins[-1].outputs[0]) is None
    images = normal(2, 4, 8, 8)
    np.testing.assert_array_equal(run_reference(result, images), run_reference(model, images))


def test_other_readers_of_what_is_moved() -> None:
    model = quantized("k = Concat <axis = 1>(a, b) s = Sigmoid(k) z = Add(k, s)", [SAME, SAME])
    result = moved(model)
    assert operators(result)["DequantizeLinear"] == 3, "those of a and b are unused now"
    images = normal(2, 4, 8, 8)
    np.testing.assert_array_equal(run_reference(result, images), run_reference(model, images))


def test_limits_are_rounded_to_the_grid_and_saturate() -> None:
    limits = np.array([0.031, -0.044, 1e38, -3.4e38], np.float32).reshape(4, 1, 1)
    model = graph("a = Neg(x) m = Max(a, t) y = Min(m, t)", {"t": limits})
    add_pair(model.graph, model.graph[0].outputs[0], SAME, [(model.graph[1], 0)])
    round_limits(model.graph)
    expected = np.array([1, -1, 155, -100]).reshape(4, 1, 1) * np.float32(0.03)
    for node in list(model.graph)[-2:]:
        stored = node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
        np.testing.assert_allclose(stored, expected, rtol=1e-6)
    np.testing.assert_array_equal(limits, limits)


def test_limits_of_what_is_not_quantized_stay() -> None:
    model = graph("y = Max(x, t)", {"t": LIMITS["t"]})
    round_limits(model.graph)
    compute_in_integers(model.graph)
    assert operators(model) == {"Max": 1}
    np.testing.assert_array_equal(model.graph.initializers["t"].const_value.numpy(), LIMITS["t"])
