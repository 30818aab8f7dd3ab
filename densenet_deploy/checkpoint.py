"""Trained weights as a safetensors file that says what they are.

The header carries the architecture, the preprocessing and the class names, so a checkpoint alone
is enough to export. Files from elsewhere (torchvision's .pth among them) are read without
executing pickled code.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from densenet_deploy import schema
from densenet_deploy.errors import CheckpointError
from densenet_deploy.files import replacing_file
from densenet_deploy.model import DenseNet
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.spec import DenseNetSpec

_KEY = "densenet_deploy"
# torchvision's published files predate its own names: `denselayer1.norm.1.weight`.
_LEGACY_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


@dataclass(frozen=True)
class CheckpointInfo:
    """What the header of a checkpoint says.

    Attributes:
        spec: The architecture.
        preprocessing: What its images went through.
        labels: Class names.
        training: How it was trained: free-form, for records.
    """

    spec: DenseNetSpec
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    training: dict[str, Any]


def save(path: Path, model: DenseNet, info: CheckpointInfo) -> None:
    """Writes `model`'s weights and `info` in one atomic step."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with replacing_file(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(asdict(info), sort_keys=True)})


def read_info(path: Path) -> CheckpointInfo | None:
    """The header of a checkpoint, or None where another tool wrote the file.

    Raises:
        CheckpointError: The file is missing, damaged, or its header is malformed.
    """
    if path.suffix != ".safetensors":
        _require(path)
        return None
    with _open(path) as tensors:
        header = (tensors.metadata() or {}).get(_KEY)
    if header is None:
        return None
    problems: list[str] = []
    try:
        info = schema.read(CheckpointInfo, json.loads(header), "header", problems)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not JSON ({error})") from None
    if info is None:
        raise CheckpointError(f"{path}: {'; '.join(problems)}")
    return info


def load_weights(path: Path, model: DenseNet) -> None:
    """Loads a .safetensors or torch state dict into `model`, in place.

    Raises:
        CheckpointError: Damaged file, or tensors that do not fit the architecture.
    """
    state = _safetensors(path) if path.suffix == ".safetensors" else _torch_state(path)
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - state.keys() if not _counter(name)]
    problems += [f"{name} is unexpected" for name in state.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:4]) + ("; ..." if len(problems) > 4 else "")
        raise CheckpointError(
            f"{path} does not fit this architecture: {listed}",
            remedy="check --model, the input channels and the number of classes",
        )
    model.load_state_dict(state, strict=False)


def _counter(name: str) -> bool:
    # Checkpoints older than torch 0.4.1 lack these counters, which inference does not use.
    return name.endswith("num_batches_tracked")


def _require(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist", remedy="check the path")


def _open(path: Path):  # type: ignore[no-untyped-def]
    _require(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file ({error})") from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    with _open(path) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def _torch_state(path: Path) -> dict[str, Tensor]:
    _require(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged or unsafe files
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(f"{path} is not a loadable torch state dict ({reason})") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} holds no plain state dict", expected="name to tensor pairs")
    return {_LEGACY_NAME.sub(r"\1\2", name): value for name, value in state.items()}
