"""Scales of what a dense block writes into its concatenation.

A channel wastes log2(covered / useful) of its 8 bits where a scale covers more than its useful
range. Equalization gives every channel the same useful range by an exact rewrite, so that one scale
wastes nothing; a channel that comes out of a ReLU can be stretched but not shifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.quantize.blocks import Block, Written
from densenet_deploy.quantize.calibrate import Observation
from densenet_deploy.recipe import ConcatPolicy
from densenet_deploy.rewrite.equalize_concat import Equalization

Array = NDArray[np.float64]
Ranges = Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True)
class BlockPlan:
    """What a policy makes of one block.

    Attributes:
        block: Its name.
        covered: (low, high) that the scale of each written value shall cover, by name.
        factors: The rewrite that comes first; empty but for `equalized`.
        waste: Bits a channel wastes, mean over the block's channels.
        worst: Bits the worst channel wastes.
        saturated: Share of the observed values that a reader could tell apart and no scale covers.
    """

    block: str
    covered: dict[str, tuple[float, float]]
    waste: float
    worst: float
    saturated: float = 0.0
    factors: dict[str, Equalization] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.block}: {len(self.covered)} values, wasted bits per channel: "
            f"mean {self.waste:.1f}, worst {self.worst:.1f}; saturated {100 * self.saturated:.3f} %"
        )


def plan_block(
    block: Block,
    ranges: Ranges,
    policy: ConcatPolicy,
    signed: bool,
    seen: Mapping[str, Observation] = MappingProxyType({}),
) -> BlockPlan:
    """Plans the scales of a block.

    Args:
        block: The block.
        ranges: (low, high), each (C,), of the channels of each written value.
        policy: Any but `after-bn-relu`.
        signed: The target's integers lie on both sides of zero, with zero-point 0.
        seen: What the ranges come from, to say how much of it they leave out.
    """
    useful = {w.name: w.useful(*ranges[w.name]) for w in block.written}
    factors = _equalizations(block, useful, signed) if policy == "equalized" else {}
    for name, change in factors.items():
        low, high = useful[name]
        useful[name] = change.factor * low + change.shift, change.factor * high + change.shift
    covered = {name: (float(low.min()), float(high.max())) for name, (low, high) in useful.items()}
    if policy != "per-producer":
        lows, highs = zip(*covered.values(), strict=True)
        covered = dict.fromkeys(covered, (min(lows), max(highs)))
    waste = np.concatenate([_waste(useful[name], covered[name], signed) for name in covered])
    saturated = [
        _saturated(w, seen[w.name], ranges[w.name]) for w in block.written if w.name in seen
    ]
    return BlockPlan(
        block.name,
        covered,
        float(waste.mean()),
        float(waste.max()),
        float(np.concatenate(saturated).mean()) if saturated else 0.0,
        factors,
    )


def _equalizations(block: Block, useful: Ranges, signed: bool) -> dict[str, Equalization]:
    widths = np.concatenate([high - low for low, high in useful.values()])
    width = float(np.median(widths)) or 1.0  # keeps the magnitude of the block
    found = {}
    for written in block.written:
        low, high = useful[written.name]
        if written.rectified:
            span, zero = (2 * high if signed else high), np.zeros_like(high)
        else:
            span, zero = high - low, ((low + high) / 2 if signed else low)
        factor = np.where(span > 1e-6 * width, width / np.maximum(span, 1e-6 * width), 1.0)
        found[written.name] = Equalization(factor, -zero * factor)
    return found


def _waste(useful: tuple[Array, Array], covered: tuple[float, float], signed: bool) -> Array:
    low, high = min(covered[0], 0.0), max(covered[1], 0.0)
    span = 2 * max(-low, high) if signed else high - low
    if span == 0:  # nothing but zeros
        return np.zeros_like(useful[0])
    return np.log2(span / np.maximum(useful[1] - useful[0], 1e-6 * span))


def _saturated(written: Written, seen: Observation, ends: tuple[Array, Array]) -> Array:
    """(C,) share of the values that matter to a reader but lie outside what is covered."""
    if seen.counts is None:  # everything is covered
        return np.zeros(len(seen.low))
    centers = seen.centers()
    first, last = written.distinguished(seen.low, seen.high)
    low, high = written.useful(*ends)
    matters = (centers >= first[:, None]) & (centers <= last[:, None])
    covered = (centers >= low[:, None]) & (centers <= high[:, None])
    share: Array = (seen.counts * (matters & ~covered)).sum(axis=1) / seen.counts.sum(axis=1)
    return share
