"""One training step, and steps timed against each other: each in a process of its own.

The processes take turns and are started anew for every block of rounds, as ratios of single
launches differ from each other.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from densenet_deploy.allocator import keep_freed_memory
from densenet_deploy.model import create_model
from densenet_deploy.progress import Track, silent
from densenet_deploy.torchvision_models import torchvision_model
from densenet_deploy.training_suite import StepTask
from densenet_deploy.turns import in_worker, take_turns
from densenet_deploy.worker import serve

_SAMPLE_SECONDS = 0.5
_WARMUP_STEPS = 2
_TORCHVISION_SHAPE = (3, 224, 224)
_CLASSES = 10  # labels drawn: every network has as many
METHOD = (
    "A sample is the median host wall time of consecutive training steps, at least 1 and about "
    "0.5 s: forward, cross-entropy, backward, and SGD with Nesterov momentum and weight decay, "
    "torch.optim.SGD(fused=True) on every side; channels_last; bf16 is autocast; the same batch "
    "of seeded noise; nothing is compiled. Each side runs in a process of its own, with 2 "
    "untimed steps or more, started anew for every block of rounds. In every round each side "
    "gives one sample, one at a time, in an order that is reversed every second round. A "
    "speed-up is the median over the rounds of baseline / candidate, with its 95 % percentile "
    "bootstrap interval, for which whole blocks are resampled. No sample is dropped."
)


class TrainingStep:
    """A network in training with its optimizer and one batch; calling it makes a step.

    Attributes:
        model: In training mode, channels_last.
        images: (N, C, H, W), seeded noise.
        labels: (N,).

    Raises:
        RecipeError: There is no such model.
    """

    def __init__(self, task: StepTask) -> None:
        model, shape = _build(task)
        self._bf16 = task.precision == "bf16"
        self.model = model.to(memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=True
        )
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(task.batch, *shape, generator=generator)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(_CLASSES, (task.batch,), generator=generator)

    def loss(self, first: int | None = None) -> Tensor:
        """The forward pass, ready for the backward one; of the `first` images, or of all."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            logits = self.model(self.images[:first])
        return functional.cross_entropy(logits.float(), self.labels[:first])

    def __call__(self) -> float:
        """One step; its seconds."""
        began = time.perf_counter()
        loss = self.loss()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return time.perf_counter() - began


def _build(task: StepTask) -> tuple[nn.Module, tuple[int, int, int]]:
    if task.mode == "torchvision":
        return torchvision_model(task.model), _TORCHVISION_SHAPE
    efficient = task.mode == "memory-efficient"
    model = create_model(task.model, task.input_shape, seed=0, memory_efficient=efficient)
    return model, model.spec.input_shape


def time_steps(
    tasks: Sequence[StepTask],
    rounds: int,
    block: int,
    threads: int,
    track: Track = silent,
    title: str = "Steps",
) -> list[tuple[float, ...]]:
    """Times a step of every task once in each round, see `turns.take_turns`.

    Args:
        tasks: Who takes part.
        rounds: Samples of each; a multiple of `block`.
        block: Rounds after which all are started anew.
        threads: CPU threads of each.
        track: Progress reporter.
        title: What it shows.

    Returns:
        For each task the seconds of every round.

    Raises:
        BackendError: A process died.
        RecipeError: There is no such model.
    """
    launches = [partial(in_worker, __name__, task.mode, (task, threads)) for task in tasks]
    return [side.seconds for side in take_turns(launches, rounds, block, track, title)]


def _answers(requests: Iterator[Any]) -> Iterator[Any]:
    """One side's process: what the first request names, then a sample for each request."""
    for task, threads in requests:
        torch.set_num_threads(threads)
        keep_freed_memory()  # as `train` does
        step = TrainingStep(task)
        warm = [step() for _ in range(_WARMUP_STEPS)]
        while sum(warm) < _SAMPLE_SECONDS:
            warm.append(step())
        count = math.ceil(_SAMPLE_SECONDS / warm[-1])
        yield count
        for _ in requests:
            yield statistics.median(step() for _ in range(count))


if __name__ == "__main__":
    serve(_answers)
