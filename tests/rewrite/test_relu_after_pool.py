"""A ReLU after the max pool: exact where it applies, and a reason where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.rewrite import relu_after_pool
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    graph,
    operators,
    random_densenet,
    refusals,
    rewrite_exactly,
)


@settings(max_examples=15, derandomize=True)
@given(RANDOM_NETS)
def test_exact_on_random_densenets(net: RandomNet) -> None:
    shape = (2, net.channels[0], *net.size)
    model = random_densenet(net)
    result = rewrite_exactly(model, [relu_after_pool], *shape)
    assert result.counts == {"relu_after_pool": int(net.stem)} and not result.refusals
    assert operators(result.model) == operators(model)


@settings(max_examples=30, derandomize=True)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padded=st.booleans(),
)
def test_exact_for_any_window(
    kernel: tuple[int, int], strides: tuple[int, int], padded: bool
) -> None:
    if padded:
        kernel = (kernel[0],) * 2  # onnx.reference 1.23 fails where only one side is padded
    pads = [size - 1 if padded else 0 for size in (*kernel, *kernel)]
    window = f"kernel_shape = {list(kernel)}, strides = {list(strides)}, pads = {pads}"
    model = graph(f"r = Relu(x) y = MaxPool <{window}>(r)", {})
    result = rewrite_exactly(model, [relu_after_pool], 2, 4, 8, 8)
    pool, relu = result.model.graph
    assert (pool.op_type, pool.name, pool.outputs[0].name) == ("MaxPool", "y", "y.before_relu")
    assert (relu.op_type, relu.name, relu.outputs[0].name) == ("Relu", "r", "y")


def test_same_padding_and_dilation() -> None:
    first = 'r = Relu(x) p = MaxPool <kernel_shape = [3, 3], auto_pad = "SAME_UPPER">(r)'
    second = "s = Relu(p) y = MaxPool <kernel_shape = [2, 2], dilations = [2, 3]>(s)"
    result = rewrite_exactly(graph(f"{first} {second}", {}), [relu_after_pool], 2, 4, 8, 8)
    assert result.counts == {"relu_after_pool": 2}


PADDED = "a window may hold padding only"
POOL = "MaxPool <kernel_shape = [2, 2]>"


@pytest.mark.parametrize(
    "body, reason",
    [
        (f"r = Relu(x) p = {POOL}(r) y = Conv(p, r)", "something else reads r"),
        (
            "r = Relu(x) y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(r)",
            PADDED,
        ),
        ("r = Relu(x) y = MaxPool <kernel_shape = [2, 2], pads = [0, 2, 0, 0]>(r)", PADDED),
        (
            "r = Relu(x) y = MaxPool <kernel_shape = [2, 2], dilations = [1, 3],"
            " pads = [1, 1, 1, 1]>(r)",
            PADDED,
        ),
        (
            "r = Relu(x) y, i = MaxPool <kernel_shape = [2, 2]>(r)",
            "it also returns indices, which differ where several pixels are negative",
        ),
    ],
)
def test_refusal(body: str, reason: str) -> None:
    model = graph(body, {}, "float[4, 4, 8, 8] x")
    [refusal] = refusals(model, relu_after_pool)
    assert refusal.endswith(f": {reason}")


def test_refuses_a_relu_that_is_a_graph_output() -> None:
    outputs = "float[N, K, P, Q] y, float[N, 4, 8, 8] r"
    model = graph(f"r = Relu(x) y = {POOL}(r)", {}, outputs=outputs)
    assert refusals(model, relu_after_pool) == ["y: something else reads r"]


@pytest.mark.parametrize("body", [f"y = {POOL}(x)", f"s = Sigmoid(x) y = {POOL}(s)"])
def test_other_pools_are_no_candidates(body: str) -> None:
    assert refusals(graph(body, {}), relu_after_pool) == []
