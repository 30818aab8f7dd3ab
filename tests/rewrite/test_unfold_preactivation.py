"""A BatchNorm out of an add: exact, the inverse of folding, and a reason where it is not meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from densenet_deploy.rewrite import fold_preactivation, rewrite, unfold_preactivation
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    graph,
    normal,
    operators,
    random_densenet,
    refusals,
    rewrite_exactly,
)

C = normal(4, 1, 1, seed=1)


@settings(max_examples=30, derandomize=True)
@given(RANDOM_NETS)
def test_inverse_of_folding_on_random_densenets(net: RandomNet) -> None:
    model = random_densenet(net)
    shape = (2, net.channels[0], *net.size)
    result = rewrite_exactly(model, [fold_preactivation, unfold_preactivation], *shape)
    norms = net.layers + net.transitions + 1
    assert result.counts == {"fold_preactivation": norms, "unfold_preactivation": norms}
    assert [(n.op_type, n.name, n.outputs[0].name) for n in result.model.graph] == [
        (n.op_type, n.name, n.outputs[0].name) for n in model.graph
    ]
    folded = rewrite(model.clone(), [fold_preactivation]).model
    again = rewrite_exactly(folded, [unfold_preactivation, fold_preactivation], *shape)
    assert operators(again.model) == operators(folded)


FORMS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "add": ("a = Add(x, c)", {"c": C}, []),
    "constant first": ("a = Add(c, x)", {"c": C}, []),
    "with a batch axis": ("a = Add(x, c)", {"c": C[None]}, []),
    "mul": ("m = Mul(x, f) a = Add(m, c)", {"c": C, "f": normal(4, 1, 1)}, []),
    "mul, constants first": (
        "m = Mul(f, x) a = Add(c, m)",
        {"c": C[None], "f": normal(1, 4, 1, 1)},
        [],
    ),
    "mul by a number": ("m = Mul(x, f) a = Add(m, c)", {"c": C, "f": normal(1)}, ["Mul"]),
    "mul by what is computed": ("s = Abs(x) m = Mul(x, s) a = Add(m, c)", {"c": C}, ["Abs", "Mul"]),
    "mul of one channel": (
        "s = ReduceMean(x, i) m = Mul(s, f) a = Add(m, c)",
        {"c": C, "f": normal(4, 1, 1), "i": np.array([1])},
        ["ReduceMean", "Mul"],
    ),
    "mul of three dimensions": (
        "s = Squeeze(k, i) m = Mul(s, f) a = Add(m, c)",
        {"c": C, "f": normal(1, 4, 1, 1), "i": np.array([0])},
        ["Slice", "Squeeze", "Mul"],
    ),
    "mul read twice": (
        "m = Mul(x, f) s = Abs(m) a = Add(m, c)",
        {"c": C, "f": normal(4, 1, 1)},
        ["Mul", "Abs"],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_exact(name: str) -> None:
    body, values, left = FORMS[name]
    if "k," in body:
        body = f"k = Slice(x, zero, one, zero, one) {body}"
        body, values = body, values | {"zero": np.array([0]), "one": np.array([1])}
    end = "r = Relu(a) y = Add(r, s)" if name == "mul read twice" else "y = Relu(a)"
    result = rewrite_exactly(graph(f"{body} {end}", values), [unfold_preactivation], 2, 4, 8, 8)
    assert result.counts == {"unfold_preactivation": 1}
    tail = ["Relu", "Add"] if name == "mul read twice" else ["Relu"]
    found = [node.op_type for node in result.model.graph]
    assert sorted(found) == sorted([*left, "BatchNormalization", *tail])


def test_names() -> None:
    model = graph("a = Add(x, c) y = Relu(a)", {"c": C})
    model.graph[0].outputs[0].name = "norm1.add"
    norm = rewrite(model, [unfold_preactivation]).model.graph[0]
    assert (norm.name, norm.outputs[0].name) == ("norm1", "norm1")
    names = ["weight", "bias", "running_mean", "running_var"]
    assert [v.name for v in norm.inputs[1:] if v] == [f"norm1.{name}" for name in names]


@pytest.mark.parametrize(
    "constants, shape, reason",
    [
        (normal(8), "N, 4, 8, 8", "its constant is of shape (8,), not (4, 1, 1)"),
        (normal(1, 1, 1), "N, 4, 8, 8", "its constant is of shape (1, 1, 1), not (4, 1, 1)"),
        (normal(4, 8, 1), "N, 4, 8, 8", "its constant is of shape (4, 8, 1), not (4, 1, 1)"),
        (C, "N, 1, 8, 8", "its constant is of shape (4, 1, 1), not (1, 1, 1)"),
        (C, "N, K, 8, 8", "the channels of x are not known"),
        (C, "4, 8, 8", "its input is not known to have four dimensions"),
    ],
)
def test_refusal(constants: Any, shape: str, reason: str) -> None:
    outputs = "float[A, B, P] y" if shape == "4, 8, 8" else "float[A, B, P, Q] y"
    model = graph("a = Add(x, c) y = Relu(a)", {"c": constants}, f"float[{shape}] x", outputs)
    assert refusals(model, unfold_preactivation) == [f"a: {reason}"]


@pytest.mark.parametrize(
    "body",
    ["a = Add(x, c) y = Sigmoid(a)", "a = Add(x, x) y = Relu(a)", "a = Add(x, c) y = Add(a, a)"],
)
def test_other_adds_are_no_candidates(body: str) -> None:
    model = graph(body, {"c": C} if "c)" in body else {})
    assert refusals(model, unfold_preactivation) == []
