"""The learning rate against torch's schedulers, and the shape that a shorter run keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy.schedule import learning_rate
from densenet_deploy.train_config import TrainConfig


@pytest.mark.parametrize(
    "epoch, rate",
    [(0, 0), (0.5, 0.125), (1, 0.25), (2, 0.5), (4, 0.4267767), (6, 0.25), (8, 0.0732233), (10, 0)],
)
def test_cosine_learning_rate(epoch: float, rate: float) -> None:
    config = TrainConfig(epochs=10, learning_rate=0.5, warmup_epochs=2, schedule="cosine")
    assert learning_rate(config, epoch) == pytest.approx(rate, abs=1e-7)


@pytest.mark.parametrize(
    "epoch, rate",
    [(0, 0), (0.5, 0.05), (1, 0.1), (9.99, 0.1), (10, 0.01), (14.9, 0.01), (15, 1e-3), (19, 1e-3)],
)
def test_step_learning_rate(epoch: float, rate: float) -> None:
    config = TrainConfig(epochs=20, learning_rate=0.1, warmup_epochs=1, schedule="step")
    assert learning_rate(config, epoch) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedules_are_those_of_torch(schedule: Any) -> None:
    config = TrainConfig(epochs=40, learning_rate=0.3, warmup_epochs=0, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    schedulers = {
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40),
        "step": torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30], gamma=0.1),
    }
    for epoch in range(40):
        rate = optimizer.param_groups[0]["lr"]
        assert learning_rate(config, epoch) == pytest.approx(rate, rel=1e-6), epoch
        optimizer.step()
        schedulers[schedule].step()


@given(
    st.sampled_from(["cosine", "step"]),
    st.integers(1, 300),
    st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(sorted),
    st.floats(0, 0.999),
)
def test_a_shorter_run_keeps_the_shape(
    schedule: Any, epochs: int, drops: list[float], share: float
) -> None:
    long = TrainConfig(epochs=300, schedule=schedule, drops=tuple(drops), warmup_epochs=0)
    short = TrainConfig(epochs=epochs, schedule=schedule, drops=tuple(drops), warmup_epochs=0)
    if any(abs(share - drop) < 1e-9 for drop in drops):
        return  # on the edge rounding decides
    expected = learning_rate(long, 300 * share)
    assert learning_rate(short, epochs * share) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_drops_are_where_they_are_said_to_be() -> None:
    config = TrainConfig(
        epochs=100, schedule="step", drops=(0.3, 0.6, 0.9), warmup_epochs=0, learning_rate=1.0
    )
    rates = [learning_rate(config, epoch) for epoch in range(100)]
    expected = [1.0] * 30 + [0.1] * 30 + [0.01] * 30 + [0.001] * 10
    assert rates == pytest.approx(expected, rel=1e-9)
