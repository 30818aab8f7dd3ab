"""All rules together, on random nets and on what torch exports."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.export import to_bytes
from densenet_deploy.recipe import Target
from densenet_deploy.rewrite import (
    RULES,
    RewriteResult,
    fold_preactivation,
    pool_before_conv,
    rewrite,
)
from densenet_deploy.rewrite.outcome import Refusal
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    as_double,
    batchnorm,
    difference,
    exported,
    graph,
    normal,
    operators,
    random_densenet,
    run_onnxruntime,
    run_reference,
    serialized,
)

BOTH = (pool_before_conv, fold_preactivation)


@settings(max_examples=30, derandomize=True)
@given(RANDOM_NETS, st.sampled_from(list(itertools.permutations(BOTH))))
def test_exact_in_any_order(net: RandomNet, rules: tuple[object, ...]) -> None:
    model = random_densenet(net)
    images = np.random.default_rng(1).standard_normal((3, net.channels[0], *net.size))
    wide = as_double(model)
    expected = run_reference(wide, images)
    found = run_reference(rewrite(wide, rules).model, images)  # type: ignore[arg-type]
    assert difference(found, expected) <= 1e-12
    result = rewrite(model.clone(), rules)  # type: ignore[arg-type]
    pools = net.transitions if net.transition == "after" else 0
    norms = net.layers + net.transitions + 1
    assert result.counts == {"pool_before_conv": pools, "fold_preactivation": norms}
    single = images.astype(np.float32)
    found = run_onnxruntime(to_bytes(result.model), single)
    assert difference(found, run_onnxruntime(model, single)) <= 1e-5


@settings(max_examples=10, derandomize=True)
@given(RANDOM_NETS)
def test_nothing_is_left_to_do(net: RandomNet) -> None:
    once = rewrite(random_densenet(net), BOTH).model
    before = serialized(once)
    again = rewrite(once, BOTH)
    assert again.counts == {"pool_before_conv": 0, "fold_preactivation": 0}
    assert not again.refusals and serialized(again.model) == before


def test_exact_on_an_exported_net() -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    images = export.images[:1].astype(np.float64)
    wide = as_double(export.model)
    expected = run_reference(wide, images)
    result = rewrite(wide, BOTH)
    assert result.counts == {"pool_before_conv": 2, "fold_preactivation": 21}
    assert difference(run_reference(result.model, images), expected) <= 1e-12


def test_rules_of_each_target() -> None:
    assert set(RULES) == set(get_args(Target))
    norms = {}
    for target, rules in RULES.items():
        result = rewrite(exported("densenet-bc-40-12", fuse=False).model, rules)
        assert result.counts["pool_before_conv"] == 2 and not result.refusals
        norms[target] = operators(result.model).get("BatchNormalization", 0)
    assert norms == {"tensorrt": 0, "tensorrt-rtx": 0, "openvino": 0, "onnxruntime": 21}


def test_what_became_unused_is_removed_and_the_order_is_topological() -> None:
    body = "n = BatchNormalization(x, gamma, beta, mean, var) r = Relu(n) c = Conv(r, w)"
    model = graph(
        f"{body} y = Relu(c) unused = Sigmoid(c)", batchnorm() | {"w": normal(5, 4, 1, 1)}
    )
    result = rewrite(model, [fold_preactivation])
    assert sorted(result.model.graph.initializers) == ["n.shift", "n.sign", "w.scaled"]
    assert [node.name for node in result.model.graph] == ["n.flip", "n.add", "r", "c", "y"]


def test_no_rules() -> None:
    model = graph("y = Relu(x)", {})
    before = serialized(model)
    result = rewrite(model, [])
    assert (result.counts, result.refusals, result.summary()) == ({}, (), "rewrites: none")
    assert serialized(result.model) == before


def test_summary() -> None:
    refusals = (Refusal("fold", "norm5", "no ReLU"), Refusal("pool", "conv", "padded"))
    result = RewriteResult(graph("y = Relu(x)", {}), {"pool": 2, "fold": 0}, refusals)
    expected = "rewrites: pool x2, fold x0\n  refused: fold at norm5: no ReLU"
    assert result.summary() == f"{expected}\n  refused: pool at conv: padded"


def test_refusals_of_all_rules_are_reported() -> None:
    body = "n = BatchNormalization(x, gamma, beta, mean, var) c = Conv(n, w)"
    pool = "y = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]>(c)"
    result = rewrite(graph(f"{body} {pool}", batchnorm() | {"w": normal(5, 4, 1, 1)}), BOTH)
    assert [(r.rule, r.node) for r in result.refusals] == [
        ("pool_before_conv", "c"),
        ("fold_preactivation", "n"),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_constants_survive_when_their_only_reader_is_rewritten_twice(seed: int) -> None:
    # BN -> ReLU -> Conv1x1 -> Pool: the pool moves between ReLU and Conv, and BN folds across it.
    body = "n = BatchNormalization(x, gamma, beta, mean, var) r = Relu(n) c = Conv(r, w, b)"
    arrays = batchnorm(seed=seed) | {"w": normal(5, 4, 1, 1, seed=seed), "b": normal(5)}
    model = graph(f"{body} y = AveragePool <kernel_shape = [3, 2]>(c)", arrays)
    images = normal(2, 4, 8, 8)
    expected = run_onnxruntime(model, images)
    result = rewrite(model, BOTH)
    assert operators(result.model) == {"Add": 1, "AveragePool": 1, "Conv": 1, "Mul": 1, "Relu": 1}
    assert difference(run_onnxruntime(result.model, images), expected) <= 1e-5
