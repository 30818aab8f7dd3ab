"""Folding a pre-activation BatchNorm: exact where it applies, and a reason where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.rewrite import fold_preactivation
from tests.graphs import (
    POOL,
    RANDOM_NETS,
    Arrays,
    RandomNet,
    batchnorm,
    graph,
    normal,
    operators,
    random_densenet,
    refusals,
    rewrite_exactly,
)

NORM = "n = BatchNormalization(x, gamma, beta, mean, var)"
NORM_RELU = f"{NORM} r = Relu(n)"
WEIGHT = {"w": normal(5, 4, 1, 1)}
AXES = {"axes": np.array([2, 3])}


def constants(**changes: Any) -> Arrays:
    """A BatchNorm's parameters, `w`, and what the keywords replace; None leaves it out."""
    values = batchnorm() | WEIGHT | changes
    return {name: np.asarray(value) for name, value in values.items() if value is not None}


def fold_exactly(model: ir.Model, *shape: int) -> ir.Model:
    """Folds everything in float32 and in double, and compares both with the original."""
    result = rewrite_exactly(model, [fold_preactivation], *shape)
    assert not result.refusals and "BatchNormalization" not in operators(result.model)
    assert result.counts == {"fold_preactivation": operators(model)["BatchNormalization"]}
    return result.model


@settings(max_examples=40, derandomize=True)
@given(RANDOM_NETS)
def test_exact_on_random_densenets(net: RandomNet) -> None:
    model = random_densenet(net)
    assert operators(model)["BatchNormalization"] == net.layers + net.transitions + 1
    fold_exactly(model, 2, net.channels[0], *net.size)


FOLLOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": ("y = Conv(r, w)", {}),
    "conv, bias": ("y = Conv(r, w, b)", {"b": normal(5)}),
    "conv 3x3, padded": ("y = Conv <pads = [1, 1, 1, 1]>(r, w)", {"w": normal(5, 4, 3, 3)}),
    "conv 2x3, strides, dilations": (
        "y = Conv <strides = [2, 1], dilations = [2, 3], pads = [2, 0, 1, 3]>(r, w)",
        {"w": normal(5, 4, 2, 3)},
    ),
    "conv, same padding": ('y = Conv <auto_pad = "SAME_UPPER">(r, w)', {"w": normal(5, 4, 2, 2)}),
    "two pools": (f"p = {POOL}(r) q = {POOL}(p) y = Conv(q, w)", {}),
    "padded pool": (
        "p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r) y = Conv(p, w)",
        {},
    ),
    "mean to conv": ("p = ReduceMean(r, axes) y = Conv(p, w)", AXES),
    "weight in a Constant": (
        "w = Constant <value = float[1, 4, 1, 1] {0.5, -1, 2, 3}>() y = Conv(r, w)",
        {"w": None},
    ),
}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_exact_into_a_convolution(name: str) -> None:
    body, changes = FOLLOWERS[name]
    fold_exactly(graph(f"{NORM_RELU} {body}", constants(**changes)), 3, 4, 8, 8)


CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean, flatten": ("p = ReduceMean(r, axes) f = Flatten(p) y = Gemm(f, w)", {}),
    "mean of negative axes": (
        "p = ReduceMean <keepdims = 0>(r, axes) y = Gemm(p, w)",
        {"axes": np.array([-1, -2])},
    ),
    "pool, reshape": (
        "p = GlobalAveragePool(r) f = Reshape(p, shape) y = Gemm(f, w)",
        {"shape": np.array([0, 4])},
    ),
    "transposed weight": (
        "p = ReduceMean(r, axes) f = Flatten(p) y = Gemm <transB = 1>(f, w)",
        {"w": normal(6, 4)},
    ),
    "alpha, beta, bias": (
        "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm <alpha = 0.5, beta = 3.0>(f, w, b)",
        {"b": normal(6)},
    ),
    "square weight": (
        "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, w)",
        {"w": normal(4, 4)},
    ),
    "square transposed weight": (
        "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm <transB = 1>(f, w)",
        {"w": normal(4, 4)},
    ),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_exact_into_a_classifier(name: str) -> None:
    body, changes = CLASSIFIERS[name]
    used = constants(**({"w": normal(4, 6)} | AXES | changes))
    if "axes" not in body:
        del used["axes"]
    fold_exactly(graph(f"{NORM_RELU} {body}", used, outputs="float[N, K] y"), 3, 4, 8, 8)


def test_exact_where_two_readers_share_one_weight() -> None:
    body = f"{NORM_RELU} c = Conv(r, w) s = Conv(x, w) y = Concat <axis = 1>(c, s)"
    model = fold_exactly(graph(body, constants()), 2, 4, 8, 8)
    assert {"w", "w.scaled"} <= set(model.graph.initializers)


def test_exact_where_two_norms_share_their_parameters() -> None:
    body = f"{NORM_RELU} c = Conv(r, w) m = BatchNormalization(c, gamma, beta, mean, var)"
    model = graph(f"{body} s = Relu(m) y = Conv(s, w)", constants(w=normal(4, 4, 1, 1)))
    fold_exactly(model, 2, 4, 8, 8)


@settings(max_examples=25, derandomize=True)
@given(
    st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4),
    st.sampled_from([1e-12, 1e-3, 1.0]),
    st.sampled_from([0.0, 1e-30, 1.0, 1e6]),
)
def test_exact_for_any_scale(gamma: list[float], epsilon: float, variance: float) -> None:
    norm = NORM.replace("(x", f" <epsilon = {epsilon:.12f}>(x")
    scales = np.asarray(gamma, np.float32)
    scales[np.abs(scales) < 1e-2] = 0  # smaller ones are refused, as another test shows
    changes = {"gamma": scales, "var": np.full(4, variance, np.float32)}
    if variance > 1:  # b / |s| would exceed the limit
        changes |= {"beta": np.zeros(4, np.float32), "mean": normal(4)}
    fold_exactly(graph(f"{norm} r = Relu(n) y = Conv(r, w)", constants(**changes)), 2, 4, 8, 8)


@pytest.mark.parametrize(
    "signs, flips", [((1, 1, 1, 1), 0), ((1, -1, 1, 1), 1), ((1, 1, 0, 1), 1), ((0, 0, 0, 0), 1)]
)
def test_a_multiply_is_left_only_where_a_scale_is_not_positive(
    signs: tuple[int, ...], flips: int
) -> None:
    gamma = np.array(signs, np.float32) * 1.5
    model = fold_exactly(graph(f"{NORM_RELU} y = Conv(r, w)", constants(gamma=gamma)), 2, 4, 8, 8)
    assert operators(model) == {"Add": 1, "Conv": 1, "Relu": 1} | ({"Mul": 1} if flips else {})
    if flips:
        assert model.graph.initializers["n.sign"].const_value is not None
        found = model.graph.initializers["n.sign"].const_value.numpy()
        assert found.ravel().tolist() == list(signs)
    assert [node.name for node in model.graph][-3:] == ["n.add", "r", "y"]
    assert "gamma" not in model.graph.initializers and "w" not in model.graph.initializers


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "norm read twice": (
        f"{NORM_RELU} c = Conv(r, w) y = Concat <axis = 1>(c, n)",
        "a single ReLU does not follow",
        {},
    ),
    "no ReLU": (f"{NORM} y = Conv(n, w)", "a single ReLU does not follow", {}),
    "another activation": (
        f"{NORM} r = LeakyRelu(n) y = Conv(r, w)",
        "a single ReLU does not follow",
        {},
    ),
    "ReLU read twice": (
        f"{NORM_RELU} c = Conv(r, w) d = Conv(r, w) y = Add(c, d)",
        "r has several readers or is a graph output",
        {},
    ),
    "ReLU read twice by one node": (
        f"{NORM_RELU} m = Mul(r, r) y = Conv(m, w)",
        "r has several readers or is a graph output",
        {},
    ),
    "ReLU is the graph's output": (
        f"{NORM} y = Relu(n)",
        "y has several readers or is a graph output",
        {"w": None},
    ),
    "pool read twice": (
        f"{NORM_RELU} p = {POOL}(r) c = Conv(p, w) y = Concat <axis = 1>(c, p)",
        "p has several readers or is a graph output",
        {},
    ),
    "grouped": (
        f"{NORM_RELU} y = Conv <group = 2>(r, w)",
        "y is a grouped convolution",
        {"w": normal(6, 2, 1, 1)},
    ),
    "computed parameter": (
        "g = Abs(gamma) n = BatchNormalization(x, g, beta, mean, var) r = Relu(n) y = Conv(r, w)",
        "its parameters are not constant",
        {},
    ),
    "computed weight": (
        f"{NORM_RELU} v = Abs(w) y = Conv(r, v)",
        "the weight of y is not constant",
        {},
    ),
    "reads it as a weight": (
        f"{NORM_RELU} y = Conv(x, r)",
        "y reads it as a parameter",
        {"w": None},
    ),
    "concat": (
        f"{NORM_RELU} k = Concat <axis = 1>(r, x) y = Conv(k, w)",
        "Concat k does not pass a factor on",
        {"w": normal(5, 8, 1, 1)},
    ),
    "max pool": (
        f"{NORM_RELU} k = MaxPool <kernel_shape = [2, 2]>(r) y = Conv(k, w)",
        "MaxPool k does not pass a factor on",
        {},
    ),
    "softmax": (
        f"{NORM_RELU} k = Softmax <axis = 1>(r) y = Conv(k, w)",
        "Softmax k does not pass a factor on",
        {},
    ),
    "mean over channels": (
        f"{NORM_RELU} k = ReduceMean(r, axes) y = Conv(k, w)",
        "ReduceMean k does not pass a factor on",
        {"axes": np.array([1]), "w": normal(5, 1, 1, 1)},
    ),
    "reshape that moves channels": (
        f"{NORM_RELU} k = Reshape(r, shape) y = Conv(k, w)",
        "Reshape k does not pass a factor on",
        {"shape": np.array([0, 4, 16, 4])},
    ),
}


def assert_refused(model: ir.Model, reason: str) -> None:
    """One refusal, at `n`, and not a bit of the graph changed."""
    [refusal] = refusals(model, fold_preactivation)
    assert refusal.startswith("n: ") and reason in refusal


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    body, reason, changes = REFUSED[name]
    assert_refused(graph(body, constants(**changes)), reason)


@pytest.mark.parametrize("output", ["n", "r"])
def test_refuses_what_is_also_a_graph_output(output: str) -> None:
    outputs = f"float[N, K, P, Q] y, float[N, 4, 8, 8] {output}"
    model = graph(f"{NORM_RELU} y = Conv(r, w)", constants(), outputs=outputs)
    reason = {"n": "a single ReLU", "r": "r has several readers or is a graph output"}
    assert_refused(model, reason[output])


@pytest.mark.parametrize(
    "given_at_run_time, reason",
    [
        ("float[4] gamma", "its parameters are not constant"),
        ("float[4] var", "its parameters are not constant"),
        ("float[5, 4, 1, 1] w", "the weight of y is not constant"),
    ],
)
@pytest.mark.parametrize("default", [False, True], ids=["input", "input with default"])
def test_refuses_parameters_that_are_inputs(
    given_at_run_time: str, reason: str, default: bool
) -> None:
    name = given_at_run_time.split()[-1]
    used = constants() if default else constants(**{name: None})
    inputs = f"float[N, 4, 8, 8] x, {given_at_run_time}"
    assert_refused(graph(f"{NORM_RELU} y = Conv(r, w)", used, inputs), reason)


@pytest.mark.parametrize(
    "flatten",
    [
        "f = Flatten <axis = 3>(r)",
        "f = Reshape(r, shape)",
        "p = AveragePool <kernel_shape = [1, 1]>(r) f = Reshape(p, shape)",
    ],
)
def test_refuses_a_flatten_of_several_pixels(flatten: str) -> None:
    # The result is (M, 4) and the input has 4 channels, yet its columns are not channels.
    used = constants(w=normal(4, 6), shape=np.array([-1, 4]) if "shape" in flatten else None)
    body = f"{NORM_RELU} {flatten} y = Gemm(f, w)"
    model = graph(body, used, "float[N, 4, 3, 4] x", "float[K, L] y")
    assert_refused(model, "does not pass a factor on")


def test_refuses_axes_that_are_not_constant() -> None:
    body = f"{NORM_RELU} p = ReduceMean(r, axes) f = Flatten(p) y = Gemm(f, w)"
    inputs = "float[N, 4, 8, 8] x, int64[2] axes"
    model = graph(body, constants(w=normal(4, 6)), inputs, "float[N, K] y")
    assert_refused(model, "ReduceMean p does not pass a factor on")


def test_refuses_a_transposed_input() -> None:
    body = f"{NORM_RELU} f = Flatten(r) y = Gemm <transA = 1>(f, w)"
    model = graph(body, constants(w=normal(3, 6)), "float[3, 4, 1, 1] x", "float[K, L] y")
    assert_refused(model, "y transposes its input")


def test_refuses_training_mode() -> None:
    norm = "n, mean2, var2 = BatchNormalization <training_mode = 1>(x, gamma, beta, mean, var)"
    assert_refused(graph(f"{norm} r = Relu(n) y = Conv(r, w)", constants()), "in training mode")


def test_refuses_inputs_that_are_not_images() -> None:
    model = graph(
        f"{NORM_RELU} y = Gemm(r, w)", constants(w=normal(4, 5)), "float[N, 4] x", "float[N, K] y"
    )
    assert_refused(model, "not known to have four dimensions")


def test_refuses_unknown_shapes() -> None:
    model = graph(f"{NORM_RELU} y = Conv(r, w)", constants())
    for node in model.graph:
        node.outputs[0].shape = None
    assert_refused(model, "not known to have four dimensions")


@pytest.mark.parametrize(
    "gamma, beta", [(1e-6, 1.0), (-1e-6, 1.0), (0.0, 4e4), (1e-30, 1e30), (float("nan"), 1.0)]
)
def test_refuses_a_shift_that_half_precision_cannot_hold(gamma: float, beta: float) -> None:
    scales = np.array([1, 2, gamma, 1], np.float32)
    shifts = np.array([0, 0, beta, 0], np.float32)
    model = graph(f"{NORM_RELU} y = Conv(r, w)", constants(gamma=scales, beta=shifts))
    assert_refused(model, "the scale of channel 2 is ")
    reason = fold_preactivation(model.graph).refusals[0].reason
    assert "its shift" in reason and reason.endswith("would exceed 32752")


@pytest.mark.parametrize("share, count", [(0.999, 1), (1.001, 0)])
def test_the_largest_shift_still_folds(share: float, count: int) -> None:
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    beta = np.array([0, 0, 0, -65504 / 2 * share], np.float32)
    used = constants(gamma=one, beta=beta, mean=zero, var=one)
    assert fold_preactivation(graph(f"{NORM_RELU} y = Conv(r, w)", used).graph).count == count


def test_a_refusal_leaves_others_alone() -> None:
    body = f"{NORM_RELU} c = Conv(r, w) m = BatchNormalization(c, gamma, beta, mean, var)"
    model = graph(f"{body} y = Sigmoid(m)", constants(w=normal(4, 4, 1, 1)))
    outcome = fold_preactivation(model.graph)
    assert (outcome.count, [refusal.node for refusal in outcome.refusals]) == (1, ["m"])
    assert str(outcome.refusals[0]) == "fold_preactivation at m: a single ReLU does not follow"


def test_a_node_without_a_name_is_named_by_its_output() -> None:
    model = graph(f"{NORM} y = Sigmoid(n)", constants(w=None))
    model.graph[0].name = ""
    assert fold_preactivation(model.graph).refusals[0].node == "BatchNormalization before n"
