"""What a training leaves on disk to continue from: its state, and one record for each epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from densenet_deploy.errors import CheckpointError
from densenet_deploy.files import replacing_file
from densenet_deploy.train_config import TrainConfig

STATE = "state.pt"
_ABSENT = {  # of states that earlier versions saved
    "config": {},
    "subject": {},
    "trained_by": [{"densenet-deploy": "unknown"}],
}


@dataclass
class Position:
    """Where a run stands: `step` of `epoch` is next; sums are over this epoch so far."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step + 1}"


@dataclass(frozen=True)
class State:
    """Everything that training changes, in a directory.

    Attributes:
        directory: Holds state.pt and metrics.jsonl.
        config: Of the run.
        subject: What else makes a run what it is, by name; a state of another run is refused.
        model: With its weights.
        optimizer: With its momenta.
        scaler: Of the loss.
        software: Of this process.
        trained_by: That of the processes that made steps, in order; a repeated one counts once.
    """

    directory: Path
    config: TrainConfig
    subject: Mapping[str, Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    software: dict[str, str]
    trained_by: list[dict[str, str]] = field(default_factory=list)

    def save(self, position: Position) -> None:
        """Writes state.pt in one atomic step, after some of training."""
        if self.trained_by[-1:] != [self.software]:
            self.trained_by.append(self.software)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": asdict(self.config),
            "subject": dict(self.subject),
            "position": asdict(position),
            "trained_by": self.trained_by,
        }
        with replacing_file(self.directory / STATE) as temporary:
            torch.save(state, temporary)

    def resume(self) -> Position:
        """Takes over what an interrupted run of the same configuration left; or starts.

        Raises:
            CheckpointError: The directory holds another run's state, or a damaged one.
        """
        position = self._restored() if (self.directory / STATE).exists() else Position()
        for unfinished in self.directory.glob(f".{STATE}.*"):  # of a run killed while it saved
            unfinished.unlink(missing_ok=True)
        return position

    def _restored(self) -> Position:
        state, position = _read(self.directory / STATE)
        different = _different(state["subject"], self.subject)
        if different := different + _different(_configured(state), asdict(self.config)):
            raise CheckpointError(
                f"{self.directory} holds a run with another {', '.join(different)}",
                remedy="train into another directory, or delete this one",
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError):
            raise CheckpointError(
                f"{self.directory} holds a run of another architecture",
                remedy="train into another directory, or delete this one",
            ) from None
        self.trained_by.extend(state["trained_by"])
        return position


def saved_position(directory: Path) -> Position | None:
    """Where a run in this directory would continue; None where it would start."""
    path = directory / STATE
    return _read(path)[1] if path.exists() else None


def _read(path: Path) -> tuple[dict[str, Any], Position]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return _ABSENT | state, Position(**state["position"])
    except Exception as error:  # torch raises many types for damaged files
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__})",
            remedy="delete it to start over, or train into another directory",
        ) from None


def _configured(state: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration; a key that was added since had its default then."""
    stored: dict[str, Any] = state["config"]
    return asdict(TrainConfig()) | stored if stored else stored


def _different(stored: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    return [key for key, value in config.items() if stored.get(key) != value]


def read_log(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The first `epochs` records, which a state at that epoch left behind.

    Raises:
        CheckpointError: There are fewer.
    """
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


def write_log(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes one record a line, in one atomic step."""
    with replacing_file(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
