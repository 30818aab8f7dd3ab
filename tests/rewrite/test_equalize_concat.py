"""Free factors and shifts of a concat's channels: exact, and a reason where they are not free."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.rewrite import Equalization, equalize_concat, rewrite
from densenet_deploy.rewrite.graph import constant
from tests.graphs import (
    RANDOM_NETS,
    Arrays,
    RandomNet,
    batchnorm,
    equalizations,
    graph,
    normal,
    operators,
    random_densenet,
    refusals,
    rewrite_exactly,
    run_reference,
)

JOIN = "Concat <axis = 1>"
FACTOR, SHIFT = np.array([0.25, 1, 3, 7]), np.array([-1, 0, 0.5, 2.0])
READ = "n = BatchNormalization({}, gamma, beta, mean, var) y = Relu(n)"
DIRECT = f"c = Conv(x, w, b) {READ.format('c')}"


def wanted(factor: Any = FACTOR, shift: Any = 0.0) -> Equalization:
    """Four channels; a number is one for each."""
    factor, shift = (np.asarray(array, np.float64) for array in (factor, shift))
    return Equalization(*(np.full(4, a) if a.ndim == 0 else a for a in (factor, shift)))


def constants(norm: int = 4, **changes: Any) -> Arrays:
    """`w` and `b` for four channels, a BatchNorm, and what the keywords replace."""
    values = batchnorm(norm) | {"w": normal(4, 4, 1, 1), "b": normal(4)} | changes
    return {name: value for name, value in values.items() if value is not None}


@settings(max_examples=40, derandomize=True)
@given(RANDOM_NETS, st.integers(0, 2**32 - 1))
def test_exact_on_random_densenets(net: RandomNet, seed: int) -> None:
    model = random_densenet(net)
    factors = equalizations(model, seed)
    assert len(factors) == net.layers + net.transitions + 1
    shape = (2, net.channels[0], *net.size)
    rules = [partial(equalize_concat, factors=factors)]
    result = rewrite_exactly(model, rules, *shape)
    assert result.counts == {"equalize_concat": len(factors)} and not result.refusals
    assert operators(result.model) == operators(model)


def outputs_of(model: ir.Model, name: str, images: Any) -> Any:
    """The value `name` as the only output."""
    copy = model.clone()
    node = next(node for node in copy.graph if node.outputs[0].name == name)
    copy.graph.outputs[:] = [node.outputs[0]]
    return run_reference(copy, images)


PRODUCERS = {
    "conv": ("v = Conv(x, w, b)", True),
    "conv without bias": ("v = Conv(x, w)", True),
    "grouped": ("v = Conv <group = 4>(x, g, b)", True),
    "mean": ("c = Conv(x, w, b) v = AveragePool <kernel_shape = [3, 2]>(c)", True),
    "padded mean": (
        "c = Conv(x, w, b) v = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1],"
        " count_include_pad = 1>(c)",
        False,
    ),
    "maximum": (
        "c = Conv(x, w, b) v = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)",
        True,
    ),
    "stem": ("c = Conv(x, w) r = Relu(c) v = MaxPool <kernel_shape = [2, 2]>(r)", False),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_what_is_written_becomes_factor_times_x_plus_shift(name: str) -> None:
    body, shifts = PRODUCERS[name]
    used = constants(g=normal(4, 1, 3, 3) if "g," in body else None)
    if ", b)" not in body:
        del used["b"]
    if "g," in body:
        del used["w"]
    model = graph(f"{body} {READ.format('v')}", used)
    equalization = wanted(shift=SHIFT if shifts else 0.0)
    rule = partial(equalize_concat, factors={"v": equalization})
    result = rewrite_exactly(model, [rule], 2, 4, 8, 8)
    assert result.counts == {"equalize_concat": 1}
    images = normal(2, 4, 8, 8)
    factor, shift = (a.reshape(-1, 1, 1) for a in (equalization.factor, equalization.shift))
    expected = outputs_of(model, "v", images) * factor + shift
    np.testing.assert_allclose(outputs_of(result.model, "v", images), expected, atol=1e-5)


def test_every_position_and_chains_of_concats() -> None:
    body = f"c = Conv(x, w, b) p = {JOIN}(x, c) q = {JOIN}(c, p, c) r = {JOIN}(q, x, p)"
    norms = "m = BatchNormalization(r, gamma, beta, mean, var) e = Relu(m) n = BatchNormalization"
    body += f" {norms}(p, g2, b2, m2, v2) f = Relu(n) y = {JOIN}(e, f)"
    second = {f"{name[0]}2": value for name, value in batchnorm(8, seed=3).items()}
    model = graph(body, constants(28) | second)
    rule = partial(equalize_concat, factors={"c": wanted(shift=SHIFT)})
    result = rewrite_exactly(model, [rule], 2, 4, 8, 8)
    gamma = constant(result.model.graph.initializers["gamma.scaled"])
    before, one = constants(28)["gamma"], np.ones(4)
    # r = (q = (c, p = (x, c), c), x, p = (x, c))
    factors = np.concatenate([FACTOR, one, FACTOR, FACTOR, one, one, FACTOR])
    np.testing.assert_allclose(gamma, before / factors, rtol=1e-6)  # type: ignore[arg-type]


def test_norms_that_share_their_parameters() -> None:
    body = "c = Conv(x, w, b) m = BatchNormalization(c, gamma, beta, mean, var) e = Relu(m)"
    body += f" d = Conv(x, w, b) {READ.replace('y =', 'f =').format('d')} y = {JOIN}(e, f)"
    rule = partial(equalize_concat, factors={"c": wanted(shift=SHIFT)})
    result = rewrite_exactly(graph(body, constants()), [rule], 2, 4, 8, 8)
    names = {"gamma", "mean", "w", "b"}
    scaled = {f"{name}.scaled" for name in names}
    assert set(result.model.graph.initializers) == names | scaled | {"beta", "var"}


def test_names_stay_short_when_it_is_done_again() -> None:
    rule = partial(equalize_concat, factors={"c": wanted(shift=SHIFT)})
    model = rewrite(graph(DIRECT, constants()), [rule, rule]).model
    names = ["b.scaled", "beta", "gamma.scaled", "mean.scaled", "var", "w.scaled"]
    assert sorted(model.graph.initializers) == names


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "another reader": (
        f"{DIRECT.replace('y =', 'r =')} s = Sigmoid(c) y = Add(r, s)",
        "Sigmoid s reads c",
        {},
    ),
    "another reader of the concat": (
        f"c = Conv(x, w, b) k = {JOIN}(c, c) m = Sigmoid(k)"
        f" {READ.replace('y =', 'r =').format('k')} y = Add(r, m)",
        "Sigmoid m reads k",
        batchnorm(8),
    ),
    "concat of pixels": (
        f"c = Conv(x, w, b) k = Concat <axis = 2>(c, c) {READ.format('k')}",
        "Concat k reads c",
        {},
    ),
    "as a parameter": (
        f"c = Conv(x, w, b) f = ReduceMean <keepdims = 0>(c, axes) {READ.format('x')}".replace(
            "gamma", "f"
        ),
        "ReduceMean f reads c",
        {"axes": np.array([0, 2, 3])},
    ),
    "computed parameter": (
        DIRECT.replace("n =", "g = Abs(gamma) n =").replace("(c, gamma", "(c, g"),
        "its parameters are not constant",
        {},
    ),
    "computed weight": (
        f"v = Abs(w) {DIRECT.replace('(x, w', '(x, v')}",
        "the weight of c is not constant",
        {},
    ),
    "computed bias": (
        f"v = Abs(b) {DIRECT.replace('w, b', 'w, v')}",
        "the bias of c is not constant",
        {},
    ),
    "no convolution": (f"c = Sigmoid(x) {READ.format('c')}", "does not come from a conv", {}),
    "pool of the input": (
        f"c = MaxPool <kernel_shape = [2, 2]>(x) {READ.format('c')}",
        "it does not come from a convolution",
        {},
    ),
    "pool of what another reads": (
        f"d = Conv(x, w, b) c = MaxPool <kernel_shape = [1, 1]>(d)"
        f" {READ.replace('y =', 'r =').format('c')} y = Add(r, d)",
        "something else reads the input of c",
        {},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    body, reason, changes = REFUSED[name]
    rule = partial(equalize_concat, factors={"c": wanted()})
    [refusal] = refusals(graph(body, constants(**changes)), rule)
    assert refusal.startswith("c: ") and reason in refusal


@pytest.mark.parametrize(
    "equalization, reason",
    [
        (wanted(factor=np.ones(5)), "there are 4 channels and factors of shape (5,)"),
        (wanted(shift=np.zeros((4, 1))), "there are 4 channels and shifts of shape (4, 1)"),
        (wanted(factor=[1, 0, 1, 1]), "the factors are not positive"),
        (wanted(factor=-1.0), "the factors are not positive"),
        (wanted(factor=[1, np.inf, 1, 1]), "the factors are not finite"),
        (wanted(shift=np.nan), "the shifts are not finite"),
    ],
)
def test_refuses_numbers(equalization: Equalization, reason: str) -> None:
    rule = partial(equalize_concat, factors={"c": equalization})
    assert refusals(graph(DIRECT, constants()), rule) == [f"c: {reason}"]


@pytest.mark.parametrize(
    "writer, reason",
    [
        ("c = Relu(d)", "a shift does not pass through the ReLU c"),
        ("c = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 0, 1]>(d)", "c is padded"),
        (
            "c = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(d)",
            "c rounds its output size up",
        ),
    ],
)
def test_refuses_a_shift_that_does_not_pass(writer: str, reason: str) -> None:
    model = graph(f"d = Conv(x, w, b) {writer} {READ.format('c')}", constants())
    rule = partial(equalize_concat, factors={"c": wanted(shift=SHIFT)})
    assert refusals(model, rule) == [f"c: {reason}"]
    assert equalize_concat(model.graph, {"c": wanted()}).count == 1


@pytest.mark.parametrize("output", ["c", "k"])
def test_refuses_graph_outputs_and_unknown_names(output: str) -> None:
    body = f"c = Conv(x, w, b) k = {JOIN}(c, c) {READ.format('k')}"
    outputs = f"float[N, K, P, Q] y, float[N, D, 8, 8] {output}"
    model = graph(body, constants(8), outputs=outputs)
    rule = partial(equalize_concat, factors={"c": wanted(), "typo": wanted()})
    expected = [f"c: {output} is a graph output", "typo: no node writes a value of this name"]
    assert refusals(model, rule) == expected


def test_refuses_unknown_channels() -> None:
    model = graph(f"c = Conv(x, w, b) k = {JOIN}(x, c) {READ.format('k')}", constants(8))
    model.graph.inputs[0].shape = None
    rule = partial(equalize_concat, factors={"c": wanted()})
    assert refusals(model, rule) == ["c: the channels of x are not known"]
