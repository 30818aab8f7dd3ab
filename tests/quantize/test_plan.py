"""Plans: what every policy covers and wastes, and that equalization is exact."""

from __future__ import annotations

from functools import partial
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from densenet_deploy.quantize.blocks import dense_blocks
from densenet_deploy.quantize.calibrate import observe
from densenet_deploy.quantize.plan import BlockPlan, plan_block
from densenet_deploy.recipe import ConcatPolicy
from densenet_deploy.rewrite import equalize_concat
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    normal,
    random_densenet,
    rewrite_exactly,
    tensors,
)

POLICIES = [policy for policy in get_args(ConcatPolicy) if policy != "after-bn-relu"]
Ranges = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


class Planned:
    """The plans of a random net, with the ranges of its values on a few images."""

    def __init__(self, net: RandomNet, policy: ConcatPolicy, signed: bool) -> None:
        self.model, self.signed = random_densenet(net), signed
        self.images = normal(4, net.channels[0], *net.size)
        self.blocks = dense_blocks(self.model.graph)
        self.written = {w.name: w for block in self.blocks for w in block.written}
        seen = observe(self.model, list(self.written), self.images)
        self.ranges: Ranges = {name: (item.low, item.high) for name, item in seen.items()}
        self.plans = [plan_block(block, self.ranges, policy, signed) for block in self.blocks]

    def useful(self, plan: BlockPlan, name: str) -> tuple[NDArray[np.float64], ...]:
        """Useful range of a value after the plan's rewrite."""
        found = self.written[name].useful(*self.ranges[name])
        change = plan.factors.get(name)
        if change is None:
            return found
        return tuple(change.factor * end + change.shift for end in found)


@settings(max_examples=40, derandomize=True)
@given(RANDOM_NETS, st.sampled_from(POLICIES), st.booleans())
def test_what_is_covered_and_wasted(net: RandomNet, policy: ConcatPolicy, signed: bool) -> None:
    found = Planned(net, policy, signed)
    assert len(found.plans) == len(net.blocks)
    for block, plan in zip(found.blocks, found.plans, strict=True):
        assert list(plan.covered) == [item.name for item in block.written]
        if policy != "per-producer":
            assert len(set(plan.covered.values())) == 1, "one scale for the block"
        waste = []
        for name, (low, high) in plan.covered.items():
            bottom, top = found.useful(plan, name)
            slack = 1e-9 * (high - low)
            assert low - slack <= bottom.min() and top.max() <= high + slack
            if policy == "per-producer":
                assert (low, high) == (bottom.min(), top.max())
            reach = max(-low, high)
            span = 2 * reach if signed else max(high, 0) - min(low, 0)
            width = np.maximum(top - bottom, 1e-6 * span)
            waste.append(np.log2(span / width) if span else np.zeros_like(top))
        every = np.concatenate(waste)
        assert plan.waste == pytest.approx(every.mean(), abs=1e-9)
        assert plan.worst == pytest.approx(every.max(), abs=1e-9)
        assert plan.worst >= plan.waste - 1e-9 and every.min() >= -1e-9
        assert plan.summary().startswith(f"{block.name}: {len(block.written)} values, wasted bits")


@settings(max_examples=30, derandomize=True)
@given(RANDOM_NETS, st.booleans())
def test_equalized_channels_fill_the_range(net: RandomNet, signed: bool) -> None:
    found = Planned(net, "equalized", signed)
    for plan in found.plans:
        given = {n: found.written[n].useful(*found.ranges[n]) for n in plan.covered}
        spans = {name: high - low for name, (low, high) in given.items()}
        width = float(np.median(np.concatenate(list(spans.values()))))
        first, last = (-width / 2, width / 2) if signed else (0, width)
        for name, span in spans.items():
            bottom, top = found.useful(plan, name)
            wide = span > 1e-5 * width
            close = partial(np.testing.assert_allclose, atol=1e-6 * width, rtol=1e-6)
            if found.written[name].rectified:
                assert not plan.factors[name].shift.any()
                close(top[wide], last)
            else:
                close(top[wide], last)
                close(bottom[wide], first)


@settings(max_examples=20, derandomize=True)
@given(RANDOM_NETS, st.booleans())
def test_the_factors_leave_the_function_unchanged(net: RandomNet, signed: bool) -> None:
    found = Planned(net, "equalized", signed)
    factors = {name: change for plan in found.plans for name, change in plan.factors.items()}
    assert factors.keys() == found.written.keys()
    rules = [partial(equalize_concat, factors=factors)]
    result = rewrite_exactly(found.model, rules, found.images)
    assert result.counts == {"equalize_concat": len(factors)} and not result.refusals


@pytest.mark.parametrize("policy", ["shared", "per-producer"])
def test_only_equalization_rewrites(policy: ConcatPolicy) -> None:
    net = RandomNet(
        0, (1, 4), (8, 8), (2,), 3, False, True, True, "after", "ReduceMean", (1,), True
    )
    assert not any(plan.factors for plan in Planned(net, policy, True).plans)


@settings(max_examples=15, derandomize=True)
@given(RANDOM_NETS, st.floats(0.5, 1))
def test_saturated_is_what_a_reader_would_miss(net: RandomNet, factor: float) -> None:
    """Against the values themselves: clipping changes relu(scale * x + shift) for these alone."""
    found = Planned(net, "shared", signed=False)
    names = list(found.written)
    seen = observe(found.model, names, found.images, histograms=True)
    values = tensors(found.model, names, found.images)
    narrow = {name: (low * factor, high * factor) for name, (low, high) in found.ranges.items()}
    for block in found.blocks:
        plan = plan_block(block, narrow, "shared", False, seen)
        assert plan_block(block, found.ranges, "shared", False, seen).saturated == 0
        missed = []
        for written in block.written:
            x = np.moveaxis(values[written.name].astype(np.float64), 1, -1)
            low, high = written.useful(*narrow[written.name])
            clipped = np.clip(x, low, high)
            changed = np.zeros(x.shape, bool)
            for reader in written.readers:
                outputs = [reader.scale * v + reader.shift for v in (x, clipped)]
                if reader.rectifies:
                    outputs = [np.maximum(output, 0) for output in outputs]
                changed |= np.abs(outputs[0] - outputs[1]) > 1e-9
            missed.append(changed.reshape(-1, x.shape[-1]).mean(axis=0))
        # a bin at the edge may hold values of both sides
        assert plan.saturated == pytest.approx(np.concatenate(missed).mean(), abs=0.05)
