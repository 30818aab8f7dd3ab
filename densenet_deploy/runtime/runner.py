"""The protocol every backend follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.bundle import Bundle, Manifest
from densenet_deploy.engine_config import Profile
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision

Array = NDArray[np.float32]
Infer = Callable[[Array], Any]


class Runner:
    """One graph, loaded on one backend; a context manager that frees it.

    Several threads may call it at once.

    Attributes:
        profiles: (min, opt, max) batch sizes it is made for.
        cuda_graph: Whether it replays CUDA graphs.

    Args:
        bundle: Where the graph comes from; its manifest says what inputs are valid.
        backend: Name of the backend.
        precision: Of the graph.
        infer: Maps a valid input array to the output array.
        release: Frees what the backend holds.
        profiles: Where the backend has its own; the bundle's batch sizes otherwise.
        cuda_graph: See the attribute.
        splits: Whether `infer` takes a batch of any size.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        precision: Precision,
        infer: Infer,
        release: Callable[[], None] = lambda: None,
        *,
        profiles: tuple[Profile, ...] = (),
        cuda_graph: bool = False,
        splits: bool = False,
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.backend, self.precision = backend, precision
        self.profiles = profiles or (self.manifest.batch,)
        self.cuda_graph = cuda_graph
        self._splits = splits
        self._infer: Infer | None = infer
        self._release = release

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch.

        Args:
            feeds: The input by name: float32 (N, C, H, W), N within the bundle's bounds or, on a
                backend that splits and pads, any number.

        Returns:
            The output by name: float32 (N, classes).

        Raises:
            BackendError: Wrong name, dtype, shape or batch size; the backend failed; or the runner
                is closed.
        """
        infer = self._opened()
        images = self._checked(feeds)
        with self._naming_failures():
            output = infer(images)
        return {self.manifest.output.name: np.asarray(output, np.float32)}

    def _opened(self) -> Infer:
        infer = self._infer
        if infer is None:
            raise BackendError(f"this {self.backend} runner is closed")
        return infer

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the backends' exceptions share no public base
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            raise BackendError(f"{self.backend} failed on {self.precision}: {reason}") from error

    def _checked(self, feeds: Mapping[str, Array]) -> Array:
        expected = self.manifest.input
        if set(feeds) != {expected.name}:
            raise BackendError(
                f"inputs {', '.join(map(repr, feeds)) or 'none'}", expected=f"{expected.name!r}"
            )
        array = feeds[expected.name]
        low, _, high = self.manifest.batch
        shape = tuple(expected.shape[1:])
        if array.dtype != np.float32 or array.ndim != len(shape) + 1 or array.shape[1:] != shape:
            raise BackendError(
                f"input {expected.name!r} is {array.dtype} {array.shape}",
                expected=f"float32 (N, {', '.join(map(str, shape))})",
            )
        if self._splits and not len(array):
            raise BackendError("batch size 0", expected="1 or more")
        if not self._splits and not low <= len(array) <= high:
            raise BackendError(
                f"batch size {len(array)}",
                expected=f"{low} to {high}",
                remedy="split the batch, or export again with other --batch bounds",
            )
        return np.ascontiguousarray(array)

    def logits(self, images: Array) -> Array:
        """Shorthand for one input and one output: (N, C, H, W) to (N, classes)."""
        return self.run({self.manifest.input.name: images})[self.manifest.output.name]

    def close(self) -> None:
        """Frees the backend's resources; safe to call twice."""
        if self._infer is not None:
            self._infer = None
            self._release()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
