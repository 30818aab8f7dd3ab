"""A bundle: a directory that holds a deployable artefact, and the contract between languages.

The manifest names every file with its size and SHA-256. A loader verifies before it trusts: the
schema version, the manifest's own consistency, that no path leaves the bundle, and every hash.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densenet_deploy import schema
from densenet_deploy.engine_config import (
    EngineBackend,
    EngineWeights,
    HardwareCompatibility,
    Profile,
)
from densenet_deploy.errors import BundleError
from densenet_deploy.files import FileRecord, replacing_file, sha256
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.recipe import PRECISIONS, Precision, Target

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TensorRecord:
    """An input or output of the network; a string in the shape is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[Any, ...]


@dataclass(frozen=True)
class EngineRecord:
    """A compiled engine and what it runs on.

    Attributes:
        file: The serialized engine.
        backend: `tensorrt` or `tensorrt-rtx`.
        precision: Of the graph it was compiled from.
        version: Of the builder.
        profiles: (min, opt, max) batch size of each optimization profile, in the engine's order.
        compute_capabilities: Those it was compiled for; for `tensorrt`, that of its GPU.
        hardware_compatibility: See `BuildConfig`.
        version_compatible: See `BuildConfig`.
        weights: See `BuildConfig`.
    """

    file: str
    backend: EngineBackend
    precision: Precision
    version: str
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    weights: EngineWeights = "embedded"


@dataclass(frozen=True)
class Manifest:
    """Everything a program needs to run the bundle.

    Attributes:
        schema_version: Version of this layout.
        name: Name of the recipe.
        description: What it is, for people.
        model: Architecture name.
        speed_only: The weights are not trained: time it, do not trust its answers.
        target: What the graphs were lowered for.
        batch: (min, opt, max) promised batch size.
        input: Normalised images (N, C, H, W).
        output: Logits (N, classes).
        preprocessing: From an image file to the input.
        labels: Class names; empty where unknown.
        models: ONNX file of each precision, for the target.
        lowered: ONNX file of each precision that another backend has a graph of its own for.
        engines: Compiled engines.
        weights: The PyTorch checkpoint the graphs came from.
        golden: Files `input` and `output` (.npy): normalised images and PyTorch's fp32 logits.
        samples: Image files to try it on.
        records: Parity and benchmark results, by kind.
        rewrites: Applications of each exact rewrite.
        calibration: What the INT8 scales were measured on.
        recipe: The recipe's values.
        recipe_digest: Its SHA-256.
        created_by: Version of this package.
        files: Every file of the bundle but the manifest.
    """

    schema_version: int
    name: str
    description: str
    model: str
    speed_only: bool
    target: Target
    batch: tuple[int, int, int]
    input: TensorRecord
    output: TensorRecord
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    models: dict[str, str]
    weights: str
    golden: dict[str, str]
    recipe: dict[str, Any]
    recipe_digest: str
    created_by: str
    lowered: dict[str, dict[str, str]] = field(default_factory=dict)
    engines: tuple[EngineRecord, ...] = ()
    samples: tuple[str, ...] = ()
    records: dict[str, str] = field(default_factory=dict)
    rewrites: dict[str, int] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)

    def referenced(self) -> set[str]:
        """Every file this manifest speaks of."""
        groups = (self.models.values(), self.golden.values(), self.samples, self.records.values())
        names = {name for group in (*groups, *self._lowered()) for name in group}
        return names | {engine.file for engine in self.engines} | {self.weights}

    def _lowered(self) -> Iterable[Iterable[str]]:
        return (files.values() for files in self.lowered.values())


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.path / name

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions it has a graph for, in the order fp32, fp16, int8."""
        return tuple(precision for precision in PRECISIONS if precision in self.manifest.models)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of everything it names."""
        return sha256(self.path / MANIFEST)

    def identity(self) -> dict[str, Any]:
        """What a record names to say which artefact it is about: recipe and graph hashes."""
        manifest = self.manifest
        graphs = {name: manifest.files[file].sha256 for name, file in manifest.models.items()}
        for backend, files in manifest.lowered.items():
            graphs |= {f"{backend}/{name}": manifest.files[f].sha256 for name, f in files.items()}
        return {
            "name": manifest.name,
            "description": manifest.description,
            "recipe_digest": manifest.recipe_digest,
            "graphs_sha256": graphs,
        }

    def model(self, precision: Precision, backend: str = "") -> Path:
        """The ONNX file of a precision: a backend's own, where there is one.

        Raises:
            BundleError: The bundle has none.
        """
        if precision not in self.manifest.models:
            raise BundleError(
                f"{self.path} has no {precision} graph", expected=", ".join(self.precisions)
            )
        own = self.manifest.lowered.get(backend, {})
        return self.file(own.get(precision, self.manifest.models[precision]))

    def golden(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(input, output): normalised images and PyTorch's fp32 logits of them."""
        names = self.manifest.golden
        arrays = [_read_npy(self.file(names[key])) for key in ("input", "output")]
        return arrays[0], arrays[1]

    def sample_pixels(self) -> NDArray[np.uint8]:
        """The sample images, which are stored after geometry: uint8 (N, H, W, C).

        Raises:
            DataError: A sample is not an image.
        """
        plain = dataclasses.replace(self.manifest.preprocessing, resize=0)
        return np.stack([plain.read(self.file(name)) for name in self.manifest.samples])


def write_manifest(directory: Path, manifest: Manifest) -> Bundle:
    """Hashes the files that lie in `directory` and writes its manifest, last.

    Raises:
        BundleError: The manifest speaks of a file that is not there, or contradicts itself.
    """
    missing = sorted(name for name in manifest.referenced() if not (directory / name).is_file())
    if missing:
        raise BundleError(f"{directory} lacks {', '.join(missing)}")
    files = {
        path.relative_to(directory).as_posix(): FileRecord(path.stat().st_size, sha256(path))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }
    complete = dataclasses.replace(manifest, files=files)
    if problems := _inconsistencies(complete):
        raise BundleError.collect(f"the manifest of {manifest.name}", problems)
    with replacing_file(directory / MANIFEST) as temporary:
        table = dataclasses.asdict(complete)
        temporary.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Bundle(directory, complete)


def is_bundle(path: Path) -> bool:
    """Whether a directory holds a manifest of ours, of any version; nothing else is verified."""
    try:
        table = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and {"schema_version", "recipe_digest"} <= table.keys()


def open_bundle(path: Path | str) -> Bundle:
    """Reads and verifies a bundle.

    Raises:
        BundleError: It is missing, of another schema version, inconsistent, or any file differs
            from what the manifest says.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    problems = _inconsistencies(manifest)
    if not problems:
        problems = [
            problem
            for name, record in manifest.files.items()
            if (problem := _file_problem(path, name, record))
        ]
    if problems:
        raise BundleError.collect(f"bundle {path}", problems)
    return Bundle(path, manifest)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}",
            remedy="make one with: densenet-deploy run",
        )
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{file} is {file.stat().st_size} bytes", expected="a manifest")
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON or not UTF-8, huge numbers, deep nests
        raise BundleError(f"{file} is not JSON ({error})") from None
    version = table.get("schema_version") if isinstance(table, Mapping) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version!r}",
            expected=str(SCHEMA_VERSION),
            remedy="make the bundle again with this version of densenet-deploy",
        )
    problems: list[str] = []
    manifest = schema.read(Manifest, table, "", problems)
    if manifest is None:
        raise BundleError.collect(str(file), problems)
    return manifest


def _inconsistencies(manifest: Manifest) -> list[str]:
    problems = [
        f"path {name!r} leaves the bundle" for name in manifest.files if not _is_inside(name)
    ]
    unlisted = sorted(manifest.referenced() - manifest.files.keys())
    problems += [f"{name!r} is used but has no hash" for name in unlisted]
    wrong = sorted(manifest.models.keys() - set(PRECISIONS))
    problems += [f"{name!r} is not a precision" for name in wrong]
    problems += [
        f"{backend} has a graph of its own for {name!r}, which models lacks"
        for backend, files in manifest.lowered.items()
        for name in sorted(files.keys() - manifest.models.keys())
    ]
    problems += [
        f"golden {key} is missing" for key in ("input", "output") if key not in manifest.golden
    ]
    sizes = [("batch", manifest.batch)]
    for engine in manifest.engines:
        sizes += [(f"profile of {engine.file}", profile) for profile in engine.profiles]
        if not engine.profiles:
            problems.append(f"{engine.file} has no profile")
    problems += [
        f"{name} {low},{best},{high} does not satisfy 1 <= min <= opt <= max"
        for name, (low, best, high) in sizes
        if not 1 <= low <= best <= high
    ]
    if manifest.input.shape[1:] != manifest.preprocessing.input_shape:
        problems.append(
            f"input shape {manifest.input.shape[1:]} is not what preprocessing makes, "
            f"{manifest.preprocessing.input_shape}"
        )
    labels, outputs = len(manifest.labels), manifest.output.shape[1:]
    if labels and outputs != (labels,):
        problems.append(f"{labels} labels do not name outputs of shape {outputs}")
    return problems


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = "\\" not in name and ":" not in name and "\0" not in name
    return plain and not path.is_absolute() and ".." not in path.parts and path.parts != ()


def _file_problem(root: Path, name: str, record: FileRecord) -> str:
    path = root / name
    try:
        if not path.is_file():
            return f"{name} is missing"
        if not path.resolve().is_relative_to(root.resolve()):
            return f"{name} links outside the bundle"
        size = path.stat().st_size
        if size != record.bytes:
            return f"{name} has {size} bytes, the manifest says {record.bytes}"
        if sha256(path) != record.sha256:
            return f"{name} does not have the SHA-256 the manifest says"
    except OSError as error:
        return f"{name[:80]} cannot be read ({error.strerror})"
    return ""


def _read_npy(path: Path) -> NDArray[np.float32]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} is not a readable .npy file ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise BundleError(f"{path} holds no float32 array")
    return array
