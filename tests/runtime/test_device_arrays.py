"""Arrays that are on the GPU already: taken as they are, in the order of their streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cuda.core.utils import StridedMemoryView

from densenet_deploy import _cuda
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.runner import Array
from tests.runtime.conftest import Open, close
from tests.runtime.on_device import on_device
from tests.simulated_cuda import Cuda

BUCKETS = ((1, 1, 1), (2, 4, 8), (9, 16, 32))


def test_arrays_on_the_device_are_not_copied(
    opened: Open, images: Array, expected: Array, cuda: Cuda
) -> None:
    """Ordered by events alone: nothing here waits before the answer is read."""
    with opened(BUCKETS) as runner:
        for rows in (8, 3, 1, 32, 12, 64):  # fewer than before, too; 64 in two pieces
            with on_device(images[:rows]) as given, on_device(np.zeros((rows, 10))) as taken:
                cuda.calls.clear()
                runner.run_device({"images": given}, {"logits": taken}, taken.stream)
                names = {name for name, _ in cuda.calls}
                assert not names & {"cudaMemcpyAsync", "cudaStreamSynchronize"}
                close(taken.read(), expected[:rows])
        close(runner.logits(images[:3]), expected[:3])
    assert not cuda.live


@pytest.mark.parametrize(
    ("given", "taken", "message"),
    [
        ({"typestr": "<f8"}, {}, "'images' holds <f8; expected float32"),
        ({"shape": (3, 1, 28, 27)}, {}, r"'images' has shape \(3, 1, 28, 27\)"),
        ({"strides": (4, 4, 4, 4)}, {}, "C-contiguous"),
        ({"data": (16, False)}, {}, "'images' is in host memory"),
        ({}, {"data": (16, True)}, "'logits' is read-only"),
        ({}, {"shape": (2, 10)}, r"'logits' has shape \(2, 10\)"),
        ({"mask": 1}, {}, "without a mask"),
        ({"shape": (0, 1, 28, 28)}, {"shape": (0, 10)}, r"'images' has shape \(0, 1, 28, 28\)"),
    ],
)
def test_wrong_device_arrays(
    opened: Open, cuda: Cuda, given: Any, taken: Any, message: str
) -> None:
    with (
        opened() as runner,
        on_device(np.zeros((3, 1, 28, 28)), **given) as images,
        on_device(np.zeros((3, 10)), **taken) as logits,
        pytest.raises(BackendError, match=message),
    ):
        runner.run_device({"images": images}, {"logits": logits})


def test_what_is_no_device_array(opened: Open, images: Array) -> None:
    out = np.zeros((3, 10), np.float32)
    with opened(((4, 4, 8),)) as runner:
        with pytest.raises(BackendError, match="'images' is in host memory; expected memory of th"):
            runner.run_device({"images": images[:3]}, {"logits": out})  # DLPack, of the host
        with pytest.raises(BackendError, match="'images' is a list; expected an array on the GPU"):
            runner.run_device({"images": [1.0]}, {"logits": out})
        with pytest.raises(BackendError, match="arrays pixels; expected 'images'"):
            runner.run_device({"pixels": out}, {"logits": out})
        refused = pytest.raises(BackendError, match="no profile holds 3 rows")
        with on_device(images[:3]) as given, on_device(out) as taken, refused:
            runner.run_device({"images": given}, {"logits": taken})


def test_on_the_default_stream_from_a_new_thread(
    opened: Open, images: Array, expected: Array
) -> None:
    """Both arrays are still being filled on streams of their own."""
    with (
        opened() as runner,
        on_device(images[:4]) as given,
        on_device(np.zeros((4, 10))) as taken,
        ThreadPoolExecutor(1) as other,
    ):
        other.submit(runner.run_device, {"images": given}, {"logits": taken}).result()
        close(taken.read(), expected[:4])


def test_closing_waits_for_the_answer(opened: Open, images: Array, expected: Array) -> None:
    runner = opened()
    with on_device(images[:4]) as given, on_device(np.zeros((4, 10))) as taken:
        runner.run_device({"images": given}, {"logits": taken}, taken.stream)
        runner.close()
        close(taken.read(), expected[:4])


class OnlyDlpack:
    """Offers simulated device memory as torch does whose `__cuda_array_interface__` is gone."""

    def __init__(self, memory: Array, kind: int) -> None:
        self.memory, self._kind = memory, kind

    def __dlpack__(self, **wishes: Any) -> Any:
        return self.memory.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._kind, 0


@pytest.mark.parametrize("kind", [2, 13], ids=["device", "managed"])
def test_dlpack(
    opened: Open, images: Array, expected: Array, cuda: Cuda, kind: int, monkeypatch: Any
) -> None:
    """The real view of cuda.core, of host memory in the place of a GPU's."""
    asked: list[int] = []

    def view(array: OnlyDlpack, stream: int) -> StridedMemoryView:
        asked.append(stream)
        return StridedMemoryView.from_dlpack(array.memory, stream_ptr=-1)

    monkeypatch.setattr(_cuda, "dlpack_view", view)
    with opened() as runner, on_device(images[:4]) as given, on_device(np.zeros((4, 10))) as taken:

        def offered(array: Any) -> OnlyDlpack:
            about = array.__cuda_array_interface__
            _, memory, _ = cuda.block(about["data"][0])
            return OnlyDlpack(memory.reshape(about["shape"]), kind)

        source, target = offered(given), offered(taken)
        given.read()  # the library that gives it away waits, or lets the stream it is told wait
        runner.run_device({"images": source}, {"logits": target}, taken.stream)
        close(taken.read(), expected[:4])
        assert asked == [taken.stream] * 2
        turned = OnlyDlpack(source.memory.swapaxes(2, 3), kind)
        with pytest.raises(BackendError, match=r"strides \(3136, 3136, 4, 112\); expected C-cont"):
            runner.run_device({"images": turned}, {"logits": target}, taken.stream)


class NeedsGradients:
    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("it requires grad")  # as torch says


def test_the_library_s_own_words_are_told(opened: Open) -> None:
    with opened() as runner, on_device(np.zeros((3, 10))) as taken:
        refused = pytest.raises(BackendError, match="not give its memory away: it requires grad")
        with refused:
            runner.run_device({"images": NeedsGradients()}, {"logits": taken})
