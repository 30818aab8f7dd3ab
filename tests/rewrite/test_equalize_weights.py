"""Free factors between two convolutions: exact, and a reason where they are not free."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.rewrite import equalize_weights
from densenet_deploy.rewrite.graph import constant
from tests.graphs import (
    RANDOM_NETS,
    Arrays,
    RandomNet,
    graph,
    normal,
    random_densenet,
    refusals,
    rewrite_exactly,
)

FACTOR = np.array([0.1, 1, 2, 5, 9.0])
BODY = "c = Conv(x, w, b) r = Relu(c) y = Conv <pads = [1, 1, 1, 1]>(r, v, b)"


def constants(**changes: Any) -> Arrays:
    """Weights and biases for `BODY`, and what the keywords replace."""
    weights = {"w": normal(5, 4, 1, 1), "v": normal(5, 5, 3, 3, seed=1), "b": normal(5)}
    return weights | changes


@settings(max_examples=20, derandomize=True)
@given(RANDOM_NETS, st.integers(0, 2**32 - 1))
def test_exact_on_random_densenets(net: RandomNet, seed: int) -> None:
    model, rng = random_densenet(net), np.random.default_rng(seed)
    inner = [
        n
        for n in model.graph
        if n.op_type == "Conv" and n.inputs[2:] and len(n.outputs[0].uses()) == 1
    ]
    inner = [n for n in inner if next(iter(n.outputs[0].uses())).node.op_type == "Relu"]
    channels = 4 * net.growth_rate
    factors = {str(n.outputs[0].name): np.exp(rng.normal(0, 1, channels)) for n in inner}
    rule = partial(equalize_weights, factors=factors)
    result = rewrite_exactly(model, [rule], 2, net.channels[0], *net.size)
    assert result.counts == {"equalize_weights": net.layers if net.bottleneck else 0}
    assert not result.refusals


def test_what_changes() -> None:
    rule = partial(equalize_weights, factors={"c": FACTOR})
    result = rewrite_exactly(graph(BODY, constants()), [rule], 2, 4, 8, 8)
    values = {name: constant(value) for name, value in result.model.graph.initializers.items()}
    expected = {
        "b": normal(5),  # the second convolution still reads it
        "b.scaled": normal(5) * FACTOR,
        "w.scaled": normal(5, 4, 1, 1) * FACTOR.reshape(-1, 1, 1, 1),
        "v.scaled": normal(5, 5, 3, 3, seed=1) / FACTOR.reshape(-1, 1, 1),
    }
    assert set(values) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(values[name], array, rtol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["Conv(x, w)", "Conv <group = 2, strides = [2, 1]>(x, g)"])
def test_exact_for_other_convolutions(first: str) -> None:
    used = {"v": normal(6, 5, 3, 3)} | ({"w": normal(5, 4, 1, 1)} if "w)" in first else {})
    if "g)" in first:
        used = {"v": normal(6, 6, 3, 3), "g": normal(6, 2, 2, 3)}
    model = graph(f"c = {first} r = Relu(c) y = Conv(r, v)", used)
    factor = np.linspace(0.5, 3, 6)[: 6 if "g)" in first else 5]
    rule = partial(equalize_weights, factors={"c": factor})
    assert rewrite_exactly(model, [rule], 2, 4, 8, 8).counts == {"equalize_weights": 1}


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no convolution": (
        "c = Sigmoid(x) r = Relu(c) y = Conv(r, v)",
        "it is the output of a Sigmoid, not of a convolution",
        {},
    ),
    "no ReLU": ("c = Conv(x, w) y = Conv(c, v)", "a single ReLU does not follow", {}),
    "read twice": (
        f"{BODY.replace('y =', 'd =')} y = Concat <axis = 1>(c, d)",
        "a single ReLU does not follow",
        {},
    ),
    "ReLU read twice": (
        f"{BODY.replace('y =', 'd =')} y = Concat <axis = 1>(r, d)",
        "a single convolution does not follow the ReLU",
        {},
    ),
    "pool": (
        "c = Conv(x, w) r = Relu(c) p = MaxPool <kernel_shape = [2, 2]>(r) y = Conv(p, v)",
        "a single convolution does not follow the ReLU",
        {},
    ),
    "grouped": (
        BODY.replace("<", "<group = 5, "),
        "y is a grouped convolution",
        {"v": normal(5, 1, 3, 3)},
    ),
    "computed weight": (
        f"u = Abs(w) {BODY.replace('w,', 'u,')}",
        "the weight of c is not constant",
        {},
    ),
    "computed second weight": (
        f"u = Abs(v) {BODY.replace('v,', 'u,')}",
        "the weight of y is not constant",
        {},
    ),
    "computed bias": (f"u = Abs(b) {BODY.replace('w, b', 'w, u')}", "the bias of c is not", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    body, reason, changes = REFUSED[name]
    rule = partial(equalize_weights, factors={"c": FACTOR})
    [refusal] = refusals(graph(body, constants(**changes)), rule)
    assert refusal.startswith(f"c: {reason}")


@pytest.mark.parametrize(
    "name, factor, reason",
    [
        ("c", FACTOR[:4], "there are 5 channels and factors of shape (4,)"),
        ("c", -FACTOR, "the factors are not positive and finite"),
        ("c", FACTOR * 0, "the factors are not positive and finite"),
        ("c", FACTOR * np.nan, "the factors are not positive and finite"),
        ("c", FACTOR * np.inf, "the factors are not positive and finite"),
        ("typo", FACTOR, "no node writes a value of this name"),
    ],
)
def test_refuses_numbers_and_names(name: str, factor: Any, reason: str) -> None:
    rule = partial(equalize_weights, factors={name: factor})
    assert refusals(graph(BODY, constants()), rule) == [f"{name}: {reason}"]
