"""One readable training loop, resumable after a kill at any moment, in one process or many.

Order, augmentation and dropout are drawn from (seed, epoch, step), so a run that is killed and
resumed anywhere sees the same batches and ends with the same weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from densenet_deploy import checkpoint, environment
from densenet_deploy.batches import Batch, Share, TrainingImages
from densenet_deploy.checkpoint import CheckpointInfo
from densenet_deploy.data import ImageSet, check_labels
from densenet_deploy.distributed import ALONE, Processes, others_alive, synchronise_batchnorm
from densenet_deploy.errors import DataError, RecipeError, TrainingError
from densenet_deploy.evaluate import Accuracy, evaluate
from densenet_deploy.image_files import ImageFiles
from densenet_deploy.model import DenseNet, Network
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.progress import Track, silent
from densenet_deploy.schedule import learning_rate
from densenet_deploy.train_config import TrainConfig
from densenet_deploy.training_state import STATE, Position, State, read_log, write_log

SAVE_SECONDS = 60.0  # most work a kill can cost
_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Record = dict[str, Any]


def train(
    model: Network,
    config: TrainConfig,
    images: TrainingImages,
    evaluation: ImageSet | ImageFiles,
    preprocessing: Preprocessing,
    out: Path,
    track: Track = silent,
    processes: Processes = ALONE,
) -> list[Record]:
    """Trains `model` in place; writes `out`/model.safetensors and `out`/metrics.jsonl.

    A state left in `out` by an interrupted run of the same configuration is continued, whatever
    the number of processes was.

    Args:
        model: The network, with its initial weights, the same in every process.
        config: Hyperparameters.
        images: Training images.
        evaluation: Images whose accuracy is logged after each epoch. They choose nothing, unless
            `config.select` is `best`.
        preprocessing: Normalisation of both sets.
        out: Directory of state, log and result, the same for all processes.
        track: Progress reporter.
        processes: This process among the others.

    Returns:
        One record for each epoch: loss, accuracies in percent, learning rate, seconds.

    Raises:
        CheckpointError: `out` holds the state of another configuration, or a damaged one.
        DataError: Fewer training images than one batch, or labels the model has no class for.
        RecipeError: The batch cannot be divided among the processes.
        TrainingError: The loss is no number any more, or another process is lost.
    """
    steps = _check(model, config, images, processes)
    out.mkdir(parents=True, exist_ok=True)
    learner = _learner(model, config, processes)
    subject = _subject(model, images, preprocessing)
    running = environment.software() | {"device": _device(processes.device)}
    state = State(out, config, subject, model, learner.optimizer, learner.scaler, running)
    position = state.resume()
    records = read_log(out / "metrics.jsonl", position.epoch)
    result = _Result(model, config, preprocessing, images, state.trained_by, out)
    batches = _remaining(images, config, position, processes)
    total, done = config.epochs * steps, position.epoch * steps + position.step
    saved, writes = time.monotonic(), processes.rank == 0
    for batch in track(batches, "Training (steps)", total, done):
        with others_alive(processes, out / STATE):
            learner.step(batch, position, steps)
        if position.step == steps:
            with others_alive(processes, out / STATE):
                accuracy = _accuracy(model, evaluation, preprocessing, processes)
            records.append(_record(position, steps, config, accuracy))
            if writes:
                result.keep_best(records)
                write_log(out / "metrics.jsonl", records)
            position = Position(epoch=position.epoch + 1)
        if writes and (position.step == 0 or time.monotonic() - saved > SAVE_SECONDS):
            state.save(position)
            saved = time.monotonic()
    if writes:
        result.finish(records)
    return records


@dataclass(frozen=True)
class _Learner:
    """What makes a step: the network as it is called, its optimizer and the scaler of its loss."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    config: TrainConfig
    processes: Processes

    def step(self, batch: Batch, position: Position, steps: int) -> None:
        """Moves the weights once, and the position with them."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, position.epoch + position.step / steps)
        if self.config.dropout:
            seeds = (self.config.seed, position.epoch, position.step, self.processes.rank)
            torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        self.optimizer.zero_grad(set_to_none=True)
        inputs, labels = (part.to(self.processes.device, non_blocking=True) for part in batch)
        pieces = self.config.accumulate
        found = torch.zeros(2, dtype=torch.float64)
        for piece, (some, of_some) in enumerate(
            zip(inputs.chunk(pieces), labels.chunk(pieces), strict=True), 1
        ):
            found += self._gradients(some, of_some, last=piece == pieces)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        loss, correct = self.processes.total(found).tolist()
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at {position}",
                remedy="lower the learning rate, or lengthen the warm-up",
            )
        position.loss_sum += loss
        position.correct += int(correct)
        position.seconds += time.perf_counter() - began
        position.step += 1

    def _gradients(self, inputs: Tensor, labels: Tensor, last: bool) -> Tensor:
        """Adds to the gradients; the sum of the losses and how many answers are right."""
        dtype = _AUTOCAST[self.config.precision]
        with _not_yet_averaged(self.network, last), _arithmetic(self.config):
            with torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
                logits = self.network(inputs)
            loss = functional.cross_entropy(logits.float(), labels)
            self.scaler.scale(loss / self.config.accumulate).backward()  # type: ignore[no-untyped-call]
        correct = (logits.argmax(1) == labels).sum()
        return torch.tensor([loss.item() * len(labels), correct.item()], dtype=torch.float64)


def _arithmetic(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """fp32 without TF32, which cuDNN's convolutions use by default."""
    if config.precision != "fp32":
        return contextlib.nullcontext()
    cudnn = torch.backends.cudnn
    exact: contextlib.AbstractContextManager[None] = cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, allow_tf32=False
    )
    return exact


def _not_yet_averaged(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Processes exchange gradients in the last backward pass of a step alone."""
    if last or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    waiting: contextlib.AbstractContextManager[None] = network.no_sync()
    return waiting


def _learner(model: Network, config: TrainConfig, processes: Processes) -> _Learner:
    """Prepares the model for training, in place, and what trains it."""
    synchronised = config.sync_batchnorm and processes.world > 1
    if isinstance(model, DenseNet):
        plain = config.compile or synchronised
        model.memory_efficient = config.memory_efficient and not plain
    if synchronised:
        synchronise_batchnorm(model, processes.device)
    model.to(processes.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        fused=True,
    )
    scaler = GradScaler(processes.device.type, enabled=config.precision == "fp16")
    called = cast(nn.Module, torch.compile(model)) if config.compile else model
    network = processes.together(called).train()
    return _Learner(network, optimizer, scaler, config, processes)


def _check(
    model: Network, config: TrainConfig, images: TrainingImages, processes: Processes
) -> int:
    """How many steps an epoch has."""
    check_labels(images, model.spec.classes)
    pieces = processes.world * config.accumulate
    if config.batch_size % pieces:
        raise RecipeError(
            f"train.batch_size {config.batch_size} for {processes.world} processes that "
            f"accumulate {config.accumulate} times",
            expected=f"a multiple of {pieces}",
        )
    if len(images) < config.batch_size:
        raise DataError(
            f"{images.source}: {len(images)} images", expected=f"at least {config.batch_size}"
        )
    return len(images) // config.batch_size


def _subject(
    model: Network, images: TrainingImages, preprocessing: Preprocessing
) -> dict[str, Any]:
    """What makes a run what it is, besides its configuration."""
    return {
        "architecture": repr(model.spec),
        "training images": images.source,
        "labels": hashlib.sha256(images.labels.tobytes()).hexdigest(),
        "preprocessing": repr(preprocessing),
    }


def _device(device: torch.device) -> str:
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else environment.cpu_name()


def _remaining(
    images: TrainingImages, config: TrainConfig, position: Position, processes: Processes
) -> Iterator[Batch]:
    share = Share(processes.rank, processes.world, processes.local_world)
    first_epoch, first_step = position.epoch, position.step
    for epoch in range(first_epoch, config.epochs):
        first = first_step if epoch == first_epoch else 0
        try:
            yield from images.batches(config, epoch, first, share)
        except DataError as error:
            error.add_note(f"process {processes.rank}")  # the others do not meet it
            raise


def _accuracy(
    model: Network,
    evaluation: ImageSet | ImageFiles,
    preprocessing: Preprocessing,
    processes: Processes,
) -> Accuracy:
    """Of the weights as they would be saved now; the processes share the images."""
    processes.share_buffers(model)
    return evaluate(model, evaluation, preprocessing, processes=processes)


def _record(position: Position, steps: int, config: TrainConfig, accuracy: Accuracy) -> Record:
    """What the log says of an epoch."""
    seen = steps * config.batch_size
    rate = learning_rate(config, position.epoch + (steps - 1) / steps)
    return {
        "epoch": position.epoch + 1,
        "loss": round(position.loss_sum / seen, 5),
        "train_top1": round(100 * position.correct / seen, 3),
        "evaluation_top1": round(accuracy.top1, 3),
        "evaluation_images": accuracy.images,
        "learning_rate": round(rate, 6),
        "seconds": round(position.seconds, 1),
    }


@dataclass(frozen=True)
class _Result:
    """Where the weights go, and what their header says."""

    model: Network
    config: TrainConfig
    preprocessing: Preprocessing
    images: TrainingImages
    trained_by: list[dict[str, str]]
    out: Path

    def keep_best(self, records: list[Record]) -> None:
        """Writes best.safetensors where the last epoch is the first with the best accuracy."""
        if self.config.select == "best" and records.index(_best(records)) == len(records) - 1:
            self._save("best.safetensors", records[-1])

    def finish(self, records: list[Record]) -> None:
        """Writes the selected weights, and leaves them in the model."""
        chosen = records[-1]
        if self.config.select == "best":
            path = self.out / "best.safetensors"
            checkpoint.load_weights(path, self.model)
            info = checkpoint.read_info(path)
            assert info is not None
            chosen = info.training["final"]  # what these weights were seen to reach
        self._save("model.safetensors", chosen)

    def _save(self, name: str, record: Record) -> None:
        training = {
            "config": asdict(self.config),
            "images": self.images.source,
            "final": record,
            "trained_by": self.trained_by,
        }
        info = CheckpointInfo(self.model.spec, self.preprocessing, self.images.classes, training)
        checkpoint.save(self.out / name, self.model, info)


def _best(records: list[Record]) -> Record:
    return max(records, key=lambda record: float(record["evaluation_top1"]))
