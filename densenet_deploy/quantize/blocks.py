"""What a dense block writes into its concatenation, and who reads it.

One quantization scale may have to serve a whole block, so its channels matter one by one. A reader
is a BatchNormalization followed by ReLU: relu(s * x + b) is constant beyond t = -b / s. What lies
beyond the thresholds of all readers of a channel carries no information: a range need not cover it,
and saturation there costs nothing. That is the useful range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.rewrite.graph import channels_of, constant, joins_channels, only_reader
from densenet_deploy.rewrite.outcome import Refused
from densenet_deploy.rewrite.preactivation import affine
from densenet_deploy.rewrite.weights import replace_constant

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """The slice of a BatchNormalization that reads one written value: scale * x + shift.

    Attributes:
        norm: The BatchNormalization.
        offset: Its channel that reads the value's first.
        scale: (C,) of the value's channels.
        shift: (C,) likewise.
        rectifies: Only a ReLU follows.
    """

    norm: ir.Node
    offset: int
    scale: Array
    shift: Array
    rectifies: bool

    @property
    def threshold(self) -> Array:
        """(C,) where the ReLU begins, or ends where the scale is negative; inf where it is 0."""
        flat = self.scale == 0
        return np.where(flat, np.inf, -self.shift / np.where(flat, 1.0, self.scale))


@dataclass(frozen=True)
class Written:
    """One value written into a block's concatenation.

    Attributes:
        value: (N, C, H, W), by a convolution, perhaps through pooling.
        readers: All BatchNormalizations that read it.
        rectified: It comes out of a ReLU, so it cannot be shifted.
    """

    value: ir.Value
    readers: tuple[Reader, ...]
    rectified: bool

    @property
    def name(self) -> str:
        """Name of the value."""
        assert self.value.name is not None
        return self.value.name

    def useful(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The part of [low, high] that any reader can tell apart; all of it where none can."""
        bottom, top = self.distinguished(low, high)
        empty = ~(bottom < top)
        return np.where(empty, low, bottom), np.where(empty, high, top)

    def distinguished(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The part of [low, high] that any reader can tell apart; its ends cross where none can."""
        least, most = np.full_like(low, np.inf), np.full_like(high, -np.inf)
        for reader in self.readers:
            rising, falling = reader.scale > 0, reader.scale < 0
            first = np.where(rising & reader.rectifies, reader.threshold, low)
            last = np.where(falling & reader.rectifies, reader.threshold, high)
            least = np.where(rising | falling, np.minimum(least, first), least)
            most = np.where(rising | falling, np.maximum(most, last), most)
        return np.maximum(low, least), np.minimum(high, most)


@dataclass(frozen=True)
class Block:
    """Values that meet in concatenations, and so may have to share one scale."""

    name: str
    written: tuple[Written, ...]


def dense_blocks(graph: ir.Graph) -> list[Block]:
    """The blocks of a graph whose concatenations are read by BatchNormalization alone."""
    concats = [node for node in graph if joins_channels(node)]
    made = {node.outputs[0] for node in concats}
    parent: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        while value in parent:
            value = parent[value]
        return value

    for node in concats:
        for value in node.inputs:
            assert value is not None
            if root(value) is not root(node.outputs[0]):
                parent[root(value)] = root(node.outputs[0])
    members: dict[ir.Value, list[ir.Value]] = {}
    for node in concats:
        for value in node.inputs:
            assert value is not None
            group = members.setdefault(root(value), [])
            if value not in made and value not in group:
                group.append(value)
    blocks = [_block(values) for values in members.values()]
    return [block for block in blocks if block is not None]


def _block(values: list[ir.Value]) -> Block | None:
    written = []
    for value in values:
        readers = list(_readers(value, 0, channels_of(value)))
        if any(reader is None for reader in readers):
            return None
        known = tuple(reader for reader in readers if reader is not None)
        written.append(Written(value, known, _is_rectified(value)))
    producer = values[-1].producer()
    name = (producer.name if producer is not None else "") or values[-1].name or ""
    return Block(name.rsplit(".", 2)[0], tuple(written))


def _readers(value: ir.Value, offset: int, width: int) -> Iterator[Reader | None]:
    """Readers of the `width` channels from `offset` of `value`; None for one of another kind."""
    if value.is_graph_output():
        yield None
    for node, index in value.uses():
        if joins_channels(node):
            before = sum(channels_of(other) for other in node.inputs[:index])
            yield from _readers(node.outputs[0], offset + before, width)
        else:
            yield _reader(node, index, slice(offset, offset + width))


def _reader(node: ir.Node, index: int, channels: slice) -> Reader | None:
    if node.op_type != "BatchNormalization" or index:
        return None
    try:
        scale, shift = affine(node)
    except Refused:
        return None
    relu = only_reader(node.outputs[0])
    rectifies = relu is not None and relu.op_type == "Relu"
    return Reader(node, channels.start, scale[channels], shift[channels], rectifies)


def _is_rectified(value: ir.Value) -> bool:
    producer = value.producer()
    while producer is not None and producer.op_type in ("MaxPool", "AveragePool"):
        value = producer.inputs[0]  # type: ignore[assignment]
        producer = value.producer()
    return producer is not None and producer.op_type == "Relu"


def silence_unreachable(graph: ir.Graph, covered: Mapping[str, tuple[float, float]]) -> None:
    """Zeroes the channels of readers whose threshold lies beyond what the scales can represent.

    Saturated integers never cross such a threshold, so the ReLU gives 0; a threshold that is
    clipped to the last integer instead would leave a remainder.

    Args:
        graph: Changed in place.
        covered: (low, high) that the scale of each written value covers, by name.
    """
    for block in dense_blocks(graph):
        for written in block.written:
            low, high = covered[written.name]
            for reader in written.readers:
                beyond = (reader.scale > 0) & (reader.threshold > high)
                beyond |= (reader.scale < 0) & (reader.threshold < low)
                if reader.rectifies and beyond.any():
                    _zero(graph, reader, beyond)


def _zero(graph: ir.Graph, reader: Reader, where: NDArray[np.bool_]) -> None:
    channels = np.arange(reader.offset, reader.offset + len(where))[where]
    for index in (1, 2):  # scale and shift
        parameter = np.array(constant(reader.norm.inputs[index]))
        parameter[channels] = 0
        replace_constant(graph, reader.norm, index, parameter, ".reached")
