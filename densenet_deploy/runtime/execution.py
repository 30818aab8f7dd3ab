"""One request at a time on one stream: buffers, execution contexts and CUDA graphs of an engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from densenet_deploy import _cuda
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.batches import Piece
from densenet_deploy.runtime.engine_io import EngineIO
from densenet_deploy.runtime.runner import Array

ALIGNMENT = 256  # bytes; TensorRT requires it of the address of every tensor
GRAPHS = 32  # batch sizes an executor keeps captured; a server with buckets has far fewer


@dataclass(frozen=True)
class LoadedEngine:
    """A deserialized engine.

    Attributes:
        io: Its inputs and outputs.
        logger: See `_tensorrt.collecting_logger`.
        new_context: Makes an IExecutionContext that computes in the memory at this address.
        activation_bytes: Size of that memory; 0 where a context brings its own.
        capture: Whether to capture CUDA graphs, rather than leave that to the engine or nobody.
        owners: What has to live as long as this.
        creating: Held while a context is made: TensorRT does not promise that threads may at once.
    """

    io: EngineIO
    logger: Any
    new_context: Callable[[int], Any]
    activation_bytes: int
    capture: bool
    owners: tuple[Any, ...]
    creating: Lock = field(default_factory=Lock)


@dataclass(frozen=True)
class Buffers:
    """Memory for the largest batch of one profile: page-locked on the host, and on the device."""

    images: _cuda.PinnedBuffer
    logits: _cuda.PinnedBuffer
    device_images: _cuda.DeviceBuffer
    device_logits: _cuda.DeviceBuffer


class ExecutionContext:
    """TensorRT's execution context with every answer checked.

    Args:
        loaded: The engine.
        memory: Address of the memory it may compute in.
        stream: All its work goes there.
    """

    def __init__(self, loaded: LoadedEngine, memory: int, stream: _cuda.Stream) -> None:
        self._loaded, self._stream = loaded, stream
        self._errors: list[str] = loaded.logger.errors
        told = len(self._errors)
        with loaded.creating:
            self._context = loaded.new_context(memory)
        if self._context is None:
            raise _refused("create_execution_context", self._errors[told:])
        self._profile = -1
        self._batch = 0

    def prepare(self, profile: int, batch: int, images: int, logits: int) -> None:
        """Sets what `enqueue` computes.

        Args:
            profile: Index of the optimization profile.
            batch: Rows, within that profile.
            images: Device address it reads.
            logits: Device address it writes.

        Raises:
            BackendError: TensorRT refuses any of it.
        """
        io = self._loaded.io
        if profile != self._profile:
            self._profile, self._batch = -1, 0  # unknown until TensorRT has accepted it
            self._do("set_optimization_profile_async", profile, self._stream.handle)
            self._profile = profile
        if batch != self._batch:
            self._batch = 0
            self._do("set_input_shape", io.input, (batch, *io.image))
            told = len(self._errors)
            if missing := self._context.infer_shapes():
                raise _refused("infer_shapes", self._errors[told:], f"needs {', '.join(missing)}")
            shape = tuple(self._context.get_tensor_shape(io.output))
            if shape != (batch, *io.logit):
                raise BackendError(f"output of shape {shape}", expected=str((batch, *io.logit)))
            self._batch = batch
        self._do("set_tensor_address", io.input, images)
        self._do("set_tensor_address", io.output, logits)

    def enqueue(self) -> None:
        """Gives the computation to the stream."""
        self._do("execute_async_v3", self._stream.handle)

    def _do(self, call: str, *arguments: Any) -> None:
        told = len(self._errors)  # what was complained about before is not the reason
        if not getattr(self._context, call)(*arguments):
            raise _refused(call, self._errors[told:], ", ".join(map(str, arguments)))


class Executor:
    """Runs pieces of batches, one after the other.

    A captured graph is only valid while its execution context keeps the shape it was captured with,
    so each gets a context of its own (NVIDIA's advice). They share one block of activation memory,
    which they may because they share the stream, too.

    Args:
        loaded: The engine, on the current device.
    """

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded = loaded
        self._plain: ExecutionContext | None = None
        self._captured: OrderedDict[tuple[int, int], tuple[_cuda.Graph, ExecutionContext]] = (
            OrderedDict()
        )
        with ExitStack() as made:
            self._stream = made.enter_context(_cuda.Stream())
            self._ready = made.enter_context(_cuda.Event())
            self._done = made.enter_context(_cuda.Event())
            self._memory = made.enter_context(_cuda.DeviceBuffer(loaded.activation_bytes))
            self._buffers = [_allocate(made, loaded.io, high) for *_, high in loaded.io.profiles]
            made.callback(self._forget_contexts)
            if not loaded.capture:
                self._plain_context()  # TensorRT-RTX compiles here; better now than on a request
            self._resources = made.pop_all()

    def run(self, images: Array, piece: Piece) -> Array:
        """Computes one piece of a batch.

        Args:
            images: The piece's rows.
            piece: Where they run; what it asks for beyond the rows is filled with the last one.

        Returns:
            The rows' logits, in memory of their own.

        Raises:
            BackendError: CUDA or TensorRT failed.
        """
        buffers = self._buffers[piece.profile]
        given, computed = buffers.images.array[: piece.batch], buffers.logits.array[: piece.batch]
        given[: piece.rows], given[piece.rows :] = images, images[-1]
        try:
            _cuda.copy_to_device(buffers.device_images.handle, given, self._stream)
            self._compute(piece, buffers)
            _cuda.copy_to_host(computed, buffers.device_logits.handle, self._stream)
        finally:
            self._stream.synchronize()  # after an error, too: copies must not meet the next request
        return computed[: piece.rows].copy()

    def run_device(self, images: int, logits: int, piece: Piece, streams: Iterable[int]) -> None:
        """Enqueues one piece of a batch that is on the device, without waiting for it.

        What is not aligned as TensorRT requires goes through buffers of this executor.

        Args:
            images: Address of the piece's rows.
            logits: Address for its logits.
            piece: As many rows as it computes.
            streams: Handles of streams whose earlier work must be done first, and whose later work
                waits for the logits.
        """
        try:
            for stream in streams:
                self._ready.record(stream)
                _cuda.wait_for(self._stream.handle, self._ready)
            self._enqueue_aligned(images, logits, piece)
            self._done.record(self._stream.handle)
            for stream in streams:
                _cuda.wait_for(stream, self._done)
        except BaseException:
            self._stream.synchronize()  # the caller may free its arrays now
            raise

    def close(self) -> None:
        """Waits for its work and frees everything; an error comes after all has been tried."""
        with self._resources:
            self._stream.synchronize()

    def _enqueue_aligned(self, images: int, logits: int, piece: Piece) -> None:
        buffers = self._buffers[piece.profile]
        source = buffers.device_images.handle if images % ALIGNMENT else images
        target = buffers.device_logits.handle if logits % ALIGNMENT else logits
        if source != images:
            size = buffers.images.array[: piece.batch].nbytes
            _cuda.copy_on_device(source, images, size, self._stream)
        context = self._plain_context()
        context.prepare(piece.profile, piece.batch, source, target)
        context.enqueue()
        if target != logits:
            size = buffers.logits.array[: piece.batch].nbytes
            _cuda.copy_on_device(logits, target, size, self._stream)

    def _compute(self, piece: Piece, buffers: Buffers) -> None:
        addresses = (buffers.device_images.handle, buffers.device_logits.handle)
        if self._loaded.capture:
            self._graph(piece, addresses).launch(self._stream)
            return
        context = self._plain_context()
        context.prepare(piece.profile, piece.batch, *addresses)
        context.enqueue()

    def _graph(self, piece: Piece, addresses: tuple[int, int]) -> _cuda.Graph:
        """The graph of this profile and batch, captured when first needed."""
        key = (piece.profile, piece.batch)
        if key not in self._captured:
            if len(self._captured) == GRAPHS:
                graph, _context = self._captured.popitem(last=False)[1]
                graph.close()
            self._captured[key] = self._capture(piece, addresses)
        self._captured.move_to_end(key)
        return self._captured[key][0]

    def _capture(
        self, piece: Piece, addresses: tuple[int, int]
    ) -> tuple[_cuda.Graph, ExecutionContext]:
        context = self._new_context()
        context.prepare(piece.profile, piece.batch, *addresses)
        context.enqueue()  # after a change of shape the first run does what no capture allows
        self._stream.synchronize()
        try:
            return _cuda.capture(self._stream, context.enqueue), context
        except BackendError as error:
            raise BackendError(
                f"no CUDA graph of batch {piece.batch}: {error.found}",
                remedy="run with cuda_graph = false",
            ) from error

    def _plain_context(self) -> ExecutionContext:
        if self._plain is None:
            self._plain = self._new_context()
        return self._plain

    def _new_context(self) -> ExecutionContext:
        return ExecutionContext(self._loaded, self._memory.handle, self._stream)

    def _forget_contexts(self) -> None:
        """Before the memory they use is freed; a graph before its context."""
        self._plain = None
        with ExitStack() as graphs:
            for graph, _context in self._captured.values():
                graphs.callback(graph.close)
        self._captured.clear()


def _allocate(made: ExitStack, io: EngineIO, most: int) -> Buffers:
    images = made.enter_context(_cuda.PinnedBuffer((most, *io.image)))
    logits = made.enter_context(_cuda.PinnedBuffer((most, *io.logit)))
    device_images = made.enter_context(_cuda.DeviceBuffer(images.array.nbytes))
    device_logits = made.enter_context(_cuda.DeviceBuffer(logits.array.nbytes))
    return Buffers(images, logits, device_images, device_logits)


def _refused(call: str, said: Sequence[str], details: str = "") -> BackendError:
    reasons = [*filter(None, [details]), *said[-1:]]
    return BackendError(f"{call} failed" + (f": {'; '.join(reasons)}" if reasons else ""))
