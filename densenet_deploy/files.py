"""Files: written without losing earlier work (a temporary sibling, then one rename), and hashed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from densenet_deploy.errors import DeployError


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write; it becomes `path` only if the block succeeds.

    The bytes are on disk before the rename, so a kill at any moment leaves the old file or the
    new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        with _named(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a temporary sibling directory; it becomes `path` only if the block succeeds.

    Args:
        path: The directory to create or replace.
        is_ours: Says whether an existing directory may be replaced, so that a mistyped output path
            never wipes somebody's folder.

    Raises:
        DeployError: `path` exists, is not empty and not ours.
    """
    if path.exists() and not (path.is_dir() and (_empty(path) or is_ours(path))):
        raise DeployError(
            f"{path} exists and holds other files",
            expected="a new or empty directory, or an earlier output of this command",
            remedy="choose another output directory",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o777 & ~_umask())
    try:
        yield temporary
        retired = temporary.with_name(temporary.name + ".old")
        if path.exists():
            path.replace(retired)
        try:
            temporary.replace(path)
        except OSError:
            if retired.exists():
                retired.replace(path)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Lets an OSError name the file that was asked for, not its temporary sibling."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _empty(path: Path) -> bool:
    return not any(path.iterdir())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
