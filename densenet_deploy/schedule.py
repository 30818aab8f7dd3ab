"""The learning rate's schedule."""

from __future__ import annotations

import math

from densenet_deploy.train_config import TrainConfig


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate at a (fractional) epoch: linear warm-up, then cosine or step decay.

    Drops and cosine are in proportion to `config.epochs`, warm-up is not.
    Cosine: Loshchilov and Hutter, arXiv 1608.03983, equation 5, without restarts.
    """
    if epoch < config.warmup_epochs:
        return config.learning_rate * epoch / config.warmup_epochs
    if config.schedule == "step":
        passed = sum(epoch >= drop * config.epochs for drop in config.drops)
        return config.learning_rate * 0.1**passed
    share = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
