"""Trained weights as a safetensors file that says what they are.

The header carries the architecture, the preprocessing and the class names, so a checkpoint alone
is enough to export. Files from elsewhere (torchvision's .pth among them) are read without
executing pickled code, and a report says what had to be done to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from densenet_deploy import schema
from densenet_deploy.errors import CheckpointError
from densenet_deploy.files import replacing_file
from densenet_deploy.model import Network
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.spec import Architecture

_KEY = "densenet_deploy"
_WRAPPERS = ("state_dict", "model")
_LISTED = 2  # tensors of each kind that an error names
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
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

    spec: Architecture
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    training: dict[str, Any]


@dataclass(frozen=True)
class LoadReport:
    """What a weights file held, and how it was read; true where it fits the architecture.

    Attributes:
        file: Its name.
        parameters: Trainable parameters of the architecture.
        wrapper: Key of the dictionary the tensors were found under; empty where it was none.
        prefix: What every name began with, and was taken off.
        renamed: Names of the file that were torchvision's old ones.
        missing: Tensors of the architecture that the file lacks.
        missing_counters: BatchNorm's counters among them, which inference does not use; no fault.
        unexpected: Tensors of the file that the architecture lacks.
        misshapen: Name, shape in the file and shape that was expected.
    """

    file: str
    parameters: int
    wrapper: str = ""
    prefix: str = ""
    renamed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    missing_counters: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __bool__(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def problems(self) -> str:
        """How many tensors do not fit in each way, and the first of each by name."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": [f"{name} ({has}, expected {own})" for name, has, own in self.misshapen],
        }
        return "; ".join(
            f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names
        )

    def summary(self) -> str:
        """One line for people: how a file that fits was read."""
        renamed, counters = len(self.renamed), len(self.missing_counters)
        notes = {
            f"found under {self.wrapper!r}": self.wrapper,
            f"prefix {self.prefix!r} taken off": self.prefix,
            f"{renamed} old names renamed": renamed,
            f"{counters} counters missing, not needed": counters,
        }
        said = [note for note, applies in notes.items() if applies]
        return ", ".join([f"{self.file}: {self.parameters:,} parameters", *said])

    def to_dict(self) -> dict[str, Any]:
        """JSON values; renamed and missing counters by their number."""
        counted = {
            "renamed": len(self.renamed),
            "missing_counters": len(self.missing_counters),
        }
        return asdict(self) | counted


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + " and others" * (len(names) > _LISTED)


@dataclass
class _State:
    """Tensors by today's names, and how they were found."""

    tensors: dict[str, Tensor]
    wrapper: str = ""
    prefix: str = ""
    renamed: list[str] = field(default_factory=list)


def save(path: Path, model: Network, info: CheckpointInfo) -> None:
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


def load_weights(path: Path, model: Network) -> LoadReport:
    """Loads a .safetensors or torch state dict into `model`, in place, and reports how.

    A state dict may lie under `state_dict` or `model` of a training checkpoint, and its names may
    all begin with `module.` or `_orig_mod.`.

    Raises:
        CheckpointError: Damaged file, or tensors that do not fit the architecture.
    """
    read = _safetensors if path.suffix == ".safetensors" else _torch_state
    state = _renamed(path, read(path))
    report = _compare(path, state, model)
    if not report:
        raise CheckpointError(
            f"{path} does not fit this architecture: {report.problems()}",
            remedy="check --model, the input channels and the number of classes",
        )
    model.load_state_dict(state.tensors, strict=False)
    return report


def _compare(path: Path, state: _State, model: Network) -> LoadReport:
    own, found = model.state_dict(), state.tensors
    missing = sorted(own.keys() - found.keys())
    return LoadReport(
        file=path.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        wrapper=state.wrapper,
        prefix=state.prefix,
        renamed=tuple(state.renamed),
        missing=tuple(name for name in missing if not _counter(name)),
        missing_counters=tuple(filter(_counter, missing)),
        unexpected=tuple(sorted(found.keys() - own.keys())),
        misshapen=tuple(
            (name, tuple(found[name].shape), tuple(own[name].shape))
            for name in sorted(own.keys() & found.keys())
            if own[name].shape != found[name].shape
        ),
    )


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


def _safetensors(path: Path) -> _State:
    with _open(path) as tensors:
        return _State({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118


def _torch_state(path: Path) -> _State:
    _require(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged or unsafe files
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(f"{path} is not a loadable torch state dict ({reason})") from None
    if _is_state(state):
        return _State(state)
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and _is_state(state.get(wrapper)):
            return _State(state[wrapper], wrapper)
    raise CheckpointError(
        f"{path} holds no plain state dict",
        expected=f"name to tensor pairs, at the top or under {' or '.join(_WRAPPERS)}",
    )


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    )


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor of numbers that `load_state_dict` can copy."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _renamed(path: Path, state: _State) -> _State:
    """The tensors by today's names.

    Raises:
        CheckpointError: Two names of the file mean the same tensor.
    """
    prefix, tensors = "", {}
    while (begin := _common_prefix(state.tensors, prefix)) is not None:
        prefix += begin
    renamed = []
    for name, tensor in state.tensors.items():
        plain = name.removeprefix(prefix)
        modern = _LEGACY_NAME.sub(r"\1\2", plain)
        if modern != plain:
            renamed.append(name)
        if modern in tensors:
            raise CheckpointError(f"{path} holds {modern} twice", expected="one name per tensor")
        tensors[modern] = tensor
    return _State(tensors, state.wrapper, prefix, renamed)


def _common_prefix(names: Iterable[str], before: str) -> str | None:
    """Of the known prefixes the one that follows `before` in all names."""
    names = list(names)
    for prefix in _PREFIXES:
        if names and all(name.startswith(before + prefix) for name in names):
            return prefix
    return None
