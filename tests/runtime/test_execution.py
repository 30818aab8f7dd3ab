"""What an executor owes TensorRT: aligned addresses, and the shape a request has."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.runner import Array
from tests.runtime.conftest import Open, close
from tests.runtime.on_device import on_device
from tests.simulated_cuda import Cuda

BUCKETS = ((1, 1, 1), (2, 4, 8), (9, 16, 32))


@pytest.mark.parametrize("start", [0, 1])
def test_what_is_not_aligned_is_copied_on_the_device(
    opened: Open, images: Array, expected: Array, cuda: Cuda, start: int
) -> None:
    """Rows in the middle of an array; and parts of a batch, 8 rows of which are 320 bytes."""
    rows = slice(start, start + 20)
    with (
        opened(((1, 1, 1), (2, 4, 8))) as runner,
        on_device(images[:24]) as given,
        on_device(np.full((24, 10), 7)) as taken,
    ):
        for array in (given, taken):
            interface = array.__cuda_array_interface__
            base, shape = interface["data"][0], interface["shape"]
            skipped = 4 * start * int(np.prod(shape[1:]))
            part = interface | {"shape": (20, *shape[1:]), "data": (base + skipped, False)}
            array.part = type("Part", (), {"__cuda_array_interface__": part})
        cuda.calls.clear()
        runner.run_device({"images": given.part}, {"logits": taken.part}, taken.stream)
        assert "cudaStreamSynchronize" not in {name for name, _ in cuda.calls}
        found = taken.read()
        close(found[rows], expected[rows])
        others = np.delete(found, np.arange(24)[rows], axis=0)
        assert (others == 7).all()
    assert not cuda.live


@pytest.mark.parametrize(
    "call", ["set_optimization_profile_async", "set_input_shape", "infer_shapes"]
)
def test_a_shape_that_failed_is_not_taken_for_set(
    opened: Open, images: Array, expected: Array, cuda: Cuda, call: str
) -> None:
    with opened(BUCKETS, cuda_graph=False) as runner:
        for before, failing in ((3, 5), (3, 12)):
            close(runner.logits(images[:before]), expected[:before])
            cuda.calls.clear()
            runner.logits(images[:failing])
            names = [name for name, _ in cuda.calls]
            runner.logits(images[:before])
            if call not in names:  # the same profile
                continue
            cuda.calls.clear()
            cuda.failing = names.index(call)
            with pytest.raises(BackendError, match=call):
                runner.logits(images[:failing])
            cuda.failing = -1
            close(runner.logits(images[:before]), expected[:before])
            shapes = [given for name, given in cuda.calls if name == "set_input_shape"]
            assert shapes[-1][1][0] == before  # else more rows are computed than were copied
