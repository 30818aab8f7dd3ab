"""Bytes held for the backward pass: counted by hand, and by what the allocator still has out."""

from __future__ import annotations

import pytest
import torch

from densenet_deploy.held_memory import held_bytes, measure
from densenet_deploy.model import create_model
from densenet_deploy.spec import DenseNetSpec, variant
from densenet_deploy.training_step import TrainingStep
from densenet_deploy.training_suite import Mode, StepPrecision, StepTask

pytestmark = pytest.mark.usefixtures("one_thread")
MODES: tuple[Mode, ...] = ("naive", "memory-efficient")
FLOAT = 4  # bytes


def held(model: str, mode: Mode, batch: int = 2) -> int:
    return held_bytes(TrainingStep(StepTask(model, mode, batch)))


def by_hand(name: str, batch: int, dropout: bool = False) -> dict[Mode, int]:
    """Bytes that each mode holds, from the architecture alone.

    Autograd keeps the factors of dropout; a block that recomputes, a byte for each.
    """
    spec = variant(name)
    assert isinstance(spec, DenseNetSpec) and spec.stem == "cifar" and spec.bottleneck
    growth, flow, sizes = spec.growth_rate, spec.block_channels(), spec.feature_sizes()
    naive = efficient = masks = 0  # channels times pixels, of one image
    statistics = 0  # channels of all BatchNorms
    for block, ((channels, grown), (height, width)) in enumerate(zip(flow, sizes, strict=True)):
        pixels = height * width
        efficient += grown * pixels  # the buffer
        for read in range(channels, grown, growth):
            efficient += 4 * growth * pixels  # the bottleneck
            # The concatenation, itself after BN and ReLU, the bottleneck, itself after those.
            naive += 2 * (read + 4 * growth) * pixels
            if dropout:
                naive += (4 * growth + growth) * pixels
                masks += (4 * growth + growth) * pixels
            statistics += read + 4 * growth
        naive += 2 * grown * pixels  # the whole concatenation, and after BN and ReLU
        statistics += grown
        if block + 1 < len(flow) and dropout:
            # A transition does not pool first: its convolution reads the whole, and dropout and
            # pooling read its output.
            kept = 2 * flow[block + 1][0] * pixels
            naive += kept
            efficient += grown * pixels + kept
        elif block + 1 < len(flow):
            naive += grown * pixels // 4  # the transition's convolution reads it pooled
    pooled, scores = flow[-1][1], spec.classes
    rest = FLOAT * (2 * statistics + batch * (pooled + scores) + 1)  # 1: the loss's total weight
    return {
        "naive": FLOAT * batch * naive + rest,
        "memory-efficient": batch * (FLOAT * efficient + masks) + rest,
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "batch"), [("densenet-bc-10-4", 4), ("densenet-bc-22-4", 1), ("densenet-b-16-6", 3)]
)
def test_every_byte_by_hand(name: str, batch: int, mode: Mode) -> None:
    assert held(name, mode, batch) == by_hand(name, batch)[mode]


@pytest.mark.parametrize("mode", MODES)
def test_every_byte_under_dropout_by_hand(mode: Mode) -> None:
    step = TrainingStep(StepTask("densenet-bc-22-4", mode, 2))
    efficient = mode == "memory-efficient"
    network = create_model("densenet-bc-22-4", dropout=0.2, memory_efficient=efficient)
    step.model = network.to(memory_format=torch.channels_last)
    assert held_bytes(step) == by_hand("densenet-bc-22-4", 2, dropout=True)[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_what_the_allocator_has_out_after_the_forward_pass(
    mode: Mode, precision: StepPrecision
) -> None:
    step = TrainingStep(StepTask("densenet-bc-22-4", mode, 2, (1, 28, 28), precision))
    step.loss()  # oneDNN keeps what it makes in the first pass
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = step.loss()
    out = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    assert held_bytes(step) == out - loss.untyped_storage().nbytes()


def test_it_is_proportional_to_the_batch() -> None:
    for mode in MODES:
        one, two, three = (held("densenet-bc-16-4", mode, batch) for batch in (1, 2, 3))
        assert three - two == two - one
        assert 0 < 2 * one - two < 0.02 * one  # statistics of BatchNorm alone are not


def test_the_deeper_the_more_is_saved() -> None:
    ratios = []
    for depth in (10, 22, 40):
        naive, efficient = (held(f"densenet-bc-{depth}-12", mode, 1) for mode in MODES)
        ratios.append(efficient / naive)
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] < 0.8 * ratios[0]


def test_a_view_holds_its_storage_and_shared_storages_count_once() -> None:
    class Step(TrainingStep):
        def loss(self, first: int | None = None) -> torch.Tensor:
            whole = self.model.weight * 2  # saves nothing: 2 is a number
            part = whole[:1]
            return (part * part).sum() + (whole[1:] * whole[2:]).sum()

    step = object.__new__(Step)
    step.model = torch.nn.Linear(5, 3, bias=False)
    step.images = step.labels = torch.zeros(1)
    assert held_bytes(step) == 3 * 5 * FLOAT


def test_a_fresh_process_measures() -> None:
    task = StepTask("densenet-bc-40-12", "naive", 2)
    found = measure(task, threads=1)
    assert found.held_bytes == held(task.model, task.mode, task.batch)
    # 0.7 where it may use again what the pass of one image before has freed
    assert 1 < found.peak_rss_bytes / found.held_bytes < 2
    record = found.to_dict()
    assert record["mode"] == "naive" and record["batch"] == 2
    assert {"held_bytes", "peak_rss_bytes", "precision"} < record.keys()
