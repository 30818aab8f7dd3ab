"""A TensorRT engine and its execution contexts, over ONNX Runtime.

An engine computes its ONNX graph on the memory that addresses point to when a stream gets there. A
graph of a context whose shape has changed since is an AssertionError, as is one context computing
in the memory of another before its stream.
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime

from tests.simulated_cuda import answers
from tests.simulated_rtx import IRuntimeConfig


@functools.lru_cache(maxsize=8)
def session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class ICudaEngine:
    num_io_tensors, device_memory_size, device_memory_size_v2 = 2, 1024, 1024

    def __init__(self, runtime, graph, profiles, weights, dtype, names):
        self._cuda, self._surface = runtime._cuda, runtime._surface
        self._graph = None if weights == "stripped" else graph
        run = session(graph)
        self._io, self._names = (run.get_inputs()[0], run.get_outputs()[0]), names
        self._profiles, self._dtype = profiles, dtype
        self.num_optimization_profiles, self.refittable = len(profiles), weights != "embedded"

    def _of(self, name):
        return next(tensor for tensor in self._io if tensor.name == name)

    def get_tensor_name(self, index):
        return self._io[index].name

    def get_tensor_mode(self, name):
        modes = self._surface.enum("TensorIOMode")
        return modes.INPUT if name == self._io[0].name else modes.OUTPUT

    def get_tensor_dtype(self, name):
        return self._surface.enum("DataType")[self._dtype]

    def get_tensor_location(self, name):
        return self._surface.enum("TensorLocation").DEVICE

    def get_tensor_shape(self, name):
        return (-1, *self._of(name).shape[1:])

    def get_tensor_profile_shape(self, name, profile_index):
        return [(size, *self._of(name).shape[1:]) for size in self._profiles[profile_index]]

    @answers(None)
    def create_execution_context(self, how=None):
        return IExecutionContext(self, getattr(how, "name", "") == "USER_MANAGED")

    def create_runtime_config(self):
        return IRuntimeConfig(self._cuda)


class IExecutionContext:
    device_memory = 0

    def __init__(self, engine, user_managed):
        self._engine, self._cuda, self._user_managed = engine, engine._cuda, user_managed
        self._profile, self._shape, self._addresses = None, None, {}
        self._changes, self._warm = 0, False

    def set_device_memory(self, memory, size):
        assert size >= self._engine.device_memory_size_v2
        self.device_memory = memory

    @answers(False)
    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert stream_handle not in (0, 1), "the default stream"
        self._profile, self._shape = profile_index, None
        self._changes, self._warm = self._changes + 1, False
        return profile_index < len(self._engine._profiles)

    @answers(False)
    def set_input_shape(self, name, shape):
        low, _, high = self._engine._profiles[self._profile]
        self._shape, self._warm = tuple(shape), False
        self._changes += 1
        return low <= shape[0] <= high and shape[1:] == tuple(self._engine._of(name).shape[1:])

    @answers(["images"])
    def infer_shapes(self):
        return [] if self._shape else [self._engine._io[0].name]

    def get_tensor_shape(self, name):
        return (self._shape[0], *self._engine._of(name).shape[1:])

    @answers(False)
    def set_tensor_address(self, name, memory):
        assert memory % 256 == 0, "TensorRT requires an alignment of 256 bytes"
        self._addresses[name] = memory
        return True

    @answers(False)
    def execute_async_v3(self, stream_handle):
        assert stream_handle not in (0, 1), "the default stream"
        capturing = stream_handle in self._cuda._captures
        if capturing and not self._warm:
            return False  # the first run after a change of shape cannot be captured
        self._warm = True
        source, target = (tensor.name for tensor in self._engine._io)
        graph_of = self._changes if capturing else None
        work = (graph_of, self._shape, self._addresses[source], self._addresses[target])
        self._cuda.add(stream_handle, functools.partial(self._compute, *work))
        return True

    def _compute(self, graph_of, shape, source, target):
        assert graph_of in (None, self._changes), "a graph from before a change of shape"
        if self._user_managed:
            self._cuda.floats(self.device_memory, self._engine.device_memory_size_v2 // 4)[:] = 7
        images = self._cuda.floats(source, int(np.prod(shape))).reshape(shape)
        assert not np.isnan(images).any(), "memory is read that nothing was written to"
        run = session(self._engine._graph)
        logits = run.run(None, {self._engine._io[0].name: images})[0]
        self._cuda.floats(target, logits.size)[:] = logits.ravel()
