"""From an fp32 graph to INT8 for a target: rewrites, where scales sit, and what they are.

Equalization comes first, while BatchNormalization still shows what reads a block's channels; then
the target's rewrites; then scales, layer by layer in the order of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from densenet_deploy.errors import GraphError
from densenet_deploy.progress import Track, silent
from densenet_deploy.quantize.blocks import dense_blocks, silence_unreachable
from densenet_deploy.quantize.calibrate import Observation, observe
from densenet_deploy.quantize.dialect import DIALECTS, Dialect, Scale, activation_scale
from densenet_deploy.quantize.half import to_half
from densenet_deploy.quantize.integer import compute_in_integers, round_limits, selected_scale
from densenet_deploy.quantize.legal import check_legal
from densenet_deploy.quantize.plan import BlockPlan, plan_block
from densenet_deploy.quantize.qdq import add_pair, quantize_weight, scale_of, set_parameters
from densenet_deploy.quantize.ranges import channel_ranges, tensor_range
from densenet_deploy.recipe import QuantizeConfig, Target
from densenet_deploy.rewrite import INT8_RULES, RULES, RewriteResult, rewrite
from densenet_deploy.rewrite.equalize_concat import equalize_concat
from densenet_deploy.rewrite.graph import constant, only_reader
from densenet_deploy.rewrite.pool_before_conv import pool_before_conv
from densenet_deploy.rewrite.unfold_preactivation import unfold_preactivation

Array = NDArray[np.float64]
Images = NDArray[np.float32]


@dataclass(frozen=True)
class Int8Result:
    """A quantized graph, and what was done to get there.

    Attributes:
        model: The graph.
        reference: The same graph before quantization, rewritten and in fp32.
        config: Policy and calibration.
        steps: What the rewrites did: unfolding, equalization, lowering.
        blocks: What the policy made of each dense block.
        quantized: Names of the quantized convolutions.
    """

    model: ir.Model
    reference: ir.Model
    config: QuantizeConfig
    steps: tuple[RewriteResult, ...]
    blocks: tuple[BlockPlan, ...]
    quantized: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """How it was made, for records: plain values."""
        return {
            "policy": self.config.policy,
            "keep_float": list(self.config.keep_float),
            "bias_correction": self.config.bias_correction,
            "rewrites": dict(sum((Counter(step.counts) for step in self.steps), Counter())),
            "convolutions": len(self.quantized),
            "blocks": {
                block.block: {
                    "wasted_bits": block.waste,
                    "worst": block.worst,
                    "saturated": block.saturated,
                }
                for block in self.blocks
            },
        }


@dataclass(frozen=True)
class Calibrated:
    """A graph that is rewritten and observed, ready to be quantized in whole or in part.

    Attributes:
        reference: The rewritten graph, in fp32.
        target: What it will run on.
        dialect: How the target wants INT8 written.
        config: Policy and calibration.
        steps: What the rewrites did.
        blocks: What the policy made of each dense block.
        inputs: What each convolution reads, by the name of its output.
    """

    reference: ir.Model
    target: Target
    dialect: Dialect
    config: QuantizeConfig
    steps: tuple[RewriteResult, ...]
    blocks: tuple[BlockPlan, ...]
    inputs: dict[str, Observation]

    def quantized(self, keep_float: Sequence[str] = ()) -> Int8Result:
        """Quantizes a copy.

        Args:
            keep_float: Convolutions that stay in floating point, besides the configuration's.

        Raises:
            GraphError: No convolution is left to quantize, or `keep_float` names an unknown one.
        """
        model, dialect = self.reference.clone(), self.dialect
        graph = model.graph
        chosen = _chosen(graph, dialect, (*self.config.keep_float, *keep_float))
        for block in self.blocks:
            _add_block_scales(graph, block.covered, dialect)
        round_limits(graph)
        if dialect.integers:
            compute_in_integers(graph)
        for node in chosen:
            seen = self.inputs[_key(node)]
            if scale_of(node.inputs[0]) is None:
                scale = selected_scale(node.inputs[0]) or self._scale(seen)
                _add_input_scale(graph, node, scale, chosen)
            mean = seen.mean if self.config.bias_correction else None
            _quantize_parameters(graph, node, mean, dialect)
        RemoveUnusedNodesPass()(model)
        if dialect.half:
            to_half(model)
        check_legal(model, self.target)
        names = tuple(node.name or _key(node) for node in chosen)
        config = replace(self.config, keep_float=(*self.config.keep_float, *keep_float))
        return Int8Result(model, self.reference, config, self.steps, self.blocks, names)

    def _scale(self, seen: Observation) -> Scale:
        ends = tensor_range(seen, self.config.method, self.config.percentile)
        return activation_scale(*ends, self.dialect)


def to_int8(
    model: ir.Model,
    config: QuantizeConfig,
    target: Target,
    images: Images,
    track: Track = silent,
) -> Int8Result:
    """Quantizes the convolutions of an fp32 graph for a target; takes what `calibrate` takes."""
    return calibrate(model, config, target, images, track).quantized()


def calibrate(
    model: ir.Model,
    config: QuantizeConfig,
    target: Target,
    images: Images,
    track: Track = silent,
) -> Calibrated:
    """Rewrites a copy of an fp32 graph for INT8 on a target, and observes it.

    Args:
        model: The graph, rewritten for float or not.
        config: Policy and calibration.
        target: What it will run on.
        images: Normalised calibration images (N, C, H, W).
        track: Progress reporter.

    Raises:
        GraphError: There is no convolution to quantize, or an activation is not finite.
    """
    dialect = DIALECTS[target]
    if config.weights:
        dialect = replace(dialect, weights=config.weights)
    look = _Calibration(config, images, track)
    model = model.clone()
    steps = [rewrite(model, (unfold_preactivation, pool_before_conv))]
    blocks = _plan_blocks(model, config, dialect, look)
    if blocks:
        factors = {name: item for block in blocks for name, item in block.factors.items()}
        steps.append(rewrite(model, (partial(equalize_concat, factors=factors),)))
        covered = {name: ends for block in blocks for name, ends in block.covered.items()}
        silence_unreachable(model.graph, covered)
    steps.append(rewrite(model, (INT8_RULES if blocks else RULES)[target]))
    chosen = _chosen(model.graph, dialect, config.keep_float)
    inputs = look.inputs_of(model, map(_key, chosen))
    return Calibrated(model, target, dialect, config, tuple(steps), tuple(blocks), inputs)


class _Calibration:
    """Observes graphs on the same images, as configured."""

    def __init__(self, config: QuantizeConfig, images: Images, track: Track) -> None:
        self._config, self._images, self._track = config, images, track

    def observe(self, model: ir.Model, names: Iterable[str]) -> dict[str, Observation]:
        histograms = self._config.method != "minmax"
        batch_size = self._config.batch_size
        return observe(model, list(names), self._images, batch_size, histograms, self._track)

    def inputs_of(self, model: ir.Model, outputs: Iterable[str]) -> dict[str, Observation]:
        """Observations of what the convolutions with these outputs read, by output."""
        convolutions = {_key(node): node for node in model.graph if node.op_type == "Conv"}
        read = {output: convolutions[output].inputs[0].name for output in outputs}  # type: ignore[union-attr]
        seen = self.observe(model, [name for name in read.values() if name])
        return {output: seen[name] for output, name in read.items() if name}

    def channel_ranges(self, seen: Observation) -> tuple[Array, Array]:
        return channel_ranges(seen, self._config.method, self._config.percentile)


def _key(node: ir.Node) -> str:
    """The name of a node's output: unique, which its own need not be."""
    assert node.outputs[0].name is not None
    return node.outputs[0].name


def _plan_blocks(
    model: ir.Model, config: QuantizeConfig, dialect: Dialect, look: _Calibration
) -> list[BlockPlan]:
    policy = config.policy
    if policy == "after-bn-relu":
        return []
    if policy == "auto":
        raise GraphError(
            "policy 'auto' has to be measured first",
            expected="equalized, shared, per-producer or after-bn-relu",
            remedy="ask densenet_deploy.tune.choose_policy",
        )
    blocks = dense_blocks(model.graph)
    seen = look.observe(model, [written.name for block in blocks for written in block.written])
    ranges = {name: look.channel_ranges(observation) for name, observation in seen.items()}
    plans = [plan_block(block, ranges, policy, dialect.signed, seen) for block in blocks]
    refused = _refused(model, plans)
    for index, plan in enumerate(plans):
        if refused & plan.factors.keys():  # not a dense block after all
            plans[index] = plan_block(blocks[index], ranges, "shared", dialect.signed, seen)
    return plans


def _refused(model: ir.Model, plans: Sequence[BlockPlan]) -> set[str]:
    """Values that equalization would leave alone."""
    factors = {name: item for plan in plans for name, item in plan.factors.items()}
    trial = rewrite(model.clone(), (partial(equalize_concat, factors=factors),))
    return {refusal.node for refusal in trial.refusals}


def _chosen(graph: ir.Graph, dialect: Dialect, keep_float: tuple[str, ...]) -> list[ir.Node]:
    """Convolutions to quantize, in order.

    Images have 256 levels, which uint8 with a zero-point takes as they are and int8 around zero
    does not: there the stem stays in floating point.
    """
    nodes = [n for n in graph if n.op_type == "Conv" and constant(n.inputs[1]) is not None]
    kept = {part: [n for n in nodes if f"{n.name}.".startswith(f"{part}.")] for part in keep_float}
    unknown = [part for part, found in kept.items() if not found]
    if unknown:
        raise GraphError(
            f"keep_float names {unknown[0]!r}, which holds no convolution",
            expected="the name of a convolution, or of a module around one",
        )
    left = [n for n in nodes if not any(n in found for found in kept.values())]
    if dialect.weights == "per-channel-mul":  # a graph output cannot be multiplied afterwards
        left = [n for n in left if not n.outputs[0].is_graph_output()]
    if dialect.signed:
        left = [n for n in left if n.inputs[0] not in graph.inputs]
    if not left:
        raise GraphError("the graph has no convolution with constant weights to quantize")
    return left


def _add_block_scales(
    graph: ir.Graph, covered: Mapping[str, tuple[float, float]], dialect: Dialect
) -> None:
    values: dict[str | None, ir.Value] = {value.name: value for value in graph.inputs}
    values |= {output.name: output for node in graph for output in node.outputs}
    for name, (low, high) in covered.items():
        value = values[name]
        if dialect.integers:  # a MaxPool selects among integers as well
            value = _before_max_pool(value)
        scale = activation_scale(low, high, dialect)
        add_pair(graph, value, scale, [(use.node, use.idx) for use in value.uses()])


def _before_max_pool(value: ir.Value) -> ir.Value:
    producer = value.producer()
    while producer is not None and producer.op_type == "MaxPool":
        assert producer.inputs[0] is not None
        if only_reader(producer.inputs[0]) is None:
            break
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _add_input_scale(
    graph: ir.Graph, node: ir.Node, scale: Scale, convolutions: Sequence[ir.Node]
) -> None:
    """Quantizes what a convolution reads, for it and for the other convolutions that read it."""
    data = node.inputs[0]
    assert data is not None
    readers = [(use.node, use.idx) for use in data.uses() if use.node in convolutions]
    add_pair(graph, data, scale, readers)


def _quantize_parameters(
    graph: ir.Graph, node: ir.Node, mean: Array | None, dialect: Dialect
) -> None:
    weight = constant(node.inputs[1])
    assert weight is not None
    given = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    bias = np.zeros(len(weight)) if given is None else given.astype(np.float64)
    data = scale_of(node.inputs[0])
    assert data is not None
    # A channel with next to no weights may have a bias, in steps of both scales.
    least = np.abs(bias) / (2.0**30 * data.scale) if dialect.integers else 0.0
    quantized = quantize_weight(weight, dialect, least)
    if mean is not None:
        bias += _mean_error(weight - quantized.dequantized(), mean)
    set_parameters(graph, node, quantized, bias, dialect)


def _mean_error(error: Array, mean: Array) -> Array:
    """(O,) what a weight error (O, I / groups, ...) adds to the mean output, away from borders.

    Bias correction after Nagel et al., "Data-free quantization through weight equalization and
    bias correction", ICCV 2019, section 4.2, with the observed means.
    """
    summed = error.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = len(mean) // summed.shape[1]
    by_group = summed.reshape(groups, -1, summed.shape[1])
    found: Array = np.einsum("goi,gi->go", by_group, mean.reshape(groups, -1)).ravel()
    return found
