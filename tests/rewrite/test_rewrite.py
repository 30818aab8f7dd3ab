"""All rules together, on random nets and on what torch exports."""

from __future__ import annotations

import itertools
from functools import partial
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.recipe import Target
from densenet_deploy.rewrite import (
    INT8_RULES,
    RULES,
    Equalization,
    RewriteResult,
    Rule,
    chain_concat,
    depthwise_preactivation,
    equalize_concat,
    fold_preactivation,
    pool_before_conv,
    relu_after_pool,
    rewrite,
    unfold_preactivation,
)
from densenet_deploy.rewrite.outcome import Refusal
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    batchnorm,
    difference,
    equalizations,
    exported,
    graph,
    normal,
    operators,
    random_densenet,
    rewrite_exactly,
    run_onnxruntime,
    serialized,
)

BOTH = (pool_before_conv, fold_preactivation)


@settings(max_examples=30, derandomize=True)
@given(RANDOM_NETS, st.sampled_from(list(itertools.permutations(BOTH))))
def test_exact_in_any_order(net: RandomNet, rules: tuple[Rule, ...]) -> None:
    result = rewrite_exactly(random_densenet(net), rules, 3, net.channels[0], *net.size)
    pools = net.transitions if net.transition == "after" else 0
    norms = net.layers + net.transitions + 1
    assert result.counts == {"pool_before_conv": pools, "fold_preactivation": norms}


def integer_rules(model: ir.Model, seed: int) -> dict[str, tuple[Rule, ...]]:
    """Every sequence of rules that an INT8 graph may go through, whatever was done before."""
    equalize = partial(equalize_concat, factors=equalizations(model, seed))
    rules: dict[str, tuple[Rule, ...]] = {
        target: (equalize, *INT8_RULES[target]) for target in ("onnxruntime", "tensorrt-rtx")
    }
    depthwise = (depthwise_preactivation, chain_concat, relu_after_pool)
    return rules | {"tensorrt": INT8_RULES["tensorrt"], "depthwise": (equalize, *depthwise)}


@settings(max_examples=30, derandomize=True)
@given(RANDOM_NETS, st.integers(0, 2**32 - 1), st.booleans())
def test_integer_rules_are_exact_after_a_fold(net: RandomNet, seed: int, folded: bool) -> None:
    model = random_densenet(net)
    if folded:
        model = rewrite(model, (pool_before_conv, fold_preactivation, unfold_preactivation)).model
    for rules in integer_rules(model, seed).values():
        result = rewrite_exactly(model, rules, 2, net.channels[0], *net.size)
        refused = {refusal.rule for refusal in result.refusals}
        padded = net.transition == "before" or not net.bottleneck
        assert not refused or padded


@settings(max_examples=10, derandomize=True)
@given(RANDOM_NETS)
def test_nothing_is_left_to_do(net: RandomNet) -> None:
    once = rewrite(random_densenet(net), BOTH).model
    before = serialized(once)
    again = rewrite(once, BOTH)
    assert again.counts == {"pool_before_conv": 0, "fold_preactivation": 0}
    assert not again.refusals and serialized(again.model) == before


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt-rtx"])
def test_exact_on_an_exported_net(target: Target) -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    before = rewrite(export.model, BOTH)
    assert before.counts == {"pool_before_conv": 2, "fold_preactivation": 21}
    model = rewrite(before.model, [unfold_preactivation]).model
    rules = integer_rules(model, 0)[target]
    result = rewrite_exactly(model, rules, export.images[:1])
    assert not result.refusals
    common = {"equalize_concat": 21, "pool_before_conv": 0}
    common |= {"clamp_preactivation": 21}
    integer = {"depthwise_preactivation": 0, "pool_as_convolution": 2, "chain_concat": 15}
    signed = {"relu_after_pool": 0, "fold_preactivation": 0, "pool_as_slices": 2}
    assert result.counts == common | (integer if target == "onnxruntime" else signed)
    # fold was exact before, so the whole way from the export is.
    found = run_onnxruntime(result.model, export.images[:4])
    assert difference(found, run_onnxruntime(export.model, export.images[:4])) <= 1e-5


def test_values_keep_their_names() -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    names = {node.outputs[0].name for node in export.model.graph if node.op_type != "Relu"}
    norms = {name for name in names if name and ".norm" in name}
    for target, rules in INT8_RULES.items():
        result = rewrite(export.model, rules)
        kept = {node.outputs[0].name for node in result.model.graph}
        pools = {f"features.transition{i}.averagepool" for i in (1, 2)}
        gone = norms | (pools if target == "tensorrt-rtx" else set())
        assert names - kept == gone


def test_rules_of_each_target() -> None:
    assert set(RULES) == set(get_args(Target))
    norms = {}
    for target, rules in RULES.items():
        result = rewrite(exported("densenet-bc-40-12", fuse=False).model, rules)
        assert result.counts["pool_before_conv"] == 2 and not result.refusals
        norms[target] = operators(result.model).get("BatchNormalization", 0)
    assert norms == {"tensorrt": 0, "tensorrt-rtx": 0, "openvino": 21, "onnxruntime": 21}


def test_the_rules_for_int8_leave_no_norm_and_no_pool_to_the_cpu() -> None:
    assert set(INT8_RULES) == set(get_args(Target))
    for target in ("onnxruntime", "openvino"):
        result = rewrite(exported("densenet-bc-40-12", fuse=False).model, INT8_RULES[target])
        assert not {"BatchNormalization", "AveragePool", "Add", "Mul"} & set(
            operators(result.model)
        )


def test_a_rule_that_is_bound_and_one_that_is_applied_twice() -> None:
    body = "c = Conv(x, w) n = BatchNormalization(c, gamma, beta, mean, var) y = Relu(n)"
    model = graph(body, batchnorm() | {"w": normal(4, 4, 1, 1)})
    factors = {"c": Equalization(np.full(4, 2.0), np.zeros(4))}
    rule = partial(equalize_concat, factors=factors)
    result = rewrite(model, [rule, rule])
    assert result.counts == {"equalize_concat": 2}
    assert result.applied == {"equalize_concat": ("c", "c")}


def test_where_rules_were_applied() -> None:
    result = rewrite(exported("densenet-bc-40-12", fuse=False).model, BOTH)
    assert result.counts == {name: len(names) for name, names in result.applied.items()}
    transitions = [f"features.transition{number}" for number in (1, 2)]
    assert result.applied["pool_before_conv"] == tuple(f"{name}.conv" for name in transitions)
    norms = result.applied["fold_preactivation"]
    assert norms[:2] == tuple(f"features.denseblock1.denselayer{n}.norm1" for n in (1, 2))
    assert {f"{name}.norm" for name in transitions} < set(norms) and norms[-1] == "features.norm5"


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
