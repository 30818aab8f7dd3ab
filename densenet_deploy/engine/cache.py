"""The build cache: an engine is found again by everything it was made of.

An entry is a folder named after the SHA-256 of its identity: graph and weight files, the whole
configuration, builder version, target and this package. It holds the engine, the build log and a
record of both with their hashes, and is verified on every read, so that a stale or damaged engine
is never used. Entries appear by one rename; processes that build the same agree on the first.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from densenet_deploy import __version__, schema
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import DeployError
from densenet_deploy.files import FileRecord, sha256

FORMAT = 1
PLAN, LOG, RECORD = "engine.plan", "build.log.gz", "record.json"
_ENGINES, _TIMING = "engines", "timing"
# What measuring and running on a GPU keeps beside the engines; all of it is made again at need
_KEPT = (_TIMING, "runtime", "onnxruntime-tensorrt")
_UNFINISHED_SECONDS = 3600.0
# How protobuf writes the entry "location" of a tensor whose data is in a file, up to the file name
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f]|[\x80-\xff][\x00-\x7f])")


@dataclass(frozen=True)
class Record:
    """What an entry holds.

    Attributes:
        identity: See `identify`.
        name: File name of the ONNX graph, for people.
        compute_capabilities: Those the engine was compiled for.
        created: Seconds since 1970.
        files: The engine and its log.
    """

    identity: dict[str, Any]
    name: str
    compute_capabilities: tuple[str, ...]
    created: float
    files: dict[str, FileRecord]

    @property
    def config(self) -> dict[str, Any]:
        """The build configuration, as in a recipe."""
        return dict(self.identity["config"])


@dataclass(frozen=True)
class Entry:
    """An engine in the cache."""

    path: Path
    record: Record

    @property
    def key(self) -> str:
        """SHA-256 of its identity."""
        return self.path.name

    @property
    def size(self) -> int:
        """Bytes on disk, without the record."""
        return sum(file.bytes for file in self.record.files.values())

    @property
    def age(self) -> float:
        """Seconds since it was built."""
        return max(time.time() - self.record.created, 0.0)

    def log(self) -> str | None:
        """The build log; None where it is damaged."""
        content = self.read(LOG)
        return None if content is None else gzip.decompress(content).decode("utf-8", "replace")

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where they are not those that were written."""
        expected = self.record.files.get(name)
        try:
            content = (self.path / name).read_bytes()
        except OSError:
            return None
        return content if expected == _file_record(content) else None


def default_cache() -> Path:
    """The user's cache folder of this package, by the platform's custom."""
    return platformdirs.user_cache_path("densenet-deploy", appauthor=False)


def identify(
    model: bytes | Path, config: BuildConfig, version: str, target: dict[str, str]
) -> dict[str, Any]:
    """Everything an engine depends on, as JSON values.

    Args:
        model: A serialized ONNX model, or the path of one (whose weights may lie beside it).
        config: How it is compiled; for TensorRT-RTX also for which GPUs.
        version: Of the builder.
        target: The GPU of this machine with its driver, where the builder compiles for that.
    """
    content = model if isinstance(model, bytes) else model.read_bytes()
    return {
        "format": FORMAT,
        "package": __version__,
        "graph": hashlib.sha256(content).hexdigest(),
        "weights": _weight_files(content, None if isinstance(model, bytes) else model.parent),
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "version": version,
        "target": target,
    }


def key_of(identity: dict[str, Any]) -> str:
    """Name of the entry of an identity."""
    return hashlib.sha256(_canonical(identity)).hexdigest()


def _weight_files(content: bytes, folder: Path | None) -> dict[str, str]:
    """SHA-256 of every file that a graph keeps weights in; empty for one that is not there."""
    found = {}
    for match in _LOCATION.finditer(content):
        low, *high = match[1]
        length = (low & 0x7F) | (high[0] << 7 if high else 0)
        name = content[match.end() : match.end() + length].decode("utf-8", "replace")
        found[name] = _hash_of(folder / name) if folder else ""
    return found


def _hash_of(path: Path) -> str:
    try:
        return sha256(path)
    except (OSError, ValueError):  # nothing there, or bytes that were no file name after all
        return ""


def find(cache: Path, identity: dict[str, Any]) -> tuple[Entry, bytes, str] | None:
    """The entry of an identity, its engine and build log; one that is damaged is removed."""
    folder = cache / _ENGINES / key_of(identity)
    if not folder.is_dir():
        return None
    entry = _open(folder)
    if entry is not None:
        plan, log = entry.read(PLAN), entry.log()
        if plan is not None and log is not None:
            return entry, plan, log
    shutil.rmtree(folder, ignore_errors=True)
    return None


def store(
    cache: Path,
    identity: dict[str, Any],
    name: str,
    plan: bytes,
    log: bytes,
    compute_capabilities: tuple[str, ...],
) -> None:
    """Keeps an engine and its build log; does nothing where another process was first."""
    folder = prepare(cache) / key_of(identity)
    contents = {PLAN: plan, LOG: gzip.compress(log, mtime=0)}
    files = {file: _file_record(content) for file, content in contents.items()}
    record = Record(identity, name, compute_capabilities, time.time(), files)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        for file, content in contents.items():
            (temporary / file).write_bytes(content)
        table = dataclasses.asdict(record)
        table["check"] = _check(table)
        (temporary / RECORD).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prepare(cache: Path) -> Path:
    """Folder of the entries, made if need be.

    Raises:
        DeployError: It cannot be.
    """
    folder = cache / _ENGINES
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeployError(
            f"the cache folder {folder} cannot be made ({error.strerror})",
            remedy="do without the cache (--no-cache), or set XDG_CACHE_HOME to another place",
        ) from None
    return folder


def log_of(plan: bytes, cache: Path) -> str | None:
    """The build log of an engine that this cache holds; None for one it does not."""
    wanted = _file_record(plan)
    for entry in entries(cache):
        if entry.record.files.get(PLAN) == wanted and (log := entry.log()) is not None:
            return log
    return None


def timing_file(cache: Path, version: str, target: dict[str, str]) -> Path:
    """Where TensorRT's kernel times on a GPU are kept."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", " ".join([version, *target.values()]))
    return cache / _TIMING / f"{name}.cache"


def entries(cache: Path) -> list[Entry]:
    """What the cache holds, the newest first; not yet verified but for the records."""
    found = [_open(folder) for folder in _folders(cache) if not folder.name.startswith(".")]
    return sorted(filter(None, found), key=lambda entry: entry.age)


def kept_files(cache: Path) -> list[Path]:
    """Timing caches and what runs on a GPU kept: kernels, and ONNX Runtime's own engines."""
    found = [path for name in _KEPT for path in sorted((cache / name).rglob("*"))]
    return [path for path in found if path.is_file()]


@dataclass(frozen=True)
class Cleared:
    """How many engines and other files `clear` removed, and the bytes of both."""

    engines: int
    files: int
    bytes: int


def clear(cache: Path, older_than_days: float = 0.0) -> Cleared:
    """Removes what was written before so many days; by default everything."""
    limit = time.time() - older_than_days * 86400
    engines = files = freed = 0
    for folder in _folders(cache):
        unfinished = folder.name.startswith(".")
        if folder.stat().st_mtime > limit - unfinished * _UNFINISHED_SECONDS:
            continue
        freed += sum(path.stat().st_size for path in folder.iterdir())
        shutil.rmtree(folder)
        engines += not unfinished
    for file in kept_files(cache):
        status = file.stat()
        if status.st_mtime <= limit:
            file.unlink()
            freed, files = freed + status.st_size, files + 1
    return Cleared(engines, files, freed)


def _folders(cache: Path) -> Iterator[Path]:
    folder = cache / _ENGINES
    return (path for path in (folder.iterdir() if folder.is_dir() else ()) if path.is_dir())


def _open(folder: Path) -> Entry | None:
    """An entry whose record is whole and belongs to its name."""
    try:
        table = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        whole = table.pop("check") == _check(table)
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return None
    record = schema.read(Record, table, "", []) if whole else None
    if record is None or key_of(record.identity) != folder.name:
        return None
    return Entry(folder, record)


def _file_record(content: bytes) -> FileRecord:
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def _check(table: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(table)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
