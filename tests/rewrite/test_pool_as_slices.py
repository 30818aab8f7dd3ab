"""A pool as a sum of slices: exact where it applies, and a reason where it does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.rewrite import pool_as_slices, pool_before_conv
from tests.graphs import (
    POOL,
    RANDOM_NETS,
    RandomNet,
    graph,
    normal,
    operators,
    random_densenet,
    refusals,
    rewrite_exactly,
)

WEIGHT = {"w": normal(5, 4, 1, 1)}


@settings(max_examples=15, derandomize=True)
@given(RANDOM_NETS)
def test_exact_on_random_densenets(net: RandomNet) -> None:
    shape = (2, net.channels[0], *net.size)
    result = rewrite_exactly(random_densenet(net), [pool_before_conv, pool_as_slices], *shape)
    pools = net.transitions if net.transition == "after" else 0
    assert result.counts == {"pool_before_conv": pools, "pool_as_slices": pools}
    assert operators(result.model).get("Slice", 0) == 4 * pools


@settings(max_examples=15, derandomize=True)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.sampled_from([1, 2, 4]))
def test_exact_for_any_size(height: int, width: int, batch: int, group: int) -> None:
    body = f"p = {POOL}(x) y = Conv <group = {group}, pads = [0, 1, 1, 0]>(p, w, b)"
    arrays = {"w": normal(8, 4 // group, 1, 1), "b": normal(8)}
    model = graph(body, arrays, f"float[N, 4, {height}, {width}] x")
    result = rewrite_exactly(model, [pool_as_slices], batch, 4, height, width)
    assert operators(result.model) == {"Add": 3, "Conv": 1, "Slice": 4}


def test_names() -> None:
    result = rewrite_exactly(
        graph(f"p = {POOL}(x) y = Conv(p, w)", WEIGHT), [pool_as_slices], 2, 4, 8, 8
    )
    names = ["p.slice00", "p.slice01", "p.sum01", "p.slice10", "p.sum10", "p.slice11", "p.sum11"]
    assert [node.name for node in result.model.graph] == [*names, "y"]
    assert [node.outputs[0].name for node in result.model.graph] == [*names, "y"]


CONV = "y = Conv(p, w)"
REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "kernel 3x3": (
        f"p = AveragePool <kernel_shape = [3, 3], strides = [3, 3]>(x) {CONV}",
        "its kernel is 3x3, not 2x2",
        {},
    ),
    "overlapping": (
        f"p = AveragePool <kernel_shape = [2, 2]>(x) {CONV}",
        "its kernel is 2x2, its stride is not",
        {},
    ),
    "padded": (
        f"p = AveragePool <kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 1, 1]>(x) {CONV}",
        "p is padded",
        {},
    ),
    "rounds up": (
        f"p = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x) {CONV}",
        "p rounds its output size up",
        {},
    ),
    "kernel 3x3 of the convolution": (
        f"p = {POOL}(x) {CONV}",
        "the kernel of y is not 1x1",
        {"w": normal(5, 4, 3, 3)},
    ),
    "no convolution": (f"p = {POOL}(x) y = Relu(p)", "a single convolution does not follow", {}),
    "weight": (
        f"s = AveragePool <kernel_shape = [8, 8]>(x) t = Conv(s, w) p = {POOL}(v) y = Conv(x, p)",
        "a single convolution does not follow",
        {"v": normal(5, 4, 2, 2)},
    ),
    "read twice": (
        f"p = {POOL}(x) c = Conv(p, w) y = Concat <axis = 1>(c, p)",
        "a single convolution does not follow",
        {},
    ),
    "computed weight": (
        f"v = Abs(w) p = {POOL}(x) y = Conv(p, v)",
        "the weight of y is not constant",
        {},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    body, reason, changes = REFUSED[name]
    found = refusals(graph(body, WEIGHT | changes), pool_as_slices)
    assert f"p: {reason}" in found


@pytest.mark.parametrize("shape", ["N, 4, H, 8", "N, 4, 8, W"])
def test_refuses_unknown_sizes(shape: str) -> None:
    model = graph(f"p = {POOL}(x) {CONV}", WEIGHT, f"float[{shape}] x")
    expected = ["p: the height and width of its input are not known"]
    assert refusals(model, pool_as_slices) == expected
