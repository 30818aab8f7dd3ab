"""Training curves from one or more logs: loss, accuracy and learning rate of each epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.data import ASSETS
from densenet_deploy.errors import DataError
from densenet_deploy.figures.drawing import COLOURS, grid
from densenet_deploy.figures.picture import Picture

SHIPPED = tuple(
    ASSETS / f"{name}.training.jsonl" for name in ("fashion-mnist", "fashion-mnist-100")
)
_STYLES = ("-", "--", ":", "-.")
_MARKED = 40  # epochs up to which each gets a marker
_READING = (
    "Loss and training accuracy are means over the epoch, taken while the weights change; "
    "evaluation is after the epoch; the learning rate is its last step's."
)


@dataclass(frozen=True)
class Epoch:
    """A line of a log; a number is None where there is none, or none that is finite.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean over the epoch.
        train_top1: Accuracy in percent on the training images.
        evaluation_top1: Accuracy in percent on the evaluation images.
        learning_rate: Of its last step.
    """

    epoch: int
    loss: float | None
    train_top1: float | None
    evaluation_top1: float | None
    learning_rate: float | None


def read_log(path: Path) -> list[Epoch]:
    """The epochs of a metrics.jsonl.

    Raises:
        DataError: The file is missing or is no such log.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"{path} is no training log ({reason})", expected="a .jsonl file") from None
    epochs: list[Epoch] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            epochs.append(_epoch(line, f"{path} line {number}"))
            if len(epochs) > 1 and epochs[-1].epoch <= epochs[-2].epoch:
                raise DataError(
                    f"{path} line {number}: epoch {epochs[-1].epoch} after {epochs[-2].epoch}",
                    expected="epochs that rise",
                )
    if not epochs:
        raise DataError(f"{path} holds no epoch", expected="one JSON object a line")
    return epochs


def _epoch(line: str, where: str) -> Epoch:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not JSON", expected="one JSON object a line") from None
    number = record.get("epoch") if isinstance(record, dict) else None
    if type(number) is not int or number < 1 or "loss" not in record:
        raise DataError(f"{where} has no epoch and loss", expected="a log that train wrote")
    names = ("loss", "train_top1", "evaluation_top1", "learning_rate")
    return Epoch(number, *(_number(record, name, where) for name in names))


def _number(record: Mapping[str, Any], name: str, where: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {name} is {str(value)[:40]!r}", expected="a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if name.endswith("top1") and not 0 <= number <= 100:
        raise DataError(f"{where}: {name} is {str(value)[:40]}", expected="a percentage")
    return number if math.isfinite(number) else None  # a diverged loss is a gap in its curve


def training(paths: Sequence[Path] = SHIPPED) -> tuple[Picture, tuple[Path, ...]]:
    """The curves of one or more logs, and the files that were read.

    Args:
        paths: Logs, or directories that hold a metrics.jsonl.

    Raises:
        DataError: A file is no such log.
    """
    files = tuple(path / "metrics.jsonl" if path.is_dir() else path for path in paths)
    runs = dict(zip(_names(files), map(read_log, files), strict=True))
    data = {name: [asdict(epoch) for epoch in epochs] for name, epochs in runs.items()}
    picture = Picture(
        name="training",
        title=f"Training of {next(iter(runs))}" if len(runs) == 1 else "Training",
        caption=f"Source: the training log of {', '.join(runs)}. {_READING}",
        data={"runs": data},
        header=("model", "epochs", "loss", "train top-1 %", "evaluation top-1 %"),
        lines=[_cells(name, epochs) for name, epochs in runs.items()],
        size=(13, 4.4),
        draw=lambda figure: _draw(figure, runs),
    )
    return picture, files


def _names(files: Sequence[Path]) -> list[str]:
    """A name for each log: the file's, of a metrics.jsonl the directory's; paths where alike."""
    names = [
        file.resolve().parent.name
        if file.stem == "metrics"
        else file.name.removesuffix(".jsonl").removesuffix(".training")
        for file in files
    ]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    if len(set(names)) < len(names):
        raise DataError("the same log is named twice", expected="different files")
    return names


def _cells(name: str, epochs: Sequence[Epoch]) -> tuple[str, ...]:
    last = epochs[-1]
    percents = (last.train_top1, last.evaluation_top1)
    loss = "-" if last.loss is None else f"{last.loss:.4g}"
    accuracies = ("-" if percent is None else f"{percent:.2f}" for percent in percents)
    return (name, str(len(epochs)), loss, *accuracies)


def _draw(figure: Any, runs: Mapping[str, Sequence[Epoch]]) -> None:
    loss, accuracy, rate = figure.subplots(1, 3)
    for index, (name, epochs) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        style = _STYLES[index // len(COLOURS) % len(_STYLES)]
        xs = [epoch.epoch for epoch in epochs]
        marker = "o" if len(epochs) <= _MARKED else ""
        look = {"color": colour, "linestyle": style, "ms": 3, "lw": 1.3}
        loss.plot(xs, _curve(epochs, "loss"), marker=marker, label=name, **look)
        evaluated, trained = _curve(epochs, "evaluation_top1"), _curve(epochs, "train_top1")
        prefix = "" if len(runs) == 1 else f"{name}, "
        accuracy.plot(xs, trained, label=f"{prefix}training", **{**look, "alpha": 0.6})
        accuracy.plot(xs, evaluated, marker="s", mfc="white", label=f"{prefix}evaluation", **look)
        rate.plot(xs, _curve(epochs, "learning_rate"), marker=marker, label=name, **look)
    grid(loss, "epoch", "mean training loss, nats")
    grid(accuracy, "epoch", "top-1 accuracy, %")
    grid(rate, "epoch", "learning rate")
    accuracy.legend(loc="lower right", fontsize=8)
    if len(runs) > 1:
        loss.legend(loc="upper right", fontsize=8)


def _curve(epochs: Sequence[Epoch], name: str) -> list[float]:
    values = (getattr(epoch, name) for epoch in epochs)
    return [math.nan if value is None else value for value in values]
