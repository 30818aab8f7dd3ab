"""ONNX Runtime with fixed device buffers, bound once for each batch size: CUDA graphs need that.

A captured graph reads and writes the addresses it was captured with, hence two rules: buffers live
as long as their graph may run, and a graph's number is never given to other buffers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import onnxruntime as ort

from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.runner import Array

# ONNX Runtime frees captured graphs with their session alone: what is captured is bounded too.
_MOST_GRAPHS = 64
_NO_GRAPH = -1  # ONNX Runtime's number for a run that neither captures nor replays


class BoundSession:
    """An `Infer` over sessions whose inputs and outputs stay on the device; for one thread.

    Args:
        session_for: Gives the session that runs a batch size.
        device: ONNX Runtime's name for where the buffers are: `cuda`, or `cpu`.
        index: Of the device.
        kept: Batch sizes whose buffers stay; the one unused for longest makes room.
    """

    def __init__(
        self,
        session_for: Callable[[int], ort.InferenceSession],
        device: str,
        index: int = 0,
        kept: int = 16,
    ) -> None:
        self._session_for, self._device, self._index = session_for, device, index
        self._graphs = itertools.count(1)  # 0 is ONNX Runtime's own
        self._bound = lru_cache(kept)(self._bind)

    def __call__(self, images: Array) -> Array:
        return self._bound(len(images)).run(images)

    def close(self) -> None:
        """Frees the buffers, and the sessions that nobody else holds."""
        self._bound.cache_clear()
        self._session_for = _closed

    def _bind(self, batch: int) -> Bound:
        number = next(self._graphs)
        graph = number if number <= _MOST_GRAPHS else _NO_GRAPH
        return Bound(self._session_for(batch), batch, self._device, self._index, graph)


class Bound:
    """Buffers of one batch size, bound to a session.

    Args:
        session: With one input (N, C, H, W) and one output (N, classes), both float32.
        batch: N.
        device: Where the buffers are.
        index: Of the device.
        graph: Number of the CUDA graph, where the session captures any.

    Raises:
        BackendError: The graph leaves more open than the batch size.
    """

    def __init__(
        self, session: ort.InferenceSession, batch: int, device: str, index: int, graph: int
    ) -> None:
        source, target = session.get_inputs()[0], session.get_outputs()[0]
        self._shape = (batch, *_fixed(source))
        self._session = session
        self._input = _buffer(self._shape, device, index)
        self._output = _buffer((batch, *_fixed(target)), device, index)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(source.name, self._input)
        self._binding.bind_ortvalue_output(target.name, self._output)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph))

    def run(self, images: Array) -> Array:
        """Copies the images in, runs, waits, and copies the logits out into an array of its own."""
        if images.shape != self._shape or images.dtype != np.float32:  # ONNX Runtime copies bytes
            raise BackendError(
                f"images are {images.dtype} {images.shape}", expected=f"float32 {self._shape}"
            )
        self._input.update_inplace(images)
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        logits: Array = self._binding.copy_outputs_to_cpu()[0]
        return logits


def _fixed(tensor: ort.NodeArg) -> tuple[int, ...]:
    """Its dimensions after the batch."""
    dimensions = tuple(tensor.shape[1:])
    if not all(isinstance(size, int) for size in dimensions):
        raise BackendError(
            f"{tensor.name} has shape {tensor.shape}", expected="only its first dimension open"
        )
    return dimensions


def _buffer(shape: tuple[int, ...], device: str, index: int) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, index)


def _closed(batch: int) -> ort.InferenceSession:
    raise BackendError("this session is closed")
