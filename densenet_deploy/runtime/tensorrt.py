"""TensorRT and TensorRT-RTX: runs a bundle's engine on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from densenet_deploy import _cuda, _tensorrt
from densenet_deploy.bundle import Bundle, EngineRecord
from densenet_deploy.engine import options
from densenet_deploy.engine.refit import refit
from densenet_deploy.engine.setters import Site
from densenet_deploy.engine_config import EngineBackend, RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime.batches import pieces
from densenet_deploy.runtime.device_arrays import DeviceArray, device_array
from densenet_deploy.runtime.engine_io import EngineIO, read_io
from densenet_deploy.runtime.execution import Executor, LoadedEngine
from densenet_deploy.runtime.golden import check_golden
from densenet_deploy.runtime.pool import Pool
from densenet_deploy.runtime.runner import Array, Infer, Runner
from densenet_deploy.runtime.runtime_cache import RuntimeCache, cache_file
from densenet_deploy.runtime.select import choose_engine, misfit


def open_model(
    bundle: Bundle, backend: str, precision: Precision, threads: int, config: RunConfig
) -> Runner:
    """Loads the engine of a bundle that fits this device; see `runtime.open_runner`."""
    version = _tensorrt.version(_load(backend))
    capability = _cuda.compute_capability(config.device)
    record = choose_engine(bundle, backend, precision, version, capability)
    return open_plan(
        bundle, backend, precision, bundle.file(record.file).read_bytes(), record, config
    )


def open_graph(path: Path, backend: str, threads: int) -> Infer:
    """Refuses: what these backends load was compiled before."""
    raise BackendError(
        f"{backend} runs the engines of a bundle, not {path.name}",
        remedy="build an engine, or use onnxruntime-tensorrt, which compiles as it loads",
    )


def open_plan(
    bundle: Bundle,
    backend: str,
    precision: Precision,
    plan: bytes,
    record: EngineRecord,
    config: RunConfig,
) -> Runner:
    """Loads a serialized engine of a bundle's graph.

    An engine that was built without weights gets those of the bundle's graph, and is held against
    its golden output before it is handed out.

    Args:
        bundle: Whose graph it was compiled from.
        backend: `tensorrt` or `tensorrt-rtx`.
        precision: Of the graph.
        plan: The engine.
        record: What is known of it.
        config: How to run it.

    Raises:
        BackendError: The engine is damaged, made for something else or not what the record says;
            an option is not there; CUDA or TensorRT failed; or a refit gave other answers.
    """
    trt = _load(backend)
    options.check(config, cast(EngineBackend, backend), _tensorrt.version(trt))
    with _cuda.on_device(config.device):
        return _load_plan(trt, bundle, backend, precision, plan, record, config)


def _load_plan(
    trt: ModuleType,
    bundle: Bundle,
    backend: str,
    precision: Precision,
    plan: bytes,
    record: EngineRecord,
    config: RunConfig,
) -> Runner:
    """`open_plan` on the current device."""
    runtime, engine, logger = _deserialize(trt, plan, record, config.device)
    if record.weights == "stripped":
        refit(trt, engine, bundle.model(precision, backend), logger)
    io = read_io(trt, engine, bundle.manifest, record.profiles)
    with ExitStack() as made:
        new_context, cache = _contexts(trt, engine, plan, backend, config)
        size = 0 if backend == "tensorrt-rtx" else _tensorrt.activation_bytes(engine)
        capture = config.cuda_graph and backend == "tensorrt"
        loaded = LoadedEngine(io, logger, new_context, size, capture, (engine, runtime))
        executors = []
        for _ in range(config.contexts):
            executors.append(Executor(loaded))
            made.callback(executors[-1].close)
        runner = EngineRunner(bundle, backend, precision, io, Pool(executors), config, cache)
        if record.weights == "stripped":
            check_golden(runner, bundle, f"{record.file or 'the engine'} was refitted")
        made.pop_all()
    return runner


class EngineRunner(Runner):
    """A runner over an engine: any batch size, and arrays that are on the GPU already.

    Attributes:
        runtime_cache_hit: Whether kernels of an earlier process were found; None without a cache.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        precision: Precision,
        io: EngineIO,
        executors: Pool[Executor],
        config: RunConfig,
        cache: RuntimeCache | None,
    ) -> None:
        super().__init__(
            bundle,
            backend,
            precision,
            self._infer_on_host,
            self._free,
            profiles=io.profiles,
            cuda_graph=config.cuda_graph,
            splits=True,
        )
        self._io, self._executors, self._device = io, executors, config.device
        self._cache = cache
        self.runtime_cache_hit = cache.hit if cache else None

    def run_device(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int = 0
    ) -> None:
        """Runs one batch that lies on the GPU, into an output there, both where they are.

        Only what does not start at a multiple of 256 bytes, as TensorRT requires, is copied, on the
        GPU: a row in the middle of an array, say.

        Returns at once. The output is there for all later work on `stream`; until then neither
        array may be freed or changed by anything else. Runs without a CUDA graph of this package,
        since a graph holds the addresses of its arrays.

        Args:
            inputs: The images by name: float32 (N, C, H, W), C-contiguous, with
                `__cuda_array_interface__` or DLPack. A profile must hold N, or parts of N, as it
                is: nothing is padded.
            outputs: The logits by name, to be written: float32 (N, classes).
            stream: Handle of the CUDA stream on which the caller uses both; 0 for the default one.

        Raises:
            BackendError: Wrong name, dtype, shape, memory layout or device; CUDA or TensorRT
                failed; or the runner is closed.
        """
        self._opened()
        io = self._io
        for given, name in ((inputs, io.input), (outputs, io.output)):
            if set(given) != {name}:
                raise BackendError(f"arrays {', '.join(given) or 'none'}", expected=repr(name))
        with _cuda.on_device(self._device):
            self._infer_on_device(inputs[io.input], outputs[io.output], stream)

    def _infer_on_device(self, given: Any, taken: Any, stream: int) -> None:
        io, device = self._io, self._device
        images = device_array(io.input, given, device, stream)
        logits = device_array(io.output, taken, device, stream, written=True)
        rows = images.shape[0] if images.shape else 0
        _require_shape(io.input, images, (max(rows, 1), *io.image))
        _require_shape(io.output, logits, (rows, *io.logit))
        parts = list(pieces(rows, io.profiles))
        if padded := [part.rows for part in parts if part.rows != part.batch]:
            raise BackendError(f"no profile holds {padded[0]} rows", expected=str(io.profiles))
        with self._naming_failures(), self._executors.lend() as executor:
            for part in parts:
                row = images.address + 4 * part.start * int(np.prod(io.image))
                out = logits.address + 4 * part.start * int(np.prod(io.logit))
                executor.run_device(row, out, part, images.streams | logits.streams)

    def _infer_on_host(self, images: Array) -> Array:
        logits = np.empty((len(images), *self._io.logit), np.float32)
        with _cuda.on_device(self._device), self._executors.lend() as executor:
            for part in pieces(len(images), self._io.profiles):
                rows = slice(part.start, part.start + part.rows)
                logits[rows] = executor.run(images[rows], part)
        return logits

    def _free(self) -> None:
        """All of it, whatever fails on the way."""
        with ExitStack() as last:
            for executor in self._executors.close():
                last.callback(executor.close)
            if self._cache:
                last.callback(self._cache.save)
            with _cuda.on_device(self._device):
                last.close()


def _load(backend: str) -> ModuleType:
    """The bindings, once it is known that their objects would work: without a device they crash."""
    if reason := _cuda.why_no_device():
        raise BackendError(f"{backend} cannot run here: {reason}")
    return _tensorrt.load(cast(EngineBackend, backend))


def _deserialize(
    trt: ModuleType, plan: bytes, record: EngineRecord, device: int
) -> tuple[Any, Any, Any]:
    """(runtime, engine, logger); the first is kept as long as the second is."""
    logger = _tensorrt.collecting_logger(trt)
    runtime = trt.Runtime(logger)
    if record.version_compatible:
        runtime.engine_host_code_allowed = True  # such a plan brings its own small runtime
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = misfit(record, _tensorrt.version(trt), _cuda.compute_capability(device))
        reasons = [f"it needs {reason}"] if reason else _tensorrt.invalidity(trt, runtime, plan)
        raise BackendError.collect(
            f"{record.backend} cannot load {record.file or 'the engine'}",
            [*reasons, *logger.errors] or ["it is damaged"],
        )
    return runtime, engine, logger


def _contexts(
    trt: ModuleType, engine: Any, plan: bytes, backend: str, config: RunConfig
) -> tuple[Callable[[int], Any], RuntimeCache | None]:
    """How execution contexts are made, and the cache they share."""
    if backend == "tensorrt":
        return lambda address: _tensorrt.context_in(trt, engine, address), None
    settings, cache = engine.create_runtime_config(), None
    options.apply(replace(config, runtime_cache=False), "tensorrt-rtx", Site(trt, settings))
    if not config.cuda_graph:
        settings.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
    if config.runtime_cache:
        capability = _cuda.compute_capability(config.device)
        parts = (_tensorrt.version(trt), capability, _cuda.driver_version())
        cache = RuntimeCache(settings, cache_file(plan, *parts))
    return lambda address: engine.create_execution_context(settings), cache


def _require_shape(name: str, array: DeviceArray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise BackendError(f"{name!r} has shape {array.shape}", expected=str(expected))
