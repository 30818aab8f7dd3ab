"""What a training step keeps from its forward pass for its backward pass, and its peak memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from densenet_deploy.allocator import keep_freed_memory, release_freed_memory
from densenet_deploy.resident import peak_growth
from densenet_deploy.training_step import TrainingStep
from densenet_deploy.training_suite import StepTask
from densenet_deploy.worker import Worker, serve

_PROCESSES = 3
METHOD = (
    "Held bytes: the storages, whole and each once, of all tensors that autograd saves in one "
    "forward pass in training mode, without parameters, buffers, images and labels. Peak memory: "
    "by how much a forward and backward pass raises the resident set of a fresh process that has "
    "made one of a single image before, so that libraries and gradients are in place, and has "
    "given back what was free; the median of three processes."
)


@dataclass(frozen=True)
class Held:
    """Memory of one training step.

    Attributes:
        task: Which step.
        held_bytes: Kept from the forward pass for the backward pass.
        peak_rss_bytes: Growth of the resident set, median of three processes.
    """

    task: StepTask
    held_bytes: int
    peak_rss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        sizes = {"held_bytes": self.held_bytes, "peak_rss_bytes": self.peak_rss_bytes}
        return asdict(self.task) | sizes


def measure(task: StepTask, threads: int) -> Held:
    """Measures a step in fresh processes.

    Raises:
        BackendError: A process died.
        RecipeError: There is no such model.
    """
    peaks = []
    for _ in range(_PROCESSES):
        with Worker(__name__, f"{task.model}, {task.mode}") as worker:
            held, peak = worker.ask((task, threads))
        peaks.append(peak)
    return Held(task, held, statistics.median(peaks))


def held_bytes(step: TrainingStep) -> int:
    """Bytes that one forward pass keeps for the backward pass.

    A view keeps its whole storage; a storage that several tensors share counts once. Parameters,
    buffers and the batch itself would be there anyway.
    """
    own = (*step.model.parameters(), *step.model.buffers(), step.images, step.labels)
    there = {tensor.untyped_storage().data_ptr() for tensor in own}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step.loss()  # while it lives, no storage that it saved is freed and used again
    assert loss.requires_grad
    return sum(sizes.values())


def _answers(requests: Iterator[Any]) -> Iterator[tuple[int, int]]:
    """The measured process."""
    for task, threads in requests:
        torch.set_num_threads(threads)
        keep_freed_memory()  # as `train` does
        step = TrainingStep(task)
        _pass(step, first=1)
        release_freed_memory()  # else this pass uses it again, and grows by less
        _, peak = peak_growth(partial(_pass, step))
        yield held_bytes(step), peak


def _pass(step: TrainingStep, first: int | None = None) -> None:
    step.loss(first).backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    serve(_answers)
