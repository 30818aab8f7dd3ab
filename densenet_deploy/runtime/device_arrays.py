"""Arrays of other libraries that already lie on the GPU, taken over without a copy.

`__cuda_array_interface__` (version 3) is read here; an object with DLPack alone goes through
cuda.core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from densenet_deploy import _cuda
from densenet_deploy.errors import BackendError

_ON_DEVICE = (2, 13)  # kDLCUDA and kDLCUDAManaged of dlpack.h
LEGACY_STREAM = 1  # CUDA's own handle for the default stream, which 0 means as well


@dataclass(frozen=True)
class DeviceArray:
    """C-contiguous float32 memory on a device.

    Attributes:
        address: Of the first element.
        shape: In elements.
        streams: Handles of streams whose work on it must be done first.
    """

    address: int
    shape: tuple[int, ...]
    streams: frozenset[int]


def device_array(
    name: str, array: Any, device: int, stream: int, written: bool = False
) -> DeviceArray:
    """Reads where an array lies.

    Args:
        name: Of the tensor, for messages.
        array: Has `__cuda_array_interface__` or `__dlpack__`.
        device: Index of the GPU it must be on.
        stream: Handle of the stream on which the caller uses it; 0 for the default stream.
        written: Whether it will be written to.

    Raises:
        BackendError: It is not float32, not C-contiguous, not on that GPU, or read-only.
    """
    stream = stream or LEGACY_STREAM
    try:
        interface = array.__cuda_array_interface__
    except AttributeError:
        interface = _from_dlpack(name, array, stream)
    except Exception as error:  # a tensor that needs gradients, say; the library's own words
        raise BackendError(f"{name!r} does not give its memory away: {error}") from error
    return _checked(name, interface, device, stream, written)


def _from_dlpack(name: str, array: Any, stream: int) -> dict[str, Any]:
    """The same facts of an object with DLPack, whose library lets `stream` wait for them."""
    if not hasattr(array, "__dlpack__"):
        raise BackendError(
            f"{name!r} is a {type(array).__name__}",
            expected="an array on the GPU with __cuda_array_interface__ or __dlpack__",
        )
    if array.__dlpack_device__()[0] not in _ON_DEVICE:
        raise _on_the_host(name)
    view = _cuda.dlpack_view(array, stream)
    strides = view.strides and tuple(view.dtype.itemsize * stride for stride in view.strides)
    return {
        "shape": view.shape,
        "typestr": np.dtype(view.dtype).str,
        "data": (view.ptr, view.readonly),
        "strides": strides,
    }


def _checked(
    name: str, interface: Mapping[str, Any], device: int, stream: int, written: bool
) -> DeviceArray:
    shape, (address, readonly) = tuple(interface["shape"]), interface["data"]
    strides, typestr = interface.get("strides"), interface["typestr"]
    contiguous = tuple(int(4 * np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    if typestr != "<f4" or interface.get("mask") is not None:
        raise BackendError(f"{name!r} holds {typestr}", expected="float32 without a mask")
    found = contiguous if strides is None else tuple(strides)
    steps = zip(shape, found, contiguous, strict=True)
    if any(size > 1 and step != needed for size, step, needed in steps):  # one has no next
        raise BackendError(
            f"{name!r} of shape {shape} has strides {found}",
            expected=f"C-contiguous memory, {contiguous}",
            remedy="make it contiguous first",
        )
    if written and readonly:
        raise BackendError(f"{name!r} is read-only", expected="memory for the output")
    owner = _cuda.device_of(address)
    if owner is None:
        raise _on_the_host(name)
    if owner != device:
        raise BackendError(f"{name!r} is on GPU {owner}", expected=f"GPU {device}")
    return DeviceArray(address, shape, frozenset({stream, interface.get("stream") or stream}))


def _on_the_host(name: str) -> BackendError:
    return BackendError(
        f"{name!r} is in host memory",
        expected="memory of the GPU",
        remedy="use `run`, which copies",
    )
