"""TensorRT-RTX's runtime cache on disk: kernels it compiled on a device, for the next process.

TensorRT-RTX itself refuses what another version, GPU or driver left; the file's name keeps such
caches apart, so that changing machines does not throw one away.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

from densenet_deploy.engine.cache import default_cache
from densenet_deploy.errors import BackendError
from densenet_deploy.files import replacing_file


def cache_file(plan: bytes, *made_by: str) -> Path:
    """Where the cache of an engine lies.

    Args:
        plan: The serialized engine.
        made_by: Version of the library, compute capability and driver.
    """
    identity = hashlib.sha256(plan)
    for part in made_by:
        identity.update(b"\0" + part.encode())
    return default_cache() / "runtime" / identity.hexdigest()


class RuntimeCache:
    """The cache of one engine, read from a file and written back.

    Attributes:
        hit: Whether the file held kernels that TensorRT-RTX could use.

    Args:
        settings: An IRuntimeConfig, which uses it from now on.
        file: Its content need not exist yet.

    Raises:
        BackendError: TensorRT-RTX refuses the cache.
    """

    def __init__(self, settings: Any, file: Path) -> None:
        self._cache, self._file = settings.create_runtime_cache(), file
        self._known = file.read_bytes() if file.is_file() else b""
        self.hit = bool(self._known) and bool(self._cache.deserialize(self._known))
        if not settings.set_runtime_cache(self._cache):
            raise BackendError("TensorRT-RTX refused its runtime cache")

    def save(self) -> None:
        """Writes what was added. A cache is no reason to fail: where it cannot be, this warns."""
        content = bytes(self._cache.serialize() or b"")
        if content in (b"", self._known):
            return
        try:
            with replacing_file(self._file) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            warnings.warn(f"the runtime cache {self._file} is not kept: {error}", stacklevel=2)
