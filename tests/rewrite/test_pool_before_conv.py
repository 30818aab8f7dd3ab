"""Pooling before a 1x1 convolution: exact where it applies, and a reason where it does not."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy.export import to_bytes
from densenet_deploy.rewrite import pool_before_conv, rewrite
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
    run_onnxruntime,
    serialized,
)

CONV = "c = Conv(x, w)"
WEIGHT = {"w": normal(5, 4, 1, 1)}


def swap_exactly(model: ir.Model, count: int, *shape: int) -> ir.Model:
    """Swaps everything in float32 and in double, and compares both with the original."""
    result = rewrite_exactly(model, [pool_before_conv], *shape)
    assert result.counts == {"pool_before_conv": count} and not result.refusals
    return result.model


def order(model: ir.Model) -> list[tuple[str, str, str | None]]:
    """(operator, name, output) of every node."""
    return [(node.op_type, str(node.name), node.outputs[0].name) for node in model.graph]


@settings(max_examples=25, derandomize=True)
@given(RANDOM_NETS)
def test_exact_on_random_densenets(net: RandomNet) -> None:
    count = net.transitions if net.transition == "after" else 0
    swap_exactly(random_densenet(net), count, 2, net.channels[0], *net.size)


@settings(max_examples=40, derandomize=True)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    count_include_pad=st.integers(0, 1),
    group=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    valid=st.booleans(),
)
def test_exact_for_any_window(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    count_include_pad: int,
    group: int,
    bias: bool,
    valid: bool,
) -> None:
    if valid:
        dilations = (1, 1)  # onnx.reference 1.23 sizes a VALID pool as if it had none
    window = f"kernel_shape = {list(kernel)}, strides = {list(strides)}"
    window += f", dilations = {list(dilations)}, count_include_pad = {count_include_pad}"
    window += ', auto_pad = "VALID"' if valid else ", pads = [0, 0, 0, 0]"
    inputs = "x, w, b" if bias else "x, w"
    body = f"c = Conv <group = {group}>({inputs}) p = AveragePool <{window}>(c) y = Relu(p)"
    arrays = {"w": normal(8, 4 // group, 1, 1)} | ({"b": normal(8)} if bias else {})
    model = swap_exactly(graph(body, arrays, "float[N, 4, 7, 9] x"), 1, 2, 4, 7, 9)
    assert [node.op_type for node in model.graph] == ["AveragePool", "Conv", "Relu"]
    pool = model.graph[0]
    assert tuple(pool.attributes["kernel_shape"].as_ints()) == kernel
    assert pool.outputs[0].shape is not None and pool.outputs[0].shape[:2] == ("N", 4)


def test_the_name_of_a_graph_output_stays() -> None:
    model = swap_exactly(graph(f"{CONV} y = {POOL}(c)", WEIGHT), 1, 2, 4, 8, 8)
    assert order(model) == [("AveragePool", "y", "c"), ("Conv", "c", "y")]
    output = model.graph.outputs[0]
    assert (output.name, output.dtype, list(output.shape or ())) == (
        "y",
        ir.DataType.FLOAT,
        ["N", 5, 4, 4],
    )


def test_two_convolutions_of_one_input() -> None:
    body = f"{CONV} p = {POOL}(c) d = Conv(x, v) q = {POOL}(d) y = Concat <axis = 1>(p, q)"
    model = swap_exactly(graph(body, WEIGHT | {"v": normal(3, 4, 1, 1)}), 2, 2, 4, 8, 8)
    names = [name for _, _, name in order(model)]
    assert len(set(names)) == len(names)


def test_a_pool_read_twice() -> None:
    body = f"{CONV} p = {POOL}(c) r = Relu(p) s = Sigmoid(p) y = Add(r, s)"
    swap_exactly(graph(body, WEIGHT), 1, 2, 4, 8, 8)


def test_pools_in_a_row_move_one_after_the_other() -> None:
    model = swap_exactly(graph(f"{CONV} p = {POOL}(c) y = {POOL}(p)", WEIGHT), 2, 2, 4, 8, 8)
    assert [operator for operator, _, _ in order(model)] == ["AveragePool", "AveragePool", "Conv"]


def test_a_convolution_in_one_dimension() -> None:
    body = "c = Conv(x, w) y = AveragePool <kernel_shape = [3]>(c)"
    model = graph(body, {"w": normal(5, 4, 1)}, "float[N, 4, 8] x", "float[N, K, P] y")
    swap_exactly(model, 1, 2, 4, 8)


def test_works_without_known_shapes() -> None:
    model = graph(f"{CONV} p = {POOL}(c) y = Relu(p)", WEIGHT)
    for node in list(model.graph)[:2]:
        node.outputs[0].shape = node.outputs[0].type = None
    result = rewrite(model, [pool_before_conv])
    assert result.counts == {"pool_before_conv": 1}
    assert run_onnxruntime(to_bytes(result.model), normal(2, 4, 8, 8)).shape == (2, 5, 4, 4)


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "kernel 3x3": (
        f"{CONV} y = {POOL}(c)",
        "its kernel is 3x3, not 1x1",
        {"w": normal(5, 4, 3, 3)},
    ),
    "kernel 1x3": (
        f"{CONV} y = {POOL}(c)",
        "its kernel is 1x3, not 1x1",
        {"w": normal(5, 4, 1, 3)},
    ),
    "stride 2": (f"c = Conv <strides = [2, 2]>(x, w) y = {POOL}(c)", "its stride is not 1", {}),
    "stride 1x2": (f"c = Conv <strides = [1, 2]>(x, w) y = {POOL}(c)", "its stride is not 1", {}),
    "padded convolution": (
        f"c = Conv <pads = [0, 0, 1, 0]>(x, w) y = {POOL}(c)",
        "the convolution or the pool is padded",
        {},
    ),
    "padded pool": (
        f"{CONV} y = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]>(c)",
        "the convolution or the pool is padded",
        {},
    ),
    "convolution that pads itself": (
        f'c = Conv <auto_pad = "SAME_UPPER">(x, w) y = {POOL}(c)',
        "the convolution or the pool pads automatically",
        {},
    ),
    "pool that pads itself": (
        f'{CONV} y = AveragePool <kernel_shape = [3, 3], auto_pad = "SAME_LOWER">(c)',
        "the convolution or the pool pads automatically",
        {},
    ),
    "ceil mode": (
        f"{CONV} y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(c)",
        "the pool rounds its output size up",
        {},
    ),
    "convolution read twice": (
        f"{CONV} p = AveragePool <kernel_shape = [1, 1]>(c) y = Add(p, c)",
        "something else reads the convolution's output",
        {},
    ),
    "computed weight": (
        f"v = Abs(w) c = Conv(x, v) y = {POOL}(c)",
        "its weight is not constant",
        {},
    ),
}


def assert_refused(model: ir.Model, reason: str) -> None:
    assert refusals(model, pool_before_conv) == [f"c: {reason}"]


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    body, reason, changes = REFUSED[name]
    assert_refused(graph(body, WEIGHT | changes), reason)


def test_refuses_a_convolution_that_is_a_graph_output() -> None:
    outputs = "float[N, K, P, Q] y, float[N, 5, 8, 8] c"
    model = graph(f"{CONV} y = {POOL}(c)", WEIGHT, outputs=outputs)
    assert_refused(model, "something else reads the convolution's output")


def test_refuses_a_weight_that_is_an_input() -> None:
    inputs = "float[N, 4, 8, 8] x, float[5, 4, 1, 1] w"
    assert_refused(graph(f"{CONV} y = {POOL}(c)", {}, inputs), "its weight is not constant")


@pytest.mark.parametrize(
    "body",
    [
        f"y = {POOL}(x)",
        f"r = Relu(x) y = {POOL}(r)",
        f"c = Conv(x, w) r = Relu(c) y = {POOL}(r)",
        "c = Conv(x, w) y = MaxPool <kernel_shape = [2, 2]>(c)",
    ],
)
def test_other_pools_are_no_candidates(body: str) -> None:
    model = graph(body, WEIGHT if "w" in body else {})
    before = serialized(model)
    outcome = pool_before_conv(model.graph)
    assert (outcome.count, outcome.refusals) == (0, [])
    assert serialized(model) == before


def test_nodes_keep_their_number() -> None:
    body = f"{CONV} p = {POOL}(c) y = Relu(p)"
    assert operators(rewrite(graph(body, WEIGHT), [pool_before_conv]).model) == {
        "AveragePool": 1,
        "Conv": 1,
        "Relu": 1,
    }
