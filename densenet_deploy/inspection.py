"""What the rewrites did to a graph: where, at what gain, what they refused, and that it is equal.

A recipe's model is exported and lowered as `export` does it, rule by rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.certificate import (
    DOUBLE_BOUND,
    SINGLE_BOUND,
    Certificate,
    as_double,
    logits_in_double,
    logits_in_single,
    relative_difference,
)
from densenet_deploy.export import export_onnx, from_bytes, to_bytes
from densenet_deploy.graph_costs import Costs, costs_of
from densenet_deploy.progress import Track, once, silent
from densenet_deploy.quantize import check_calibration
from densenet_deploy.quantize.blocks import silence_unreachable
from densenet_deploy.quantize.int8 import Int8Result, to_int8
from densenet_deploy.quantize.plan import BlockPlan
from densenet_deploy.recipe import ExportConfig, QuantizeConfig, Recipe, Target
from densenet_deploy.rewrite import INT8_RULES, RULES, Rule, equalize_concat, rewrite
from densenet_deploy.rewrite.unfold_preactivation import unfold_preactivation
from densenet_deploy.rule_steps import Step, apply_rules, steps_summary
from densenet_deploy.source import Source, prepare
from densenet_deploy.spec import Architecture

Lowering = Literal["fp32", "int8"]
_IMAGES, _FEW = 8, 4
_SLOW = 2e8  # multiply-accumulates of one image beyond which onnx.reference takes long


@dataclass(frozen=True)
class Inspection:
    """The way of a model from the plain export to the graph for a target; true if all are equal.

    Attributes:
        model: Name of the recipe or architecture.
        target: What the graph was lowered for.
        precision: `fp32`, or `int8` with its own rules.
        plain: Costs of the graph as torch exports it.
        steps: The rules in order.
        certificates: That the rewritten graph equals the plain one.
        policy: Of INT8; empty for fp32.
        blocks: Of INT8: what the policy made of each dense block.
        silenced: Of INT8: how much the logits change, relative to the largest, where readers that
            no scale reaches are switched off. That is no rewrite, and not part of the proof in
            double precision.
    """

    model: str
    target: Target
    precision: Lowering
    plain: Costs
    steps: tuple[Step, ...]
    certificates: tuple[Certificate, ...]
    policy: str = ""
    blocks: tuple[BlockPlan, ...] = ()
    silenced: float | None = None

    def __bool__(self) -> bool:
        return all(self.certificates)

    def summary(self) -> str:
        """For people: a table of the rules, where they were applied, refusals, the proof."""
        lines = [f"{self.model}, {self.precision} for {self.target}, costs of one image"]
        lines += steps_summary("plain export", self.plain, self.steps)
        if self.policy:
            lines.append(f"policy {self.policy}")
        lines += [f"  {block.summary()}" for block in self.blocks]
        if self.silenced is not None:
            lines.append(f"readers no scale reaches, switched off: changes {self.silenced:.1e}")
        lines += [certificate.summary() for certificate in self.certificates]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "target": self.target,
            "precision": self.precision,
            "plain": self.plain.to_dict(),
            "steps": [step.to_dict() for step in self.steps],
            "certificates": [certificate.to_dict() for certificate in self.certificates],
            "policy": self.policy,
            "blocks": [
                {"block": b.block, "waste": b.waste, "worst": b.worst, "covered": b.covered}
                for b in self.blocks
            ],
            "silenced": self.silenced,
            "passed": bool(self),
        }


def inspect_model(
    recipe: Recipe, target: Target, precision: Lowering = "fp32", track: Track = silent
) -> Inspection:
    """Exports a recipe's model, applies the rules of `target` one by one, and proves them.

    Args:
        recipe: Of which model.
        target: What the graph is lowered for.
        precision: `int8` calibrates and quantizes as well, by the recipe's settings.
        track: Progress reporter.

    Raises:
        DeployError: Weights or images are missing, or `int8` has too few of them.
    """
    source = prepare(recipe, track)
    config = recipe.quantize
    if config.policy == "auto":  # which one that is, a measurement decides
        config = replace(config, policy="equalized")
    if precision == "int8":
        check_calibration(config, len(source.calibration))
    plain = once(track, "Exporting to ONNX", lambda: _plain(source, recipe.export.opset))
    result = _calibrated(plain, source, config, target, track) if precision == "int8" else None
    legs = _legs(target, result)
    model = _read(plain)
    costs = costs_of(model)
    steps: list[Step] = []
    for leg in legs:
        if leg.change:
            leg.change(model.graph)
        steps += apply_rules(model, leg.rules, track)
    if result is not None:
        _check_replay(steps, result)
        steps.append(Step("quantize", result.quantized, (), costs_of(result.model)))
    lowered = model if result is None else result.reference
    certificates, silenced = _certify(plain, to_bytes(lowered), legs, source, track)
    return Inspection(
        recipe.name,
        target,
        precision,
        costs,
        tuple(steps),
        certificates,
        "" if result is None else config.policy,
        () if result is None else result.blocks,
        silenced,
    )


@dataclass(frozen=True)
class _Leg:
    """Rules that keep what the graph computes, after a change that need not."""

    rules: tuple[Rule, ...]
    change: Callable[[ir.Graph], None] | None = None


def _legs(target: Target, result: Int8Result | None) -> list[_Leg]:
    """What `export` does to a plain graph; for INT8, what was done to it before quantization."""
    if result is None:
        return [_Leg(RULES[target])]
    factors = {name: item for block in result.blocks for name, item in block.factors.items()}
    covered = {name: ends for block in result.blocks for name, ends in block.covered.items()}
    known: tuple[Any, ...] = (*RULES[target], *INT8_RULES[target], unfold_preactivation)
    rules: dict[str, Rule] = {rule.__name__: rule for rule in known}
    rules["equalize_concat"] = partial(equalize_concat, factors=factors)
    legs, change = [], None
    for step in result.steps:
        legs.append(_Leg(tuple(rules[name] for name in step.counts), change))
        equalized = "equalize_concat" in step.counts
        change = partial(silence_unreachable, covered=covered) if equalized else None
    return legs


def _plain(source: Source, opset: int) -> bytes:
    config = ExportConfig(opset=opset, fuse=False)
    return to_bytes(export_onnx(source.model, source.model.spec.input_shape, config).model)


def _read(plain: bytes) -> ir.Model:
    return from_bytes(plain, "the plain export")


def _calibrated(
    plain: bytes, source: Source, config: QuantizeConfig, target: Target, track: Track
) -> Int8Result:
    images = source.preprocessing.normalise(source.calibration.pixels[: config.images])
    return to_int8(_read(plain), config, target, images, track)


def _check_replay(steps: Sequence[Step], result: Int8Result) -> None:
    """The rules that are shown are those that the quantized graph went through."""
    shown = [(step.rule, len(step.applied)) for step in steps]
    done = [item for found in result.steps for item in found.counts.items()]
    assert shown == done, (shown, done)


def _certify(
    plain: bytes, lowered: bytes, legs: Sequence[_Leg], source: Source, track: Track
) -> tuple[tuple[Certificate, ...], float | None]:
    """Certificates in double precision and in fp32, and what the changes between legs change."""
    images = source.calibration if len(source.calibration) else source.test
    images = images.take(min(len(images), _IMAGES))
    normalised = source.preprocessing.normalise(images.pixels)
    small, what = _for_reference(normalised, source.model.spec)
    double = partial(_double_differences, plain, legs, small)
    kept, changed = once(track, "Proving in double precision", double)
    logits = [
        logits_in_single(graph, normalised) for graph in track((plain, lowered), "Proving in fp32")
    ]
    certificates = (
        Certificate("double precision by onnx.reference", what, kept, DOUBLE_BOUND),
        Certificate(
            "fp32 on ONNX Runtime", images.source, relative_difference(*logits[::-1]), SINGLE_BOUND
        ),
    )
    return certificates, changed if any(leg.change for leg in legs) else None


def _double_differences(
    plain: bytes, legs: Sequence[_Leg], images: NDArray[np.float32]
) -> tuple[float, float]:
    """(by rules, by changes): the largest relative differences of the logits."""
    model = as_double(_read(plain))
    logits = logits_in_double(model, images)
    kept, changed = [], []
    for leg in legs:
        if leg.change:
            leg.change(model.graph)
            given, logits = logits, logits_in_double(model, images)
            changed.append(relative_difference(logits, given))
        rewrite(model, leg.rules)
        given, logits = logits, logits_in_double(model, images)
        kept.append(relative_difference(logits, given))
    return float(np.max(kept)), float(np.max(changed, initial=0))  # np.max keeps a NaN


def _for_reference(
    images: NDArray[np.float32], spec: Architecture
) -> tuple[NDArray[np.float32], str]:
    """Images that numpy takes seconds for, and what they are: the fewer, the larger the net."""
    if spec.macs < _SLOW:
        return images[:_FEW], f"{len(images[:_FEW])} images at full size"
    size = max(2 * spec.reduction, 16)  # every pool halves an even size, as at full size
    height, width = images.shape[2:]
    if height % spec.reduction or width % spec.reduction or min(height, width) <= size:
        return images[:1], "1 image at full size"
    return images[:1, :, :size, :size], f"1 image, cropped to {size}x{size}"
