"""A timing cache file: kernel times TensorRT measured, for later builds on the same GPU."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from densenet_deploy.files import replacing_file

TimingOutcome = Literal["hit", "extended", "missed"]


class TimingCache:
    """Lends the times in a file to one build and keeps what that build measured.

    Several processes may share the file: nothing of it is ever half written, and what another
    process added during the build stays in it.

    Attributes:
        outcome: `hit`: the file had every time the build needed; `extended`: it had some; `missed`:
            it had none, or was of another GPU or version. Known after `save`.
    """

    def __init__(self, path: Path) -> None:
        self.outcome: TimingOutcome = "missed"
        self._path = path
        self._loaded = b""
        self._size = 0

    def load(self, settings: Any) -> None:
        """Gives the IBuilderConfig the file's times; none where TensorRT finds they do not fit."""
        self._loaded = self._read()
        cache = settings.create_timing_cache(self._loaded) if self._loaded else None
        if cache is not None and settings.set_timing_cache(cache, ignore_mismatch=False):
            self._size = len(_serialized(cache))
        else:
            settings.set_timing_cache(settings.create_timing_cache(b""), ignore_mismatch=False)

    def save(self, settings: Any) -> None:
        """Writes what the build measured; a cache only grows, so its size tells if it did.

        No engine is lost over a file that cannot be written: the next build measures again.
        """
        cache = settings.get_timing_cache()
        if self._size and len(_serialized(cache)) == self._size:
            self.outcome = "hit"
            return
        self.outcome = "extended" if self._size else "missed"
        if (meanwhile := self._read()) != self._loaded:
            other = settings.create_timing_cache(meanwhile)
            if other is not None:
                cache.combine(other, ignore_mismatch=False)
        with suppress(OSError), replacing_file(self._path) as temporary:
            temporary.write_bytes(_serialized(cache))

    def _read(self) -> bytes:
        return self._path.read_bytes() if self._path.is_file() else b""


def _serialized(cache: Any) -> bytes:
    return bytes(cache.serialize())
