"""Published weights by name, with the preprocessing they were published with.

`torchvision:IMAGENET1K_V1` is a tag of torchvision's weights of the model, and
`torchvision:DenseNet121_Weights.IMAGENET1K_V1` says the model too; `timm:densenet121.ra_in1k` is a
name of timm's. What a name means is asked of those packages; files are kept in the user's cache.
"""

from __future__ import annotations

import math
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from densenet_deploy.errors import CheckpointError, MissingDependencyError
from densenet_deploy.files import replacing_file, sha256
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.progress import Track, silent

SOURCES = ("torchvision", "timm")
_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without an answer
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # torchvision's and torch.hub's custom


@dataclass(frozen=True)
class PublicWeights:
    """A published file of weights.

    Attributes:
        name: Its full name.
        model: Architecture, by the name that torchvision and timm share.
        file: Its name in the cache.
        url: Where it is fetched.
        sha256: How its SHA-256 begins; empty where only the server says it.
        preprocessing: Of its images.
        labels: Class names; empty where unknown.
    """

    name: str
    model: str
    file: str
    url: str
    sha256: str
    preprocessing: Preprocessing
    labels: tuple[str, ...]


def is_public(name: str) -> bool:
    """Whether `name` is one of published weights rather than a file's."""
    return name.partition(":")[0] in SOURCES and ":" in name


def architecture(name: str) -> str:
    """The model that a name of published weights says; empty where it says none."""
    source, _, rest = name.partition(":")
    if source == "timm":
        return rest.partition(".")[0]
    return rest.partition("_Weights.")[0].lower() if "_Weights." in rest else ""


def describe(name: str, model: str = "") -> PublicWeights:
    """What a name means.

    Args:
        name: Such as `torchvision:IMAGENET1K_V1` or `timm:densenet121.ra_in1k`.
        model: The architecture, where the name does not say it.

    Raises:
        CheckpointError: There are no such weights, or they are another model's.
        MissingDependencyError: timm is not installed.
    """
    said = architecture(name)
    if said and model and said != model:
        raise CheckpointError(f"{name} are weights of {said}", expected=f"those of {model}")
    if not (said or model):
        raise CheckpointError(
            f"{name} does not say which architecture it belongs to",
            remedy="name it with --model, or model.variant in the recipe",
        )
    source, _, rest = name.partition(":")
    return (_torchvision if source == "torchvision" else _timm)(rest, said or model)


def fetch(weights: PublicWeights, folder: Path | None = None, track: Track = silent) -> Path:
    """The file of published weights in `folder`, downloaded if it is not there.

    Args:
        weights: See `describe`.
        folder: By default `weights` in the user's cache folder of this package.
        track: Progress reporter.

    Raises:
        CheckpointError: It cannot be fetched, or is not the file that was published.
    """
    path = (folder or cache_folder()) / weights.file
    if path.is_file():
        expected = weights.sha256 or _recorded(path)
        _check(path, expected, f"{path}", "delete it, to fetch it again")
        return path
    try:
        url, digest = _located(weights)
        with replacing_file(path) as temporary:
            _download(url, temporary, f"Fetching {weights.file} (MiB)", track)
            _check(temporary, digest, f"what {url} sent", f"put the published file at {path}")
            if not weights.sha256:
                with replacing_file(_record(path)) as beside:
                    beside.write_text(f"{digest}\n", encoding="ascii")
    except (OSError, ValueError) as error:  # urllib's are among them
        reason = str(getattr(error, "reason", "") or error).splitlines()[:1]
        raise CheckpointError(
            f"{weights.name} could not be fetched from {weights.url} ({''.join(reason)[:160]})",
            remedy=f"connect to a network, or put the file at {path}",
        ) from None
    return path


def cache_folder() -> Path:
    """Where fetched files are kept."""
    return platformdirs.user_cache_path("densenet-deploy", appauthor=False) / "weights"


def _torchvision(name: str, model: str) -> PublicWeights:
    from torchvision import models

    tag = name.rpartition(".")[2]
    try:
        published = models.get_model_weights(model)
    except ValueError:
        raise CheckpointError(f"torchvision has no weights of {model}") from None
    if tag not in published.__members__:
        known = ", ".join(published.__members__)
        raise CheckpointError(
            f"torchvision has no weights {tag!r} of {model}", expected=f"one of: {known}"
        )
    entry = published[tag]
    how, url = entry.transforms(), entry.url
    file = url.rpartition("/")[2]
    found = _HASH_IN_NAME.search(file)
    (crop,), (resize,) = how.crop_size, how.resize_size
    return PublicWeights(
        name=f"torchvision:{entry}",
        model=model,
        file=file,
        url=url,
        sha256=found.group(1) if found else "",
        preprocessing=_preprocessing(
            f"torchvision:{entry}", crop, resize, how.mean, how.std, how.interpolation.value
        ),
        labels=tuple(entry.meta["categories"]),
    )


def _timm(name: str, model: str) -> PublicWeights:
    try:
        from timm.models import get_pretrained_cfg, list_pretrained
    except ImportError:
        raise MissingDependencyError.of("timm", "timm", f"timm:{name}") from None
    try:
        config = get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        config = None
    if config is None or not config.hf_hub_id:
        known = ", ".join(list_pretrained(f"{model}.*")) or "none of this model"
        raise CheckpointError(
            f"timm has no weights {name!r}", expected=f"one of its published ones: {known}"
        )
    name = f"{config.architecture}.{config.tag}"
    channels, *size = config.input_size
    if channels != 3 or size[0] != size[1] or config.crop_mode != "center":
        raise CheckpointError(
            f"timm:{name} takes {config.input_size}, {config.crop_mode}",
            expected="the centre of a square RGB image",
        )
    return PublicWeights(
        name=f"timm:{name}",
        model=config.architecture,
        file=f"timm-{name}.safetensors",
        url=_hub_url(config.hf_hub_id, config.hf_hub_filename),
        sha256="",
        preprocessing=_preprocessing(
            f"timm:{name}",
            size[0],
            math.floor(size[0] / config.crop_pct),
            config.mean,
            config.std,
            config.interpolation,
        ),
        labels=_imagenet_labels() if config.tag.endswith("in1k") else (),
    )


def _preprocessing(
    name: str, crop: int, resize: int, mean: Any, std: Any, interpolation: Any
) -> Preprocessing:
    try:
        return Preprocessing(crop, crop, tuple(mean), tuple(std), resize, interpolation)
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be preprocessed here: {error}") from None


def _imagenet_labels() -> tuple[str, ...]:
    """ImageNet's classes in their usual order, which is timm's and torchvision's."""
    from torchvision.models import DenseNet121_Weights

    return tuple(DenseNet121_Weights.IMAGENET1K_V1.meta["categories"])


def _hub_url(repository: str, file: str | None) -> str:
    from huggingface_hub import hf_hub_url

    url: str = hf_hub_url(repository, file or "model.safetensors")
    return url


def _located(weights: PublicWeights) -> tuple[str, str]:
    """Where a file is, and how its SHA-256 begins; Hugging Face's server says it of large files."""
    if weights.sha256:
        return weights.url, weights.sha256
    from huggingface_hub import get_hf_file_metadata

    try:
        found = get_hf_file_metadata(weights.url, timeout=_TIMEOUT)
    except Exception as error:  # of whichever HTTP client its version is built on
        raise OSError(str(error) or type(error).__name__) from None
    if not re.fullmatch(r"[0-9a-f]{64}", found.etag or ""):
        raise OSError("the server does not say the file's SHA-256")
    return found.location, found.etag or ""


def _record(path: Path) -> Path:
    """Where the SHA-256 is kept that only the server says."""
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str:
    """What was kept; empty of a file that was put there by hand."""
    record = _record(path)
    return record.read_text(encoding="ascii", errors="replace").strip() if record.is_file() else ""


def _download(url: str, path: Path, description: str, track: Track) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "densenet-deploy"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, path.open("wb") as file:
        length = int(answer.headers.get("Content-Length") or 0)

        def chunks() -> Iterator[bytes]:
            while chunk := answer.read(_CHUNK):
                yield chunk

        for chunk in track(chunks(), description, -(-length // _CHUNK) or None):
            file.write(chunk)
        if length and file.tell() != length:
            raise OSError(f"{file.tell()} of {length} bytes arrived")


def _check(path: Path, expected: str, subject: str, remedy: str) -> None:
    found = sha256(path)
    if not found.startswith(expected):
        raise CheckpointError(
            f"{subject} has SHA-256 {found}",
            expected=f"one that begins with {expected}",
            remedy=remedy,
        )
