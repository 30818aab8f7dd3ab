"""What makes an engine move more bytes than its precision needs, and what to do about each.

A cause explains transfers: activations that a kernel reads or writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from densenet_deploy.engine.kernels import QUANTIZED, EngineLayers, Layer, Tensor

_WIDE = frozenset({"Float", "Half", "BFloat16"})


@dataclass(frozen=True)
class Transfer:
    """One activation that one kernel reads or writes.

    The quantized part of an engine reaches from the first to the last kernel that has to do with
    quantized values; stem and classifier are usually outside.

    Attributes:
        layer: The kernel.
        tensor: The activation.
        written: Written, else read.
        producer: The kernel that writes it; None for an input of the engine.
        readers: The kernels that read it; none for an output of the engine.
        inside: The kernel is in the quantized part.
        between: Some kernel of the quantized part writes the activation, and another reads it.
        edge: The kernel reads an input or writes an output of the engine; what it converts there
            is the caller's.
        stem: The kernel is the engine's first convolution.
        integers: Some convolution of the engine reads Int8.
    """

    layer: Layer
    tensor: Tensor
    written: bool
    producer: Layer | None
    readers: tuple[Layer, ...]
    inside: bool
    between: bool
    edge: bool
    stem: bool
    integers: bool

    @property
    def bytes(self) -> int:
        """Size of the activation; 0 where it is unknown."""
        return self.tensor.bytes or 0


@dataclass(frozen=True)
class Cause:
    """A reason for needless traffic.

    Attributes:
        name: For programs.
        what: What was found, as a clause.
        why: Why it costs.
        remedy: What to do, in the words of recipes.
        explains: Whether it is the reason for a transfer.
        quantized: Applies to engines with quantized activations alone.
    """

    name: str
    what: str
    why: str
    remedy: str
    explains: Callable[[Transfer], bool]
    quantized: bool = True


def quantized(layer: Layer) -> bool:
    """Whether a kernel reads or writes quantized activations, or rounds like them within."""
    dtypes = {tensor.dtype for tensor in (*layer.inputs, *layer.outputs)}
    return bool(dtypes & QUANTIZED) or "Roun" in layer.steps


def transfers(layers: EngineLayers) -> Iterator[Transfer]:
    """Every activation that every kernel reads or writes."""
    producers = {tensor.name: layer for layer in layers.layers for tensor in layer.outputs}
    readers: dict[str, list[Layer]] = {}
    for layer in layers.layers:
        for tensor in layer.inputs:
            readers.setdefault(tensor.name, []).append(layer)
    touching = [index for index, layer in enumerate(layers.layers) if quantized(layer)]
    part = layers.layers[touching[0] : touching[-1] + 1] if touching else ()
    inside = set(map(id, part))
    convolutions = layers.of("convolution").layers
    integers = any(layer.reads_int8 for layer in convolutions)
    for layer in layers.layers:
        edge = any(tensor.name not in producers for tensor in layer.inputs)
        edge |= any(tensor.name not in readers for tensor in layer.outputs)
        for tensors, written in ((layer.inputs, False), (layer.outputs, True)):
            for tensor in tensors:
                producer, reading = producers.get(tensor.name), readers.get(tensor.name, [])
                yield Transfer(
                    layer=layer,
                    tensor=tensor,
                    written=written,
                    producer=producer,
                    readers=tuple(reading),
                    inside=id(layer) in inside,
                    between=id(producer) in inside and any(id(one) in inside for one in reading),
                    edge=edge,
                    stem=bool(convolutions) and layer is convolutions[0],
                    integers=integers,
                )


def _in_float(transfer: Transfer) -> bool:
    layer = transfer.layer
    return layer.role == "convolution" and not layer.reads_int8 and not transfer.stem


def _lost_integers(transfer: Transfer) -> bool:
    if transfer.integers or transfer.tensor.dtype not in _WIDE:
        return False
    return transfer.inside or transfer.between or _in_float(transfer)


def _from_int8_convolution(transfer: Transfer) -> bool:
    producer = transfer.producer
    return producer is not None and producer.role == "convolution" and producer.reads_int8


def _concatenates(layer: Layer) -> bool:
    return "Conc" in layer.steps or "concat" in layer.kind.lower()


def _grows(transfer: Transfer) -> bool:
    """A joined tensor is written, and the next concatenation reads it."""
    layer, shape = transfer.layer, transfer.tensor.shape
    if not (transfer.written and _concatenates(layer) and len(shape) > 1):
        return False
    parts = [tensor.shape[1] for tensor in layer.inputs if len(tensor.shape) > 1]
    return shape[1] > max(parts, default=0) and any(map(_concatenates, transfer.readers))


# The first that explains a transfer is its cause.
CAUSES: tuple[Cause, ...] = (
    Cause(
        "lost-int8",
        "a quantized graph, but no convolution reads Int8",
        "everything is quantized, dequantized and computed in float",
        "take 7.5 out of build.compute_capabilities and optional_compute_capabilities: with that "
        "target TensorRT-RTX takes Int8 from every convolution of the engine",
        _lost_integers,
    ),
    Cause(
        "float-convolution",
        "convolutions that do not read Int8",
        "they read two or four bytes a value and leave the Int8 tensor cores idle",
        "take them out of quantize.keep_float if accuracy allows; in a graph of another quantizer "
        "give inputs one scale, weights one or one for each output channel, and zero-point 0",
        _in_float,
    ),
    Cause(
        "float-output",
        "Int8 convolutions that write Float, for the next kernel to scale and round",
        "four bytes a value are written and read again where one would do",
        "quantize for the target that builds: TensorRT rounds within a convolution that a "
        "QuantizeLinear follows; TensorRT-RTX writes Half where one scale serves the whole weight "
        '(quantize.weights = "per-channel-mul") and the rest of the graph is half',
        lambda one: _from_int8_convolution(one) and one.tensor.dtype == "Float",
    ),
    Cause(
        "half-output",
        "Int8 convolutions that write Half, for the next kernel to round",
        "two bytes a value are written and read again where one would do",
        "of TensorRT-RTX none in the graph: it compiles so ahead of time, and what it still fuses "
        "on the device is not listed. TensorRT rounds within a convolution that a QuantizeLinear "
        'follows: compare with an engine of backend = "tensorrt"',
        lambda one: _from_int8_convolution(one) and one.tensor.dtype in _WIDE,
    ),
    Cause(
        "lone-quantizer",
        "kernels that only quantize or dequantize: Q/DQ that did not fuse",
        "each reads and writes its activation once more",
        "quantize for the target that builds, which puts Q/DQ where a kernel computes anyway; one "
        "behind the stem, which stays half, is needed",
        lambda one: one.layer.role == "quantize" and not one.edge,
    ),
    Cause(
        "copy",
        "kernels between others that only copy, cast or change the layout",
        "each reads and writes its activation without computing",
        "export for the target that builds (export.target), in half with fp16 or int8: TensorRT "
        "copies where neighbours want another type or layout",
        lambda one: one.layer.role == "move" and not one.edge,
        quantized=False,
    ),
    Cause(
        "growing-concat",
        "concatenations that are written out for the next one to read",
        "a dense block's features are copied again in each of its layers",
        "export for the target that builds (export.target): a concatenation that grows serves "
        "onnxruntime and openvino; TensorRT gathers the features as it reads them",
        _grows,
        quantized=False,
    ),
    Cause(
        "float-island",
        "kernels that compute in float between Int8 ones",
        "their neighbours dequantize for them and quantize what they give",
        "quantize for the target that builds, which leaves neither BatchNorm nor pool between "
        "quantizers; look for their DenseNet layers in quantize.keep_float",
        lambda one: one.inside and one.layer.role == "float",
    ),
    Cause(
        "float-features",
        "activations that stay float from one kernel of the Int8 part to another",
        "every later layer of a dense block reads its features again, each time in float",
        'quantize the concatenation: quantize.policy = "equalized", "shared" or "per-producer"; '
        '"after-bn-relu" leaves it in float, and so do quantizers that know convolutions alone',
        lambda one: one.inside and one.between and one.tensor.dtype in _WIDE,
    ),
)
