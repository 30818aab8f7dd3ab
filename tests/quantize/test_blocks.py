"""Who reads what a dense block writes, and how much of it matters to them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from densenet_deploy.quantize.blocks import (
    Block,
    Reader,
    Written,
    dense_blocks,
    silence_unreachable,
)
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    batchnorm,
    exported,
    graph,
    nodes_of,
    normal,
    random_densenet,
    serialized,
    tensors,
)

NORM = "BatchNormalization({}, gamma, beta, mean, var)"


def assert_readers_read(model: ir.Model, blocks: list[Block], images: NDArray[np.float32]) -> None:
    """Every reader's slice of its BatchNormalization's output is scale * x + shift."""
    written = [item for block in blocks for item in block.written]
    norms = [str(norm.outputs[0].name) for norm in nodes_of(model, "BatchNormalization")]
    found = tensors(model, [*(item.name for item in written), *norms], images)
    for item in written:
        value = found[item.name].astype(np.float64)
        for reader in item.readers:
            channels = slice(reader.offset, reader.offset + value.shape[1])
            output = found[str(reader.norm.outputs[0].name)][:, channels]
            scale, shift = (array.reshape(-1, 1, 1) for array in (reader.scale, reader.shift))
            np.testing.assert_allclose(scale * value + shift, output, rtol=1e-4, atol=1e-4)
            assert reader.rectifies


@settings(max_examples=25, derandomize=True)
@given(RANDOM_NETS)
def test_blocks_of_random_densenets(net: RandomNet) -> None:
    model = random_densenet(net)
    blocks = dense_blocks(model.graph)
    assert [len(block.written) for block in blocks] == [1 + layers for layers in net.blocks]
    for block, layers in zip(blocks, net.blocks, strict=True):
        # Layer i is read by the layers after it and by what ends the block.
        readers = [len(item.readers) for item in block.written]
        assert readers == [layers + 1, *range(layers, 0, -1)]
    written = [item for block in blocks for item in block.written]
    assert len({item.name for item in written}) == len(written), "every producer once"
    assert [item.name for item in written if item.rectified] == [
        node.outputs[0].name for node in nodes_of(model, "MaxPool")
    ]
    assert_readers_read(model, blocks, normal(2, net.channels[0], *net.size))


def test_blocks_of_an_exported_net() -> None:
    export = exported("densenet-bc-16-8", fuse=False)
    model = export.model
    blocks = dense_blocks(model.graph)
    assert [block.name for block in blocks] == [f"features.denseblock{i}" for i in (1, 2, 3)]
    names = [[item.name for item in block.written] for block in blocks]
    starts = ["features.conv0", "features.transition1.averagepool"]
    for found, start, block in zip(names, starts, (1, 2), strict=False):
        layers = [f"features.denseblock{block}.denselayer{i}.conv2" for i in (1, 2)]
        assert found == [start, *layers]
    slices = Counter(id(r.norm) for block in blocks for w in block.written for r in w.readers)
    assert sorted(slices.values()) == sorted(3 * [1, 2, 3])
    assert_readers_read(model, blocks, export.images[:2])


@pytest.mark.parametrize(
    "body, outputs",
    [
        (f"k = Concat <axis = 1>(c, x) n = {NORM.format('k')} y = Add(n, k)", ""),
        (f"k = Concat <axis = 1>(c, x) y = {NORM.format('k')}", ", float[N, 8, 8, 8] k"),
        (
            f"k = Concat <axis = 1>(c, x) y = {NORM.format('k')} s = Sigmoid(c)",
            ", float[N, 4, 8, 8] s",
        ),
        (f"k = Concat <axis = 2>(c, x) y = {NORM.format('k')}", ""),
        (f"y = {NORM.format('c')}", ""),
    ],
    ids=["Add reads it", "a graph output", "Sigmoid reads a member", "not of channels", "none"],
)
def test_what_is_no_block(body: str, outputs: str) -> None:
    channels = 8 if "Concat <axis = 1>" in body else 4
    constants = batchnorm(channels) | {"w": normal(4, 4, 1, 1)}
    outputs = f"float[N, K, P, Q] y{outputs}"
    assert dense_blocks(graph(f"c = Conv(x, w) {body}", constants, outputs=outputs).graph) == []


def written(*readers: tuple[NDArray[np.float64], NDArray[np.float64], bool]) -> Written:
    """A value and its readers (scale, shift, whether a ReLU follows)."""
    node = ir.node("BatchNormalization", [])
    return Written(ir.val("v"), tuple(Reader(node, 0, *reader) for reader in readers), False)


NUMBERS = st.floats(-4, 4).map(lambda number: round(number, 2))


@settings(max_examples=300, derandomize=True)
@given(
    st.tuples(NUMBERS, NUMBERS).filter(lambda ends: ends[0] < ends[1]),
    st.lists(st.tuples(NUMBERS, NUMBERS, st.booleans()), min_size=1, max_size=3),
)
def test_readers_cannot_tell_a_value_from_its_useful_part(
    ends: tuple[float, float], readers: list[tuple[float, float, bool]]
) -> None:
    item = written(*((np.array([s]), np.array([b]), relu) for s, b, relu in readers))
    low, high = (np.array([end]) for end in ends)
    bottom, top = item.useful(low, high)
    assert (low <= bottom).all() and (bottom < top).all() and (top <= high).all()
    values = np.linspace(*ends, 201)
    clipped = values.clip(bottom, top)
    read = any(scale for scale, _, _ in readers)
    for scale, shift, relu in readers:
        before, after = scale * values + shift, scale * clipped + shift
        if relu:
            before, after = np.maximum(before, 0), np.maximum(after, 0)
        np.testing.assert_allclose(after, before, atol=1e-12)
    alive = [(s, b) for s, b, _ in readers if s and max(s * ends[0] + b, s * ends[1] + b) > 0]
    if read and len(alive) == len(readers) and all(relu for *_, relu in readers):
        shrunk = [np.maximum(s * np.array([bottom[0], top[0]]) + b, 0) for s, b in alive]
        for end, step in ((0, 1e-6), (1, -1e-6)):
            inner = (bottom, top)[end][0] + step * (top - bottom)[0]
            moved = [
                abs(max(s * inner + b, 0) - row[end])
                for (s, b), row in zip(alive, shrunk, strict=True)
            ]
            assert max(moved) > 0, "some reader sees the last bit of it"


@pytest.mark.parametrize("negative", [False, True])
def test_useful_range_by_hand(negative: bool) -> None:
    sign = -1.0 if negative else 1.0
    item = written((np.array([sign * 2, 0, sign]), np.array([1.0, 5, -9]), True))
    bottom, top = item.useful(np.full(3, -3.0), np.full(3, 3.0))
    beyond = [(-3, 0.5), (-3, 3), (-3, 3)] if negative else [(-0.5, 3), (-3, 3), (-3, 3)]
    np.testing.assert_array_equal(np.stack([bottom, top], axis=1), beyond)


@settings(max_examples=25, derandomize=True)
@given(RANDOM_NETS, st.floats(0.01, 2), st.floats(0.01, 2))
def test_silencing_changes_nothing_that_a_scale_can_represent(
    net: RandomNet, below: float, above: float
) -> None:
    model = random_densenet(net)
    before = [item for block in dense_blocks(model.graph) for item in block.written]
    covered = {item.name: (-below, above) for item in before}
    silence_unreachable(model.graph, covered)
    after = [item for block in dense_blocks(model.graph) for item in block.written]
    values = np.linspace(-below, above, 101)[:, None]
    for old, new in zip(before, after, strict=True):
        for one, other in zip(old.readers, new.readers, strict=True):
            active = np.maximum(one.scale * values + one.shift, 0)
            np.testing.assert_allclose(
                np.maximum(other.scale * values + other.shift, 0), active, rtol=1e-5, atol=1e-5
            )
            dead = (one.scale != 0) & (active.max(axis=0) < -1e-3 * np.abs(one.scale))
            assert not other.scale[dead].any() and not other.shift[dead].any()
            beyond = one.threshold > above + 1e-6
            silent = (one.scale > 0) & beyond | (one.scale < 0) & (one.threshold < -below - 1e-6)
            assert not other.scale[silent].any()
            np.testing.assert_allclose(other.scale[~silent], one.scale[~silent], atol=1e-6)


def test_nothing_to_silence() -> None:
    model = exported("densenet-bc-16-8", fuse=False).model
    before = serialized(model)
    wide = (-1e9, 1e9)
    written = [item.name for block in dense_blocks(model.graph) for item in block.written]
    silence_unreachable(model.graph, dict.fromkeys(written, wide))
    assert serialized(model) == before
