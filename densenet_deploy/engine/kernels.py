"""What an engine is made of: kernels with the activations they read and write, in bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Role = Literal["convolution", "quantize", "move", "float", "other"]
BITS = {"Float": 32, "Half": 16, "BFloat16": 16, "Int8": 8, "UInt8": 8, "FP8": 8, "Bool": 8}
BITS |= {"BF16": 16, "E8M0": 8, "Int4": 4, "FP4": 4, "Int32": 32, "Int64": 64}
QUANTIZED = frozenset({"Int8", "FP8", "Int4", "FP4"})
# The steps of a generated kernel are in its name, in four letters each: __myl_MulMinMaxRounCast_..
_QUANTIZING = {"Mul", "Min", "Max", "Roun", "Cast", "Move", "Tran", "Resh"}
_MOVING = {"Move", "Cast", "Tran", "Resh", "Conc", "Slic", "Repl"}
_STEPS = re.compile(r"__myl_(\w+?)_myl\d+_\d+")
# Types of TensorRT's own layers, which the engine inspector names
_CONVERTING = {"Reformat", "Scale", "Quantize", "Dequantize"}
_COPYING = {"Reformat", "Shuffle", "Slice", "Concat", "Concatenation", "Identity", "Cast"}


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
        return math.ceil(math.prod(self.shape) * BITS[self.dtype] / 8) if known else None

    def at_batch(self, batch: int) -> Tensor:
        """The same with `batch` images where dimension 0 depends on it."""
        return replace(self, shape=(batch, *self.shape[1:])) if self.shape[:1] == (-1,) else self


@dataclass(frozen=True)
class Layer:
    """One kernel of the engine; weights and other constants are not part of its traffic.

    Attributes:
        name: The builder's name.
        kind: The builder's type: `correlation` or `CaskConvolution` (a convolution), `kgen`
            (generated), `Reformat`, ...
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
    module: str = ""
    part: str = ""

    @property
    def steps(self) -> frozenset[str]:
        """Operations of a generated kernel, such as `Mul` and `Conc`; empty for other kernels."""
        generated = _STEPS.fullmatch(self.name)
        return frozenset(re.findall("[A-Z][a-z]*", generated[1]) if generated else ())

    @property
    def role(self) -> Role:
        """`convolution`; `quantize` or `move` where it does nothing else; `float` where it computes
        without any quantized activation; `other`."""
        if self.kind == "correlation" or "Conv" in self.kind:
            return "convolution"
        if self._only_quantizes():
            return "quantize"
        if self.kind in _COPYING or (self.steps and self.steps <= _MOVING):
            return "move"
        dtypes = {tensor.dtype for tensor in (*self.inputs, *self.outputs)}
        return "other" if dtypes & QUANTIZED else "float"

    def _only_quantizes(self) -> bool:
        if not self.outputs:
            return False
        written = self.outputs[0].dtype in QUANTIZED
        if self.kind in _CONVERTING:
            return bool(self.inputs) and (self.inputs[0].dtype in QUANTIZED) != written
        return "Roun" in self.steps <= _QUANTIZING and written

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

    def at_batch(self, batch: int) -> EngineLayers:
        """The same with `batch` images where a size depends on them."""
        return EngineLayers(
            tuple(
                replace(
                    layer,
                    inputs=tuple(tensor.at_batch(batch) for tensor in layer.inputs),
                    outputs=tuple(tensor.at_batch(batch) for tensor in layer.outputs),
                )
                for layer in self.layers
            )
        )

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

    def kernels(self) -> tuple[dict[str, Any], ...]:
        """Every kernel for JSON: what it fuses, what it reads and writes, sizes in bytes."""
        return tuple(
            {
                "name": layer.name,
                "kind": layer.kind,
                "role": layer.role,
                "part": layer.part,
                "nodes": list(layer.nodes),
                "kernel": layer.kernel,
                "inputs": [_tensor_record(tensor) for tensor in layer.inputs],
                "outputs": [_tensor_record(tensor) for tensor in layer.outputs],
            }
            for layer in self.layers
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes, null where they depend on the batch."""
        return {
            **_record(self),
            "convolutions_without_int8_input": list(self.without_int8()),
            "roles": {role: _record(self.of(role)) for role in get_args(Role)},
            "parts": {name: _record(group) for name, group in self.parts().items()},
        }


def _total(sizes: Iterable[int | None]) -> int | None:
    listed = list(sizes)
    return None if None in listed else sum(filter(None, listed))


def _tensor_record(tensor: Tensor) -> dict[str, Any]:
    shape = list(tensor.shape)
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": shape, "bytes": tensor.bytes}


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
