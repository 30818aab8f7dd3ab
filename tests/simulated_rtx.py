"""How TensorRT-RTX alone is told to run an engine: strategies, and a cache of its kernels."""

from __future__ import annotations

from tests.simulated_cuda import answers


class IRuntimeConfig:
    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

    def __init__(self, cuda):
        self._cuda = cuda

    def create_runtime_cache(self):
        return IRuntimeCache()

    @answers(False)
    def set_runtime_cache(self, cache):
        return True


class IRuntimeCache:
    _kernels = b"kernels"

    def deserialize(self, blob):
        return blob == self._kernels

    def serialize(self):
        return IHostMemory(self._kernels)


class IHostMemory(bytes):
    pass
