"""Why an engine is slower than its precision promises: worst first, in bytes of activations.

A DenseNet is bound by memory, so what costs time is traffic that its precision does not need. Each
transfer belongs to the first cause that explains it, so causes add up and no byte counts twice.
Bytes are not milliseconds: where two causes are close, measure.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import Any

from densenet_deploy.engine.causes import CAUSES, Cause, Transfer, quantized, transfers
from densenet_deploy.engine.kernels import EngineLayers, Layer

LEAST_SHARE = 0.01
_SHOWN = 3  # places of a finding that the summary names
_WIDTH = 100


@dataclass(frozen=True)
class Finding:
    """A cause, and all it explains.

    Attributes:
        cause: What it is, why it costs, what to do.
        transfers: What it explains.
        share: Of the engine's traffic, 0 to 1.
    """

    cause: Cause
    transfers: tuple[Transfer, ...]
    share: float

    @property
    def bytes(self) -> int:
        """Traffic it explains; activations of unknown size are not in it."""
        return sum(transfer.bytes for transfer in self.transfers)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The kernels, in the order they run."""
        return tuple(dict.fromkeys(transfer.layer for transfer in self.transfers))

    @property
    def parts(self) -> dict[str, int]:
        """Bytes at each DenseNet layer, most first."""
        counted: Counter[str] = Counter()
        for transfer in self.transfers:
            counted[transfer.layer.part] += transfer.bytes
        return dict(counted.most_common())

    def summary(self) -> str:
        """A paragraph for people; sizes in MB (1e6 bytes)."""
        places = [f"{name} {size / 1e6:.3f}" for name, size in self.parts.items()]
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        kernels = f"{len(self.layers)} kernel{'s' * (len(self.layers) != 1)}"
        return "\n".join(
            (
                f"{self.bytes / 1e6:8.3f} MB {self.share:4.0%}  {self.cause.what} ({kernels})",
                _indented("where", f"{', '.join(places[:_SHOWN])}{more} (MB)"),
                _indented("why", self.cause.why),
                _indented("remedy", self.cause.remedy),
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; sizes in bytes."""
        return {
            "cause": self.cause.name,
            "what": self.cause.what,
            "why": self.cause.why,
            "remedy": self.cause.remedy,
            "bytes": self.bytes,
            "share": round(self.share, 4),
            "parts": self.parts,
            "kernels": [{"name": one.name, "nodes": list(one.nodes)} for one in self.layers],
        }


@dataclass(frozen=True)
class WhySlow:
    """What slows an engine down; its truth value is that something does.

    Attributes:
        layers: Its kernels, with sizes for one image where they depend on the batch.
        findings: Causes with at least `LEAST_SHARE` of the traffic, worst first.
    """

    layers: EngineLayers
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return bool(self.findings)

    @property
    def types(self) -> dict[str, int]:
        """Bytes of traffic in each type, most first."""
        counted: Counter[str] = Counter()
        for layer in self.layers.layers:
            for tensor in (*layer.inputs, *layer.outputs):
                counted[tensor.dtype] += tensor.bytes or 0
        return dict(counted.most_common())

    @property
    def precision(self) -> str:
        """`INT8` where anything is quantized; else by what convolutions read, `FP16` or `FP32`."""
        if any(map(quantized, self.layers.layers)):
            return "INT8"
        convolutions = self.layers.of("convolution").layers
        read = {layer.inputs[0].dtype for layer in convolutions if layer.inputs}
        return "FP16" if read & {"Half", "BFloat16"} else "FP32"

    @property
    def verdict(self) -> str:
        """One line for people."""
        total = sum(self.types.values())
        shares = ", ".join(
            f"{size / total:.0%} {name}"
            for name, size in self.types.items()
            if size >= max(LEAST_SHARE * total, 1)
        )
        moved = f"{self.precision} engine: its kernels move {total / 1e6:.3f} MB, {shares}"
        if self.precision != "INT8":
            return f"{moved}; nothing is quantized"
        count = len(self.layers.of("convolution").layers)
        narrow = count - len(self.layers.without_int8())
        return f"{moved}; {narrow} of {count} convolutions read Int8"

    def summary(self) -> str:
        """For people: the verdict, then a paragraph for each finding."""
        lines = [self.verdict]
        if self.layers.bytes_in is None or self.layers.bytes_out is None:
            lines.append("activations of unknown size are not counted")
        found = [finding.summary() for finding in self.findings]
        return "\n".join([*lines, *(found or ["nothing moves that its precision does not need"])])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; sizes in bytes."""
        return {
            "verdict": self.verdict,
            "precision": self.precision,
            "bytes": sum(self.types.values()),
            "bytes_by_type": self.types,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def why_slow(layers: EngineLayers) -> WhySlow:
    """Attributes an engine's traffic to causes; sizes that depend on the batch are of one image."""
    sized = layers.at_batch(1)
    everything = tuple(transfers(sized))
    total = sum(transfer.bytes for transfer in everything)
    integer = any(map(quantized, sized.layers))
    explained: dict[Cause, list[Transfer]] = {}
    for transfer in everything:
        for cause in CAUSES:
            if cause.quantized <= integer and cause.explains(transfer):
                explained.setdefault(cause, []).append(transfer)
                break
    findings = (
        Finding(cause, tuple(found), sum(one.bytes for one in found) / max(total, 1))
        for cause, found in explained.items()
    )
    worth = [finding for finding in findings if finding.share >= LEAST_SHARE]
    return WhySlow(sized, tuple(sorted(worth, key=lambda finding: -finding.bytes)))


def _indented(title: str, text: str) -> str:
    first = f"{'':10}{title:8}"
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
    )
