"""Exact graph rewrites: equal in real arithmetic, counted, and every refusal says why.

A rule is a function from a graph to what it did; which rules serve a target is data, found by
measuring (docs/int8.md has the figures, benchmarks/ the commands).

Float graphs. TensorRT fuses an add and ReLU between two convolutions, so no BatchNormalization
should be left for it. The CPU runtimes run a kept BatchNormalization and ReLU well, and ONNX
Runtime leaves its blocked layout for the broadcast add; but both copy every concatenation, so a
block's should grow, not be gathered anew in each layer.

INT8 graphs. The CPU runtimes leave int8 for every operator without an integer kernel: a clamp has
one, and so has a depthwise convolution, which costs more but serves where a padded convolution
follows. On TensorRT the clamp keeps what a layer reads on the grid of the concatenation, so that it
is rounded once. TensorRT-RTX fuses whatever is pointwise, and slices are, while a pool is a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes

from densenet_deploy.recipe import Target
from densenet_deploy.rewrite.chain_concat import chain_concat
from densenet_deploy.rewrite.clamp_preactivation import clamp_preactivation
from densenet_deploy.rewrite.depthwise_preactivation import depthwise_preactivation
from densenet_deploy.rewrite.equalize_concat import Equalization, equalize_concat
from densenet_deploy.rewrite.fold_preactivation import fold_preactivation
from densenet_deploy.rewrite.outcome import Outcome, Refusal
from densenet_deploy.rewrite.pool_as_convolution import pool_as_convolution
from densenet_deploy.rewrite.pool_as_slices import pool_as_slices
from densenet_deploy.rewrite.pool_before_conv import pool_before_conv
from densenet_deploy.rewrite.relu_after_pool import relu_after_pool
from densenet_deploy.rewrite.unfold_preactivation import unfold_preactivation

__all__ = [
    "INT8_RULES",
    "RULES",
    "Equalization",
    "Outcome",
    "Refusal",
    "RewriteResult",
    "Rule",
    "chain_concat",
    "clamp_preactivation",
    "depthwise_preactivation",
    "equalize_concat",
    "fold_preactivation",
    "pool_as_convolution",
    "pool_as_slices",
    "pool_before_conv",
    "relu_after_pool",
    "rewrite",
    "unfold_preactivation",
]

Rule = Callable[[ir.Graph], Outcome]

RULES: dict[Target, tuple[Rule, ...]] = {
    "tensorrt": (pool_before_conv, fold_preactivation),
    "tensorrt-rtx": (pool_before_conv, fold_preactivation),
    "onnxruntime": (pool_before_conv, chain_concat),
    "openvino": (pool_before_conv, chain_concat),
}

# The forms of a pre-activation in order of preference; a pool is still one node behind them.
_INTEGER: tuple[Rule, ...] = (
    pool_before_conv,
    clamp_preactivation,
    depthwise_preactivation,
    pool_as_convolution,
    chain_concat,
)
_SIGNED: tuple[Rule, ...] = (
    pool_before_conv,
    relu_after_pool,
    clamp_preactivation,
    fold_preactivation,
)
INT8_RULES: dict[Target, tuple[Rule, ...]] = {
    "tensorrt": _SIGNED,
    "tensorrt-rtx": (*_SIGNED, pool_as_slices),
    "onnxruntime": _INTEGER,
    "openvino": _INTEGER,
}


@dataclass(frozen=True)
class RewriteResult:
    """What a sequence of rules did.

    Attributes:
        model: The rewritten model.
        counts: Applications of each rule, by name.
        refusals: Every candidate a rule left alone, with its reason.
        applied: Where each rule was applied: names of nodes, or of values it was given.
    """

    model: ir.Model
    counts: dict[str, int] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    applied: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for people."""
        applied = ", ".join(f"{name} x{count}" for name, count in self.counts.items())
        refused = "".join(f"\n  refused: {refusal}" for refusal in self.refusals)
        return f"rewrites: {applied or 'none'}{refused}"


def rewrite(model: ir.Model, rules: Sequence[Rule]) -> RewriteResult:
    """Applies `rules` in order to `model`, in place, and removes what became unused.

    A rule that takes more than a graph is bound first: `partial(equalize_concat, factors=...)`.
    """
    applied: dict[str, tuple[str, ...]] = {}
    refusals: list[Refusal] = []
    for rule in rules:
        outcome = rule(model.graph)
        applied[outcome.rule] = (*applied.get(outcome.rule, ()), *outcome.applied)
        refusals += outcome.refusals
    tidy = Sequential(passes.RemoveUnusedNodesPass(), passes.TopologicalSortPass())
    tidy(model)
    counts = {name: len(names) for name, names in applied.items()}
    return RewriteResult(model, counts, tuple(refusals), applied)
