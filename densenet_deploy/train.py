"""One readable training loop, resumable after a kill at any moment.

Order and augmentation of an epoch are drawn at once from (seed, epoch), so a run that is killed
and resumed anywhere sees the same batches and ends with the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from densenet_deploy import checkpoint
from densenet_deploy.checkpoint import CheckpointInfo
from densenet_deploy.data import ImageSet, check_labels
from densenet_deploy.errors import CheckpointError, DataError
from densenet_deploy.files import replacing_file
from densenet_deploy.model import DenseNet
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import TrainConfig

SAVE_SECONDS = 60.0  # most work a kill can cost


@dataclass
class _Position:
    """Where a run stands: `step` of `epoch` is next; sums are over this epoch so far."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0


def train(
    model: DenseNet,
    config: TrainConfig,
    images: ImageSet,
    evaluation: ImageSet,
    preprocessing: Preprocessing,
    out: Path,
    track: Track = silent,
) -> list[dict[str, Any]]:
    """Trains `model` in place; writes `out`/model.safetensors and `out`/metrics.jsonl.

    A state left in `out` by an interrupted run of the same configuration is continued.

    Args:
        model: The network, with its initial weights.
        config: Hyperparameters.
        images: Training images.
        evaluation: Images whose accuracy is logged after each epoch; they choose nothing.
        preprocessing: Normalisation of both sets.
        out: Directory of state, log and result.
        track: Progress reporter.

    Returns:
        One record for each epoch: loss, accuracies in percent, learning rate, seconds.

    Raises:
        CheckpointError: `out` holds the state of another configuration, or a damaged one.
        DataError: Fewer training images than one batch, or labels the model has no class for.
    """
    check_labels(images, model.spec.classes)
    steps = len(images) // config.batch_size
    if steps == 0:
        raise DataError(
            f"{images.source}: {len(images)} images", expected=f"at least {config.batch_size}"
        )
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    out.mkdir(parents=True, exist_ok=True)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    position = _resume(out, model, optimizer, config)
    model.train()
    records = _read_log(out / "metrics.jsonl", position.epoch)
    network: Callable[[Tensor], Tensor] = torch.compile(model) if config.compile else model
    batches = _remaining_batches(images, preprocessing, config, position)
    total, done = config.epochs * steps, position.epoch * steps + position.step
    saved = time.monotonic()
    for batch in track(batches, "Training (steps)", total, done):
        began = time.perf_counter()
        rate = learning_rate(config, position.epoch + position.step / steps)
        loss, correct = _step(network, optimizer, batch, rate, config)
        position.loss_sum += loss
        position.correct += correct
        position.seconds += time.perf_counter() - began
        position.step += 1
        if position.step == steps:
            records.append(_close_epoch(model, evaluation, preprocessing, position, rate, config))
            _write_log(out / "metrics.jsonl", records)
            position = _Position(epoch=position.epoch + 1)
        if position.step == 0 or time.monotonic() - saved > SAVE_SECONDS:
            _save_state(out, model, optimizer, config, position)
            saved = time.monotonic()
    training = {"config": asdict(config), "images": images.source, "final": records[-1]}
    info = CheckpointInfo(model.spec, preprocessing, images.classes, training)
    checkpoint.save(out / "model.safetensors", model, info)
    return records


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate at a (fractional) epoch: linear warm-up, then cosine or step decay."""
    if epoch < config.warmup_epochs:
        return config.learning_rate * epoch / config.warmup_epochs
    if config.schedule == "step":
        drops = (epoch >= config.epochs * 0.5) + (epoch >= config.epochs * 0.75)
        return config.learning_rate * 0.1**drops
    share = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def evaluate(
    model: nn.Module, images: ImageSet, preprocessing: Preprocessing, batch_size: int = 250
) -> float:
    """Top-1 accuracy in percent, in fp32 and evaluation mode."""
    training = model.training
    model.eval()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            inputs = preprocessing.normalise(images.pixels[start : start + batch_size])
            predicted = model(torch.from_numpy(inputs)).argmax(1).numpy()
            correct += int((predicted == images.labels[start : start + batch_size]).sum())
    model.train(training)
    return 100 * correct / len(images)


def _step(
    network: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    rate: float,
    config: TrainConfig,
) -> tuple[float, int]:
    inputs, labels = batch
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        logits = network(inputs)
    loss = functional.cross_entropy(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item() * len(labels), int((logits.argmax(1) == labels).sum())


def _remaining_batches(
    images: ImageSet, preprocessing: Preprocessing, config: TrainConfig, position: _Position
) -> Iterator[tuple[Tensor, Tensor]]:
    first_epoch, first_step = position.epoch, position.step
    for epoch in range(first_epoch, config.epochs):
        step = first_step if epoch == first_epoch else 0
        yield from _batches(images, preprocessing, config, epoch, step)


def _batches(
    images: ImageSet, preprocessing: Preprocessing, config: TrainConfig, epoch: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches of one epoch from step `first` on; all randomness is (seed, epoch)."""
    generator = np.random.default_rng((config.seed, epoch))
    order = generator.permutation(len(images))
    flips = generator.random(len(images)) < 0.5
    shifts = generator.integers(-config.shift, config.shift + 1, (len(images), 2))
    for step in range(first, len(images) // config.batch_size):
        chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
        pixels = images.pixels[chosen]
        if config.flip:
            pixels = np.where(flips[chosen, None, None, None], pixels[:, :, ::-1], pixels)
        if config.shift:
            pixels = translate(pixels, shifts[chosen])
        inputs = torch.from_numpy(preprocessing.normalise(pixels))
        if config.channels_last:
            inputs = inputs.to(memory_format=torch.channels_last)
        yield inputs, torch.from_numpy(images.labels[chosen])


def translate(pixels: NDArray[np.uint8], shifts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Moves each image (N, H, W, C) by its (rows, columns); black enters at the edges."""
    reach = int(np.abs(shifts).max(initial=0))
    count, height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    rows = (reach - shifts[:, 0])[:, None] + np.arange(height)
    columns = (reach - shifts[:, 1])[:, None] + np.arange(width)
    moved: NDArray[np.uint8] = padded[
        np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return moved


def _close_epoch(
    model: DenseNet,
    evaluation: ImageSet,
    preprocessing: Preprocessing,
    position: _Position,
    rate: float,
    config: TrainConfig,
) -> dict[str, Any]:
    seen = position.step * config.batch_size
    return {
        "epoch": position.epoch + 1,
        "loss": round(position.loss_sum / seen, 5),
        "train_top1": round(100 * position.correct / seen, 3),
        "evaluation_top1": round(evaluate(model, evaluation, preprocessing), 3),
        "evaluation_images": len(evaluation),
        "learning_rate": round(rate, 6),
        "seconds": round(position.seconds, 1),
    }


def _save_state(
    out: Path,
    model: DenseNet,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    position: _Position,
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": asdict(config),
        "position": asdict(position),
    }
    with replacing_file(out / "state.pt") as temporary:
        torch.save(state, temporary)


def _resume(
    out: Path, model: DenseNet, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> _Position:
    path = out / "state.pt"
    if not path.exists():
        return _Position()
    try:
        state = torch.load(path, weights_only=True)
        stored, position = state["config"], _Position(**state["position"])
    except Exception as error:  # torch raises many types for damaged files
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__})",
            remedy="delete it to start over, or train into another directory",
        ) from None
    different = [key for key, value in asdict(config).items() if stored.get(key) != value]
    if different:
        raise CheckpointError(
            f"{out} holds a run with another {', '.join(different)}",
            remedy="train into another directory, or delete this one",
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError):
        raise CheckpointError(
            f"{out} holds a run of another architecture",
            remedy="train into another directory, or delete this one",
        ) from None
    return position


def _read_log(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The first `epochs` records, which a state at that epoch left behind."""
    try:
        lines = path.read_text().splitlines()[:epochs] if epochs else []
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        records = []
    if len(records) < epochs:
        raise CheckpointError(
            f"{path} lacks some of the {epochs} epochs that state.pt has finished",
            remedy="restore it, or train into another directory",
        )
    return records


def _write_log(path: Path, records: list[dict[str, Any]]) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
