"""A pre-activation as a clamp: exact where it applies, and a reason where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.rewrite import clamp_preactivation
from densenet_deploy.rewrite.graph import constant
from tests.graphs import (
    POOL,
    RANDOM_NETS,
    Arrays,
    RandomNet,
    batchnorm,
    difference,
    graph,
    normal,
    operators,
    random_densenet,
    refusals,
    rewrite_exactly,
    run_onnxruntime,
    run_openvino,
)

NORM = "n = BatchNormalization(x, gamma, beta, mean, var)"
NORM_RELU = f"{NORM} r = Relu(n)"
LOWEST, HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


def constants(**changes: Any) -> Arrays:
    """A BatchNorm's parameters, `w`, and what the keywords replace; None leaves it out."""
    values = batchnorm() | {"w": normal(5, 4, 1, 1)} | changes
    return {name: np.asarray(value) for name, value in values.items() if value is not None}


def clamp_exactly(model: ir.Model, *shape: int) -> ir.Model:
    """Rewrites everything, in float32 and in double."""
    result = rewrite_exactly(model, [clamp_preactivation], *shape)
    assert not result.refusals and "BatchNormalization" not in operators(result.model)
    return result.model


@settings(max_examples=40, derandomize=True)
@given(RANDOM_NETS)
def test_exact_on_random_densenets(net: RandomNet) -> None:
    shape = (2, net.channels[0], *net.size)
    result = rewrite_exactly(random_densenet(net), [clamp_preactivation], *shape)
    padded_layers = 0 if net.bottleneck else net.layers
    padded_pools = net.transitions if net.transition == "before" else 0
    assert len(result.refusals) == padded_layers + padded_pools
    assert all(str(refusal).endswith("is padded") for refusal in result.refusals)
    total = net.layers + net.transitions + 1
    assert result.counts == {"clamp_preactivation": total - len(result.refusals)}
    assert operators(result.model).get("BatchNormalization", 0) == len(result.refusals)


FOLLOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": ("y = Conv(r, w)", {}),
    "conv, bias": ("y = Conv(r, w, b)", {"b": normal(5)}),
    "conv 3x2, strides, dilations": (
        'y = Conv <auto_pad = "VALID", strides = [2, 1], dilations = [2, 3]>(r, w, b)',
        {"w": normal(5, 4, 3, 2), "b": normal(5)},
    ),
    "two pools": (f"p = {POOL}(r) q = {POOL}(p) y = Conv(q, w)", {}),
    "overlapping pool": ("p = AveragePool <kernel_shape = [3, 2]>(r) y = Conv(p, w)", {}),
    "mean": ("p = ReduceMean(r, axes) y = Conv(p, w)", {"axes": np.array([2, 3])}),
}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_exact_into_a_convolution(name: str) -> None:
    body, changes = FOLLOWERS[name]
    clamp_exactly(graph(f"{NORM_RELU} {body}", constants(**changes)), 3, 4, 8, 8)


@pytest.mark.parametrize("bias", [None, normal(6), normal(1, 6), normal(1), normal(3, 1)])
@pytest.mark.parametrize("transposed", [0, 1])
def test_exact_into_a_classifier(bias: Any, transposed: int) -> None:
    gemm = f"Gemm <alpha = 0.5, beta = 3.0, transB = {transposed}>"
    inputs = "f, w" if bias is None else "f, w, b"
    body = f"{NORM_RELU} p = GlobalAveragePool(r) f = Flatten(p) y = {gemm}({inputs})"
    used = constants(w=normal(6, 4) if transposed else normal(4, 6), b=bias)
    model = graph(body, used, "float[3, 4, 8, 8] x", "float[3, K] y")
    assert "Max" in operators(clamp_exactly(model, 3, 4, 8, 8))


def test_what_is_left() -> None:
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    gamma, beta = np.array([2, -4, 0, 1], np.float32), np.array([1, 2, 3, -5], np.float32)
    norm = NORM.replace("(x", " <epsilon = 0.0>(x")
    used = constants(gamma=gamma, beta=beta, mean=zero, var=one)
    model = graph(f"{norm} r = Relu(n) y = Conv(r, w)", used)
    left = clamp_exactly(model, 2, 4, 8, 8)
    written = [(n.op_type, n.name, n.outputs[0].name, n.inputs[0].name) for n in left.graph]  # type: ignore[union-attr]
    assert written == [
        ("Max", "n.max", "n.max", "x"),
        ("Min", "n.min", "n.min", "n.max"),
        ("Conv", "y", "y", "n.min"),
    ]
    values = {name: constant(value) for name, value in left.graph.initializers.items()}
    assert sorted(values) == ["n.lower", "n.upper", "w.scaled", "y.bias"]
    lower, upper = values["n.lower"], values["n.upper"]
    assert lower is not None and upper is not None
    assert lower.shape == upper.shape == (4, 1, 1)
    assert lower.ravel().tolist() == [-0.5, LOWEST, LOWEST, 5]
    assert upper.ravel().tolist() == [HIGHEST, 0.5, HIGHEST, HIGHEST]
    expected = used["w"][:, :, 0, 0] * gamma
    np.testing.assert_array_equal(values["w.scaled"][:, :, 0, 0], expected)  # type: ignore[index]
    response = used["w"][:, :, 0, 0] @ beta
    np.testing.assert_allclose(values["y.bias"], response, rtol=1e-6)  # type: ignore[arg-type]


def test_openvino_accepts_bounds_that_no_number_exceeds() -> None:
    model = graph(f"{NORM_RELU} y = Conv(r, w)", constants())
    left, images = clamp_exactly(model, 2, 4, 8, 8), normal(2, 4, 8, 8)
    assert {"Max", "Min"} <= set(operators(left))
    assert difference(run_openvino(left, images), run_onnxruntime(model, images)) <= 1e-5


@pytest.mark.parametrize(
    "signs, clamps",
    [((1, 1, 1, 1), "Max"), ((1, 0, 1, 1), "Max"), ((-1, 0, -1, -1), "Min"), ((0, 0, 0, 0), "")],
)
def test_one_compare_where_one_is_enough(signs: tuple[int, ...], clamps: str) -> None:
    used = constants(gamma=np.array(signs, np.float32) * 1.5, b=normal(5))
    left = clamp_exactly(graph(f"{NORM_RELU} y = Conv(r, w, b)", used), 2, 4, 8, 8)
    assert set(operators(left)) == {"Conv", clamps} - {""}


@settings(max_examples=25, derandomize=True)
@given(
    st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4),
)
def test_exact_for_any_scale(gamma: list[float], beta: list[float]) -> None:
    scales = np.asarray(gamma, np.float32)
    scales[np.abs(scales) < 1e-2] = 0  # smaller ones are refused, as another test shows
    used = constants(gamma=scales, beta=np.asarray(beta, np.float32), b=normal(5))
    clamp_exactly(graph(f"{NORM_RELU} y = Conv(r, w, b)", used), 2, 4, 8, 8)


def test_shared_constants_stay() -> None:
    body = f"{NORM_RELU} c = Conv(r, w, b) s = Conv(x, w, b) y = Concat <axis = 1>(c, s)"
    left = clamp_exactly(graph(body, constants(b=normal(5))), 2, 4, 8, 8)
    assert {"w", "w.scaled", "b", "b.shifted"} <= set(left.graph.initializers)


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no ReLU": (f"{NORM} y = Conv(n, w)", "n: a single ReLU does not follow", {}),
    "ReLU read twice": (
        f"{NORM_RELU} c = Conv(r, w) y = Concat <axis = 1>(c, r)",
        "n: r has several readers or is a graph output",
        {},
    ),
    "padded convolution": (
        f"{NORM_RELU} y = Conv <pads = [1, 1, 1, 1]>(r, w)",
        "n: y is padded",
        {"w": normal(5, 4, 3, 3)},
    ),
    "convolution that pads itself": (
        f'{NORM_RELU} y = Conv <auto_pad = "SAME_UPPER">(r, w)',
        "n: y pads automatically",
        {},
    ),
    "padded pool": (
        f"{NORM_RELU} p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r)"
        " y = Conv(p, w)",
        "n: p is padded",
        {},
    ),
    "pool that rounds up": (
        f"{NORM_RELU} p = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(r)"
        " y = Conv(p, w)",
        "n: p rounds its output size up",
        {},
    ),
    "grouped": (
        f"{NORM_RELU} y = Conv <group = 2>(r, w)",
        "n: y is a grouped convolution",
        {"w": normal(6, 2, 1, 1)},
    ),
    "computed weight": (
        f"{NORM_RELU} v = Abs(w) y = Conv(r, v)",
        "n: the weight of y is not constant",
        {},
    ),
    "computed bias": (
        f"{NORM_RELU} d = Abs(b) y = Conv(r, w, d)",
        "n: the bias of y is not constant",
        {"b": normal(5)},
    ),
    "max pool": (
        f"{NORM_RELU} k = MaxPool <kernel_shape = [2, 2]>(r) y = Conv(k, w)",
        "n: MaxPool k does not pass a factor on",
        {},
    ),
    "small scale": (
        f"{NORM_RELU} y = Conv(r, w)",
        "n: the scale of channel 2 is 1e-05: its bound -1e+05 would exceed 32752",
        {
            "gamma": np.array([1, 1, 1e-5, 1], np.float32),
            "beta": np.ones(4, np.float32),
            "mean": np.zeros(4, np.float32),
            "var": np.full(4, 1 - 1e-5, np.float32),
        },
    ),
    "constant too large": (
        f"{NORM_RELU} y = Conv(r, w)",
        "n: the scale of channel 1 is 0: its bound 4e+04 would exceed 32752",
        {
            "gamma": np.array([1, 0, 1, 1], np.float32),
            "beta": np.array([0, 4e4, 0, 0], np.float32),
        },
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    body, reason, changes = REFUSED[name]
    assert refusals(graph(body, constants(**changes)), clamp_preactivation) == [reason]
