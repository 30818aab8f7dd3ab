"""A pool as a depthwise convolution: exact where it applies, and a reason where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.rewrite import pool_as_convolution
from densenet_deploy.rewrite.graph import constant
from tests.graphs import (
    POOL,
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
    result = rewrite_exactly(random_densenet(net), [pool_as_convolution], *shape)
    applied = net.transitions if net.transition == "after" else 0
    refused = net.transitions if net.transition == "before" else 0
    assert result.counts == {"pool_as_convolution": applied}
    assert len(result.refusals) == refused == operators(result.model).get("AveragePool", 0)


@settings(max_examples=20, derandomize=True)
@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 1), st.booleans())
def test_exact_for_any_window(kernel: tuple[int, int], count: int, valid: bool) -> None:
    window = f"kernel_shape = {list(kernel)}, strides = {list(kernel)}"
    padding = 'auto_pad = "VALID"' if valid else "pads = [0, 0, 0, 0]"
    body = f"y = AveragePool <{window}, count_include_pad = {count}, {padding}>(x)"
    model = graph(body, {}, "float[N, 3, 7, 9] x")
    result = rewrite_exactly(model, [pool_as_convolution], 2, 3, 7, 9)
    [conv] = result.model.graph
    assert (conv.op_type, conv.name, conv.outputs[0].name) == ("Conv", "y", "y")
    weight = constant(result.model.graph.initializers["y.mean"])
    assert weight is not None and weight.shape == (3, 1, *kernel)
    np.testing.assert_array_equal(weight, np.float32(1 / np.prod(kernel)))


def test_a_pool_in_one_dimension_that_is_read_twice() -> None:
    body = "p = AveragePool <kernel_shape = [3], strides = [3]>(x) a = Abs(p) y = Add(a, p)"
    model = graph(body, {}, "float[N, 4, 8] x", "float[N, K, P] y")
    assert rewrite_exactly(model, [pool_as_convolution], 2, 4, 8).counts["pool_as_convolution"] == 1


@pytest.mark.parametrize(
    "window, reason",
    [
        ("kernel_shape = [3, 3], strides = [2, 2]", "its kernel is 3x3, its stride is not"),
        ("kernel_shape = [2, 2]", "its kernel is 2x2, its stride is not"),
        ("kernel_shape = [3, 3], strides = [3, 3], pads = [1, 0, 0, 0]", "y is padded"),
        ('kernel_shape = [3, 3], strides = [3, 3], auto_pad = "SAME_UPPER"', "y pads auto"),
        ("kernel_shape = [3, 3], strides = [3, 3], ceil_mode = 1", "y rounds its output size up"),
        ("kernel_shape = [2, 2], strides = [2, 2], dilations = [1, 2]", "its kernel is dilated"),
    ],
)
def test_refusal(window: str, reason: str) -> None:
    model = graph(f"y = AveragePool <{window}>(x)", {})
    [refusal] = refusals(model, pool_as_convolution)
    assert refusal.startswith(f"y: {reason}")


def test_refuses_unknown_channels_and_types() -> None:
    model = graph(f"y = {POOL}(x)", {}, "float[N, C, 8, 8] x")
    [refusal] = refusals(model, pool_as_convolution)
    assert refusal == "y: the channels of x are not known"
    model = graph(f"p = {POOL}(x) y = Relu(p)", {})
    model.graph[0].outputs[0].type = None
    assert refusals(model, pool_as_convolution) == ["p: its type is not known"]
