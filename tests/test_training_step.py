"""A training step of each mode, and steps that take turns."""

from __future__ import annotations

import pytest
import torch

from densenet_deploy.errors import RecipeError
from densenet_deploy.model import DenseNet
from densenet_deploy.torchvision_models import torchvision_model
from densenet_deploy.training_step import TrainingStep, time_steps
from densenet_deploy.training_suite import Mode, StepTask

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(step: TrainingStep) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in step.model.parameters()])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_modes_make_the_same_step(precision: str) -> None:
    made = {}
    for mode in ("naive", "memory-efficient"):
        step = TrainingStep(StepTask("densenet-bc-16-4", mode, 4, (1, 28, 28), precision))  # type: ignore[arg-type]
        assert isinstance(step.model, DenseNet)
        assert step.model.memory_efficient == (mode == "memory-efficient")
        before, first = weights(step), step.loss().item()
        assert step() > 0 and step.loss().item() < first
        made[mode] = weights(step) - before
    one, other = made.values()
    if precision == "fp32":  # rounding to 8 bits moves single weights of a tiny net too far
        assert (one - other).norm() < 1e-4 * one.norm()


def test_a_pass_of_the_first_images_alone() -> None:
    step = TrainingStep(StepTask("densenet-bc-10-4", "naive", 4))
    seen: list[tuple[int, ...]] = []
    step.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    step.loss(1), step.loss()
    assert seen == [(1, 3, 32, 32), (4, 3, 32, 32)]
    assert step.images.is_contiguous(memory_format=torch.channels_last)


def test_torchvision_is_torchvision() -> None:
    step = TrainingStep(StepTask("densenet121", "torchvision", 1))
    assert type(step.model).__module__ == "torchvision.models.densenet"
    assert step.images.shape == (1, 3, 224, 224)
    with pytest.raises(RecipeError, match="unknown model 'alexnet'"):
        TrainingStep(StepTask("alexnet", "naive", 1))
    with pytest.raises(RecipeError, match="torchvision has no model 'densenet-bc-100-12'"):
        torchvision_model("densenet-bc-100-12")


def test_steps_take_turns() -> None:
    modes: tuple[Mode, ...] = ("naive", "memory-efficient")
    tasks = [StepTask("densenet-bc-10-4", mode, 1, (1, 8, 8)) for mode in modes]
    told: list[str] = []

    def track(items, description, total=None, start=0):  # type: ignore[no-untyped-def]
        told.append(f"{description} {total}")
        yield from items

    found = time_steps(tasks, rounds=2, block=2, threads=1, track=track, title="Here")
    assert [len(series) for series in found] == [2, 2]
    assert all(0 < seconds < 5 for series in found for seconds in series)
    assert told == ["Here 2"]
