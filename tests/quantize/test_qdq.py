"""Stored integers against the numbers they stand for, as onnx.reference computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from densenet_deploy.export import to_bytes
from densenet_deploy.quantize.dialect import DIALECTS, Dialect, Scale, activation_scale
from densenet_deploy.quantize.qdq import add_pair, quantize_weight, scale_of, set_parameters
from densenet_deploy.recipe import WeightScales
from tests.graphs import (
    arrays,
    difference,
    graph,
    nodes_of,
    normal,
    operators,
    run_onnxruntime,
    run_openvino,
    run_reference,
)

FORMS: tuple[WeightScales, ...] = get_args(WeightScales)
SCALE = Scale(np.float32(1 / 128), np.int8(0))


def dialect(form: WeightScales, half: bool = False) -> Dialect:
    """What TensorRT takes, with another form of weights."""
    return replace(DIALECTS["tensorrt"], weights=form, half=half)


def steps(weight: NDArray[Any], form: WeightScales) -> NDArray[Any]:
    """Distance of two levels, by channel, in exact arithmetic."""
    rows = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    return np.full_like(rows, rows.max()) if form == "per-tensor" else rows


@settings(max_examples=100, derandomize=True)
@given(
    st.sampled_from(FORMS),
    st.booleans(),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 3])),
    st.floats(-3, 2),
    st.integers(0, 2**32 - 1),
)
def test_a_weight_is_off_by_half_a_step(
    form: WeightScales, half: bool, shape: tuple[int, int, int], exponent: float, seed: int
) -> None:
    weight = normal(*shape, shape[2], seed=seed) * np.float32(10**exponent)
    weight *= np.exp(normal(len(weight), 1, 1, 1, seed=seed + 1))
    weight[-1, 0] *= 0 if len(weight) > 1 else 1
    found = quantize_weight(weight, dialect(form, half))
    assert found.levels.dtype == np.int8 and np.abs(found.levels.astype(int)).max() <= 127
    assert found.scales.shape == ((len(weight),) if form == "per-channel" else (1,))
    assert (found.multiplier is not None) == (form == "per-channel-mul")
    # Scales round in half by one part in 2048 each, of up to 127 levels; its least is 6e-5.
    slack = 2 * 127 / 2048 if half else 1e-4
    step = np.maximum(steps(weight, form), 6.2e-5 if half else 0)
    if half and form == "per-channel-mul":
        step = np.maximum(step, 6.2e-5 * found.scales)
    error = np.abs(found.dequantized() - weight).reshape(len(weight), -1).max(1)
    assert (error <= (0.5 + slack) * step + 1e-12).all()
    if half:
        for stored in (found.scales, found.multiplier):
            assert stored is None or (stored == stored.astype(np.float16)).all()


def convolution(
    weight: NDArray[Any], bias: NDArray[Any], target: Dialect, tail: str = "y = Relu(c)"
) -> tuple[ir.Model, NDArray[Any]]:
    """x -> Q/DQ -> Conv -> tail with parameters as the target takes them, and the weight."""
    model = graph(f"c = Conv(x, w) {tail}", {"w": weight})
    (conv,) = nodes_of(model, "Conv")
    source = model.graph.inputs[0]
    scale = SCALE if target.signed else activation_scale(0, 255 / 128, target)
    add_pair(model.graph, source, scale, [(conv, 0)])
    stored = quantize_weight(weight, target)
    set_parameters(model.graph, conv, stored, bias, target)
    return ir.from_proto(ir.to_proto(model)), stored.dequantized()


TARGETS = {form: dialect(form) for form in FORMS} | {"integers": DIALECTS["onnxruntime"]}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("form", TARGETS)
def test_the_graph_computes_what_the_weight_stands_for(form: str, biased: bool) -> None:
    weight, bias = normal(3, 4, 1, 1, seed=1), normal(3, seed=2).astype(np.float64) * biased
    model, exact = convolution(weight, bias, TARGETS[form], "y = Identity(c)")
    to_bytes(model)
    images = np.zeros((4, 4, 8, 8), np.float32)
    images[range(4), range(4)] = 0.5  # on a level
    expected = np.broadcast_to((0.5 * exact[:, :, 0, 0].T + bias)[..., None, None], (4, 3, 8, 8))
    product = steps(weight, "per-channel").max() / 128 if form == "integers" else 0
    for run in (run_reference, run_onnxruntime, run_openvino):
        assert np.abs(run(model, images) - expected).max() <= 1.01 * product + 1e-6


def test_forms_of_a_bias() -> None:
    weight, bias = normal(3, 4, 1, 1), normal(3, seed=2).astype(np.float64)
    found = {form: convolution(weight, bias, target)[0] for form, target in TARGETS.items()}
    for form in ("per-channel", "per-tensor"):
        (conv,) = nodes_of(found[form], "Conv")
        stored = arrays(found[form])[str(conv.inputs[2].name)]  # type: ignore[union-attr]
        np.testing.assert_array_equal(stored, bias.astype(np.float32))
    behind = [node.op_type for node in found["per-channel-mul"].graph][-4:]
    assert behind == ["Conv", "Mul", "Add", "Relu"]
    assert len(nodes_of(found["per-channel-mul"], "Conv")[0].inputs) < 3 or (
        nodes_of(found["per-channel-mul"], "Conv")[0].inputs[2] is None
    )
    (conv,) = nodes_of(found["integers"], "Conv")
    dequantize = conv.inputs[2].producer()  # type: ignore[union-attr]
    assert dequantize is not None and dequantize.op_type == "DequantizeLinear"
    values = arrays(found["integers"])
    levels, scales = (values[str(value.name)] for value in dequantize.inputs[:2] if value)
    assert levels.dtype == np.int32 and scales.dtype == np.float32
    weight_scales = steps(weight, "per-channel").astype(np.float32)
    np.testing.assert_allclose(scales, weight_scales / 128, rtol=1e-6)
    np.testing.assert_allclose(levels * scales.astype(np.float64), bias, atol=scales.max())


def test_a_bias_too_large_for_32_bits_saturates() -> None:
    weight = np.full((3, 4, 1, 1), 1e-9, np.float32)
    model, _ = convolution(weight, np.array([-1e9, 0, 1e9]), DIALECTS["onnxruntime"])
    stored = next(a for a in arrays(model).values() if a.dtype == np.int32 and a.any())
    np.testing.assert_array_equal(stored, [-(2**31) + 1, 0, 2**31 - 1])


def test_a_missing_bias_is_one_that_vanishes() -> None:
    """OpenVINO drops a bias of zero, and computes wrong numbers without one."""
    weight = normal(3, 4, 1, 1)
    for form in FORMS:
        model, _ = convolution(weight, np.zeros(3), dialect(form))
        (conv,) = nodes_of(model, "Conv")
        if form == "per-channel-mul":
            assert "Add" not in operators(model)
        else:
            bias = arrays(model)[str(conv.inputs[2].name)]  # type: ignore[union-attr]
            assert bias.all() and (np.float32(1e-6) + bias == np.float32(1e-6)).all()


def test_the_multiplier_goes_behind_max_pools() -> None:
    pools = "p = MaxPool <kernel_shape = [2, 2]>(c) q = MaxPool <kernel_shape = [2, 2]>(p)"
    weight, bias = normal(3, 4, 1, 1), normal(3).astype(np.float64)
    found = [
        convolution(weight, bias, dialect(form), f"{pools} y = Relu(q)")[0]
        for form in ("per-channel-mul", "per-channel")
    ]
    order = [node.op_type for node in found[0].graph]
    assert order[-6:] == ["Conv", "MaxPool", "MaxPool", "Mul", "Add", "Relu"]
    images = normal(2, 4, 8, 8) / 4
    first, second = (run_reference(model, images) for model in found)
    assert difference(first, second) <= 1e-5


def test_a_pair_serves_the_readers_named_alone() -> None:
    model = graph("a = Relu(x) b = Sigmoid(a) c = Tanh(a) y = Add(a, c)", {})
    nodes = {node.op_type: node for node in model.graph}
    value = nodes["Relu"].outputs[0]
    scale = Scale(np.float32(0.25), np.uint8(7))
    add_pair(model.graph, value, scale, [(nodes["Tanh"], 0), (nodes["Add"], 0)])
    assert nodes["Sigmoid"].inputs[0] is value
    assert nodes["Tanh"].inputs[0] is nodes["Add"].inputs[0] is not value
    assert scale_of(nodes["Tanh"].inputs[0]) == scale
    to_bytes(model)
    quantized = np.clip(np.rint(np.maximum(normal(2, 4, 8, 8), 0) * 4) + 7, 0, 255)
    restored = (quantized - 7).astype(np.float32) / 4
    expected = restored + np.tanh(restored)
    assert difference(run_reference(model, normal(2, 4, 8, 8)), expected) <= 1e-6


def test_scale_of_what_has_none() -> None:
    model, _ = convolution(normal(3, 4, 1, 1), np.zeros(3), dialect("per-channel"))
    (conv,) = nodes_of(model, "Conv")
    assert scale_of(None) is None and scale_of(model.graph.inputs[0]) is None
    assert scale_of(conv.inputs[0]) == SCALE
    assert scale_of(conv.inputs[1]) is None, "one scale for each channel"


@pytest.mark.parametrize("form", TARGETS)
def test_an_all_zero_weight(form: str) -> None:
    bias = normal(3).astype(np.float64)
    model, exact = convolution(np.zeros((3, 4, 1, 1), np.float32), bias, TARGETS[form])
    assert not exact.any()
    found, expected = run_onnxruntime(model, normal(2, 4, 8, 8)), np.maximum(bias, 0)
    if form == "integers":
        assert np.isfinite(found).all()
    else:
        np.testing.assert_allclose(found[0, :, 0, 0], expected, rtol=1e-6)


def test_other_ranks_and_nodes_without_names() -> None:
    model = graph(
        "c = Conv(x, w) d = Conv(x, w) y = Add(c, d)",
        {"w": normal(3, 4, 3)},
        "float[N, 4, 8] x",
        "float[N, K, P] y",
    )
    convolutions = nodes_of(model, "Conv")
    for node in model.graph:
        node.name = ""
    add_pair(model.graph, model.graph.inputs[0], SCALE, [(node, 0) for node in convolutions])
    for conv in convolutions:
        weight = quantize_weight(normal(3, 4, 3), dialect("per-channel"))
        set_parameters(model.graph, conv, weight, np.zeros(3), dialect("per-channel"))
    to_bytes(model)
    assert operators(model)["QuantizeLinear"] == 1, "one pair for both"
