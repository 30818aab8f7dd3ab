"""Memory of the simulated GPU, as other libraries offer theirs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from densenet_deploy import _cuda
from densenet_deploy.runtime.runner import Array


class on_device:
    """An array on the simulated GPU, as other libraries offer theirs; filled on its own stream."""

    def __init__(self, values: Any, **interface: Any) -> None:
        self._values = np.asarray(values, np.float32)
        self._changes = interface

    def __enter__(self) -> Any:
        _cuda.use_device(0)
        self._made = ExitStack()
        with ExitStack() as made:
            buffer = made.enter_context(_cuda.DeviceBuffer(self._values.nbytes))
            self._stream = made.enter_context(_cuda.Stream())
            self._host = made.enter_context(_cuda.PinnedBuffer(self._values.shape))
            self._host.array[:] = self._values
            _cuda.copy_to_device(buffer.handle, self._host.array, self._stream)
            self._made = made.pop_all()
        self.stream = self._stream.handle
        self.__cuda_array_interface__ = {
            "shape": self._values.shape,
            "typestr": "<f4",
            "data": (buffer.handle, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        } | self._changes
        return self

    def read(self) -> Array:
        address = self.__cuda_array_interface__["data"][0]
        _cuda.copy_to_host(self._host.array, address, self._stream)
        self._stream.synchronize()
        return self._host.array.copy()

    def __exit__(self, *_: Any) -> None:
        with self._made:
            self._stream.synchronize()
