"""Training in several processes: who is who, and BatchNorm over all of their images."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel

from densenet_deploy.errors import DeployError, TrainingError

_CPU = torch.device("cpu")
# The others wait while one of a machine downloads; who dies is noticed at once all the same.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: Its number; 0 writes the files.
        world: How many there are.
        local: Its number on its machine.
        local_world: How many its machine has.
        device: What it computes on.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1
    device: torch.device = _CPU

    def together(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the processes in each backward pass."""
        if self.world == 1:
            return network
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(network, device_ids=[self.device] if on_gpu else None)

    @contextlib.contextmanager
    def one_by_machine_first(self, state: Path) -> Iterator[None]:
        """Lets one process of each machine do first what may fill a cache, such as a download.

        Raises:
            TrainingError: Another process ended, see `others_alive`.
        """
        if self.local:
            self._meet(state)
        try:
            yield
        except DeployError as error:
            if self.rank:
                error.add_note(f"process {self.rank}")  # the first does not meet it
            raise
        if not self.local:
            self._meet(state)

    def _meet(self, state: Path) -> None:
        with others_alive(self, state):
            self.total(torch.zeros(1))

    def share_buffers(self, network: nn.Module) -> None:
        """Gives all processes the first's buffers, which are its running statistics."""
        if self.world > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, 0)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, of values in the CPU's memory."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values


ALONE = Processes()


@contextlib.contextmanager
def join(device: str = "") -> Iterator[Processes]:
    """Joins the processes that torchrun started; alone without it.

    Tensors on GPUs go through NCCL, those on CPUs through Gloo.

    Args:
        device: `cpu` or `cuda`; by default a GPU where there is one.

    Raises:
        TrainingError: There are fewer GPUs than processes, or the others cannot be reached.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise TrainingError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}",
            remedy="start as many processes as there are GPUs, or train with --device cpu",
        )
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if world == 1:
        yield Processes(device=place)
        return
    if kind == "cuda":
        torch.cuda.set_device(place)
    # DistributedDataParallel imports it. Imported while there is a group, it keeps the group alive.
    importlib.import_module("torch._dynamo")
    try:
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"process {rank} cannot reach the others ({error})") from None
    try:
        yield Processes(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", 1)), place)
    finally:
        distributed.destroy_process_group()
        gc.collect()  # what still refers to the group: its threads would crash the ending process


@contextlib.contextmanager
def others_alive(processes: Processes, state: Path) -> Iterator[None]:
    """Says what a lost peer means: Gloo and NCCL report a closed connection.

    Args:
        processes: This process among the others.
        state: What a run continues from.

    Raises:
        TrainingError: Another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or "peer" in str(error)
        if processes.world == 1 or not lost:
            raise
        raise TrainingError(
            f"another of the {processes.world} processes ended ({str(error).splitlines()[-1]})",
            remedy="run the same command again: "
            + (f"it continues from {state}" if state.exists() else "nothing was saved yet"),
        ) from None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over all processes' images, each of which has as many; also on CPUs.

    torch.nn.SyncBatchNorm is for GPUs alone.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape, normalised over N of all processes, H and W."""
        if not self.training:
            return super().forward(features)
        world, axes = distributed.get_world_size(), (0, 2, 3)
        precise = features.float() if features.dtype.itemsize < 4 else features
        mean = _Total.apply(precise.mean(axes)) / world
        centred = precise - mean[:, None, None]
        variance = _Total.apply(centred.square().mean(axes)) / world
        self._track(mean.detach(), variance.detach(), world * features.numel() / features.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised = centred * scale[:, None, None] + self.bias[:, None, None]
        result: Tensor = normalised.to(features.dtype)
        return result

    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


class _Total(Function):
    """The sum over the processes; so is the gradient of what each of them does with it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Makes every BatchNorm of the model one over all processes, in place."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                parent.add_module(name, _synchronised(norm, device))


def _synchronised(norm: nn.BatchNorm2d, device: torch.device) -> nn.Module:
    kind = nn.SyncBatchNorm if device.type == "cuda" else SyncBatchNorm2d
    replaced = kind(norm.num_features, norm.eps, norm.momentum)
    replaced.load_state_dict(norm.state_dict(), assign=True)
    return replaced
