"""What TensorRT-RTX made of a graph: the layer list of a detailed build log, in bytes of traffic.

TensorRT-RTX compiles without a GPU and says in its log which kernels it will run and in which
types, so fusion is tested everywhere. `build_engine(..., log=path)` writes such a log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from densenet_deploy.errors import BuildError

Role = Literal["convolution", "quantize", "move", "float", "other"]
_BITS = {"Float": 32, "Half": 16, "BFloat16": 16, "Int8": 8, "UInt8": 8, "FP8": 8, "Bool": 8}
_BITS |= {"BF16": 16, "E8M0": 8, "Int4": 4, "FP4": 4, "Int32": 32, "Int64": 64}
_QUANTIZED = {"Int8", "FP8", "Int4", "FP4"}
# The steps of a generated kernel are in its name, in four letters each: __myl_MulMinMaxRounCast_..
_QUANTIZING = {"Mul", "Min", "Max", "Roun", "Cast", "Move", "Tran", "Resh"}
_MOVING = {"Move", "Cast", "Tran", "Resh", "Conc", "Slic"}
_STEPS = re.compile(r"__myl_(\w+?)_myl\d+_\d+")

_START = re.compile(r"^.*\bLayers:$", re.MULTILINE)
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*)\], "
    r"Constants: \[.*\], Outputs: \[(?P<outputs>.*)\], TacticName: (?P<kernel>.*?), "
    r"StreamId: \d+.*?, Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(
    r" \{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[\d,-]*)\], Strides: [^{}]*?"
    r"Datatype: (?P<dtype>\w+), Format: [^{}]*\}(?:,| *$)"
)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1f|\[|\s*$)")
_PART = re.compile(r"(.*?\b(?:denselayer|transition)\d+|features\.\w+|[^.]+).*")


@dataclass(frozen=True)
class Tensor:
    """An activation that a layer reads or writes; a size of -1 depends on the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int | None:
        """Size; None where it depends on the batch."""
        known = min(self.shape, default=0) >= 0
        return math.ceil(math.prod(self.shape) * _BITS[self.dtype] / 8) if known else None


@dataclass(frozen=True)
class Layer:
    """One kernel of the engine; weights and other constants are not part of its traffic.

    Attributes:
        name: The builder's name.
        kind: The builder's type: `correlation` (a convolution), `kgen` (generated), `gemm`, ...
        kernel: The builder's tactic.
        inputs: Activations read, the data first.
        outputs: Activations written.
        nodes: ONNX nodes it computes, as far as the builder says.
        module: Of `nodes`, the one it is named after; empty for generated kernels.
        part: DenseNet layer it works for, such as `features.denseblock1.denselayer1`: of those its
            nodes belong to, the last in the network.
    """

    name: str
    kind: str
    kernel: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]
    module: str
    part: str

    @property
    def role(self) -> Role:
        """`convolution`; `quantize` or `move` where it does nothing else; `float` where it computes
        without any quantized activation; `other`."""
        if self.kind == "correlation":
            return "convolution"
        generated = _STEPS.fullmatch(self.name)
        steps = set(re.findall("[A-Z][a-z]*", generated[1])) if generated else set()
        if "Roun" in steps <= _QUANTIZING and self.outputs[0].dtype in _QUANTIZED:
            return "quantize"
        if steps and steps <= _MOVING:
            return "move"
        dtypes = {tensor.dtype for tensor in (*self.inputs, *self.outputs)}
        return "other" if dtypes & _QUANTIZED else "float"

    @property
    def reads_int8(self) -> bool:
        """Whether its data input is Int8."""
        return bool(self.inputs) and self.inputs[0].dtype == "Int8"


@dataclass(frozen=True)
class EngineLayers:
    """Layers in the order they run, without those that only synchronize."""

    layers: tuple[Layer, ...]

    @property
    def bytes_in(self) -> int | None:
        """Activation bytes that all layers read; None where they depend on the batch."""
        return _total(tensor.bytes for layer in self.layers for tensor in layer.inputs)

    @property
    def bytes_out(self) -> int | None:
        """Activation bytes that all layers write; None where they depend on the batch."""
        return _total(tensor.bytes for layer in self.layers for tensor in layer.outputs)

    def of(self, role: Role) -> EngineLayers:
        """The layers of one role."""
        return EngineLayers(tuple(layer for layer in self.layers if layer.role == role))

    def without_int8(self) -> tuple[str, ...]:
        """Names of the convolutions that do not read Int8."""
        convolutions = self.of("convolution").layers
        return tuple(layer.module or layer.name for layer in convolutions if not layer.reads_int8)

    def parts(self) -> dict[str, EngineLayers]:
        """The layers of each DenseNet layer."""
        names = dict.fromkeys(layer.part for layer in self.layers)
        return {
            name: EngineLayers(tuple(layer for layer in self.layers if layer.part == name))
            for name in names
        }

    def summary(self) -> str:
        """A table for people: a row for each DenseNet layer, sizes in MB (1e6 bytes)."""
        width = max(map(len, (*self.parts(), "compute in float alone")))
        lines = [f"{'DenseNet layer':{width}}  kernels    MB in   MB out  convolutions"]
        for name, group in self.parts().items():
            types = ", ".join(map(_types, group.of("convolution").layers))
            lines.append(f"{name:{width}}  {_sizes(group)}  {types}".rstrip())
        sums = {"total": self, "only quantize": self.of("quantize")}
        sums |= {"only move data": self.of("move"), "compute in float alone": self.of("float")}
        lines += [f"{name:{width}}  {_sizes(group)}" for name, group in sums.items()]
        wide, count = self.without_int8(), len(self.of("convolution").layers)
        named = f", not {', '.join(wide)}" if 0 < len(wide) < count else ""
        lines.append(f"Int8 input: {count - len(wide)} of {count} convolutions{named}")
        if self.bytes_in is None or self.bytes_out is None:
            lines.append("unknown: sizes depend on the batch. Build with a static batch: 1,1,1")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes, null where they depend on the batch."""
        return {
            **_record(self),
            "convolutions_without_int8_input": list(self.without_int8()),
            "roles": {role: _record(self.of(role)) for role in get_args(Role)},
            "parts": {name: _record(group) for name, group in self.parts().items()},
        }


def parse_build_log(text: str) -> EngineLayers:
    """Reads the layer list out of a detailed, verbose build log of TensorRT-RTX.

    Raises:
        BuildError: There is none, there are several, or a line of it cannot be read.
    """
    starts = list(_START.finditer(text))
    if len(starts) != 1:
        raise _malformed(f"the build log has {len(starts)} layer lists", "exactly one")
    body, ended, _ = text[starts[0].end() :].partition("\n\nI/O Tensors:")
    if not ended:
        raise _malformed("the layer list of the build log has no end", "`I/O Tensors:` after it")
    first = text.count("\n", 0, starts[0].end()) + 2
    order: dict[str, int] = {}  # of the DenseNet layers, by first appearance
    lines = enumerate(body.split("\n")[1:], first)
    layers = [_layer(line, f"line {number} of the build log", order) for number, line in lines]
    working = tuple(layer for layer in layers if layer.inputs or layer.outputs)
    if not working:
        raise _malformed("the layer list of the build log is empty", "at least one layer")
    return EngineLayers(working)


def _layer(line: str, place: str, order: dict[str, int]) -> Layer:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise _malformed(f"{place} is {line[:80]!r}", "a layer with name, type and tensors")
    inputs, outputs = (_tensors(match[side], place) for side in ("inputs", "outputs"))
    name, nodes = match["name"], tuple(_NODE.findall(match["metadata"]))
    module = max((node for node in nodes if name.startswith(node)), key=len, default="")
    found = {_PART.sub(r"\1", node) for node in ([module] if module else nodes)}
    for part in sorted(found, key=_natural):
        order.setdefault(part, len(order))
    last = max(found, key=order.__getitem__, default="(unnamed)")
    return Layer(name, match["kind"], match["kernel"], inputs, outputs, nodes, module, last)


def _tensors(text: str, place: str) -> tuple[Tensor, ...]:
    tensors, position = [], 0
    while text[position:].strip():
        match = _TENSOR.match(text, position)
        if match is None or match["dtype"] not in _BITS:
            found = f"{place} has the tensor {text[position : position + 160]!r}"
            raise _malformed(found, f"dimensions and a type of {', '.join(sorted(_BITS))}")
        shape = tuple(int(size) for size in match["shape"].split(",") if size)
        tensors.append(Tensor(match["name"], match["dtype"], shape))
        position = match.end()
    return tuple(tensors)


def _malformed(found: str, expected: str) -> BuildError:
    remedy = "build one engine with `build_engine(..., log=path)` and read the whole of that log"
    return BuildError(found, expected=expected, remedy=remedy)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(digits or 0), other) for digits, other in re.findall(r"(\d+)|(\D+)", text)]


def _total(sizes: Iterable[int | None]) -> int | None:
    listed = list(sizes)
    return None if None in listed else sum(filter(None, listed))


def _record(group: EngineLayers) -> dict[str, int | None]:
    kernels = len(group.layers)
    return {"kernels": kernels, "bytes_in": group.bytes_in, "bytes_out": group.bytes_out}


def _sizes(group: EngineLayers) -> str:
    sizes = (group.bytes_in, group.bytes_out)
    columns = ("unknown" if size is None else f"{size / 1e6:.3f}" for size in sizes)
    return "  ".join((f"{len(group.layers):7}", *(f"{column:>7}" for column in columns)))


def _types(layer: Layer) -> str:
    types = ">".join(tensor.dtype for tensor in (layer.inputs[0], layer.outputs[0]))
    return f"{(layer.module or layer.name).split('.')[-1]} {types}"
