"""Extending a concat: the same values under the same names, and a reason where it cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from densenet_deploy.rewrite import chain_concat
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    graph,
    random_densenet,
    refusals,
    rewrite_exactly,
)

JOIN = "Concat <axis = 1>"
PARTS = "a = Relu(x) b = Sigmoid(x) c = Tanh(x) d = Abs(x)"


@settings(max_examples=15, derandomize=True)
@given(RANDOM_NETS)
def test_exact_on_random_densenets(net: RandomNet) -> None:
    shape = (2, net.channels[0], *net.size)
    model = random_densenet(net)
    result = rewrite_exactly(model, [chain_concat], *shape)
    rebuilt = sum(layers - 1 for layers in net.blocks) if net.rebuilt else 0
    assert result.counts == {"chain_concat": rebuilt} and not result.refusals
    before = [node.outputs[0].name for node in model.graph if node.op_type == "Concat"]
    after = [node for node in result.model.graph if node.op_type == "Concat"]
    assert [node.outputs[0].name for node in after] == before
    assert all(len(node.inputs) == 2 for node in after)
    assert chain_concat(result.model.graph).count == 0


@pytest.mark.parametrize("axis", [1, -3])
def test_a_whole_block(axis: int) -> None:
    body = f"{PARTS} p = {JOIN}(a, b) q = {JOIN}(a, b, c) y = {JOIN}(a, b, c, d)"
    model = graph(body.replace("axis = 1", f"axis = {axis}"), {})
    result = rewrite_exactly(model, [chain_concat], 2, 4, 8, 8)
    inputs = {n.name: [v.name for v in n.inputs if v] for n in result.model.graph}
    assert (inputs["p"], inputs["q"], inputs["y"]) == (["a", "b"], ["p", "c"], ["q", "d"])


def test_an_earlier_concat_that_is_a_graph_output() -> None:
    outputs = "float[N, K, P, Q] y, float[N, 8, 8, 8] p"
    model = graph(f"{PARTS} p = {JOIN}(a, b) y = {JOIN}(a, b, b)", {}, outputs=outputs)
    result = rewrite_exactly(model, [chain_concat], 2, 4, 8, 8)
    assert result.counts == {"chain_concat": 1}


@pytest.mark.parametrize(
    "body",
    [
        f"{PARTS} y = {JOIN}(a, b, c)",
        f"{PARTS} p = {JOIN}(b, a) q = {JOIN}(p, p) y = {JOIN}(a, b, q)",
        f"{PARTS} p = {JOIN}(a, c) q = {JOIN}(p, p) y = {JOIN}(a, b, q)",
        f"{PARTS} p = Concat <axis = 2>(a, b) q = {JOIN}(p, p) r = Abs(q) y = {JOIN}(a, b, c)",
    ],
)
def test_refusal(body: str) -> None:
    reason = "y: no earlier concat holds all its inputs but the last"
    assert refusals(graph(body, {}), chain_concat) == [reason]


@pytest.mark.parametrize(
    "body", [f"{PARTS} p = Concat <axis = 2>(a, b) y = Concat <axis = 2>(a, b, c)"]
)
def test_concats_of_pixels_are_no_candidates(body: str) -> None:
    assert refusals(graph(body, {}), chain_concat) == []
