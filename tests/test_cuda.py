"""The door to CUDA: against the real bindings of CUDA 12 and 13, and over a simulated device."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densenet_deploy import _cuda
from densenet_deploy.errors import BackendError
from tests.simulated_cuda import Cuda, Functions

CACHE = Path(sys.prefix) / "share" / "cuda-bindings"
# Makes every call it is given, with the real bindings and no device, and says what came of it.
REPLAY = """
import json, sys
from cuda.bindings import runtime, __version__

def real(argument):
    if not isinstance(argument, str):
        return argument
    owner, _, member = argument.partition(".")
    return getattr(getattr(runtime, owner), member)

answers = {}
for name, arguments in json.load(sys.stdin):
    try:
        status, *values = getattr(runtime, name)(*map(real, arguments))
        answers[name] = [status.name, len(values)]
    except RuntimeError:  # how 12.8 says that there is no driver
        answers[name] = ["no driver", None]
print(json.dumps([__version__, answers]))
"""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    device = Cuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", device)
    return device


@pytest.fixture(scope="session", params=["12.8", "12.9", "installed"])
def bindings(request: pytest.FixtureRequest) -> dict[str, str]:
    """Environment in which a child process imports cuda-bindings of one version."""
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if request.param == "installed":
        return hidden
    folder = CACHE / request.param
    if not folder.exists():
        _install(f"cuda-bindings=={request.param}.*", folder)
    return {**hidden, "PYTHONPATH": str(folder)}


def _install(requirement: str, folder: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=CACHE))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:"]
    limits = ["--retries", "1", "--timeout", "20", "--target", str(fresh)]
    try:
        subprocess.run([*pip, *limits, requirement], check=True, capture_output=True, text=True)
        fresh.rename(folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no {requirement}: {error.stderr.strip().splitlines()[-1]}")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def use_everything() -> None:
    """Every function of `_cuda` that calls CUDA."""
    _cuda.use_device(0)
    assert _cuda.current_device() == 0
    assert (_cuda.device_name(0), _cuda.driver_version()) == ("Simulated", "12.8")
    assert _cuda.compute_capability(0) == "8.9"
    with (
        _cuda.Event(timing=True) as start,
        _cuda.Event(timing=True) as end,
        _cuda.DeviceBuffer(24) as buffer,
        _cuda.PinnedBuffer((2, 3)) as host,
        _cuda.Stream() as stream,
    ):
        assert _cuda.device_of(buffer.handle) == 0
        assert _cuda.device_of(host.handle) is None
        host.array[:] = 3
        start.record(stream.handle)
        _cuda.copy_to_device(buffer.handle, host.array, stream)
        end.record(stream.handle)
        _cuda.wait_for(1, end)
        assert end.since(start) == 1.5
        work = lambda: _cuda.copy_to_host(host.array, buffer.handle, stream)  # noqa: E731
        with _cuda.capture(stream, work) as graph:
            stream.synchronize()
            host.array[:] = 4
            graph.launch(stream)
            stream.synchronize()
            assert (host.array == 3).all()


def test_what_we_call_is_what_the_real_bindings_take(cuda: Cuda, bindings: dict[str, str]) -> None:
    """Names, enums, number and types of arguments, number of results, in each version."""
    use_everything()
    assert _cuda.why_no_device() == ""
    calls = [(name, [_plain(value) for value in arguments]) for name, arguments in cuda.calls]
    assert {name for name, _ in calls} == {n for n in vars(Functions) if n.startswith("cuda")}
    done = subprocess.run(
        [sys.executable, "-c", REPLAY],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        env=bindings,
    )
    assert done.returncode == 0, done.stderr
    version, answers = json.loads(done.stdout)
    expected = Path(bindings.get("PYTHONPATH", "")).name or importlib.metadata.version(
        "cuda-bindings"
    )
    assert version.startswith(expected)
    refused = {"cudaErrorInsufficientDriver", "cudaErrorNoDevice"}  # but TypeError nowhere
    for name, (status, values) in answers.items():
        assert status in refused | {"cudaSuccess", "no driver"}
        assert values in (cuda.results[name], None), name


def _plain(value: Any) -> Any:
    return f"{type(value).__name__}.{value.name}" if hasattr(value, "name") else value


def test_everything_is_freed_whatever_fails(cuda: Cuda) -> None:
    use_everything()
    total = len(cuda.calls)
    assert not cuda.live and total > 30
    for index in range(total):
        cuda.calls.clear()
        cuda.failing = index
        with pytest.raises(BackendError, match=r"^cuda\w+ failed: cudaError\w+, \w+"):
            use_everything()
        assert not cuda.live, index


def test_of_five_allocations_the_third_fails(cuda: Cuda) -> None:
    _cuda.use_device(0)
    cuda.failing = len(cuda.calls) + 2
    refused = pytest.raises(BackendError, match="cudaMalloc failed: cudaErrorMemoryAllocation")
    with refused, ExitStack() as made:
        for _ in range(5):
            made.enter_context(_cuda.DeviceBuffer(8))
    names = [name for name, _ in cuda.calls]
    assert names.count("cudaMalloc") == 3 and names.count("cudaFree") == 2 and not cuda.live


def test_a_capture_that_fails_is_ended(cuda: Cuda) -> None:
    _cuda.use_device(0)

    def work() -> None:
        raise ZeroDivisionError

    with _cuda.Stream() as stream:
        with pytest.raises(ZeroDivisionError):
            _cuda.capture(stream, work)
        stream.synchronize()
        assert list(cuda.live) == [stream.handle]


def test_closing_twice_frees_once(cuda: Cuda) -> None:
    _cuda.use_device(0)
    buffer = _cuda.DeviceBuffer(4)
    buffer.close()
    buffer.close()
    assert [name for name, _ in cuda.calls].count("cudaFree") == 1
    with pytest.raises(AssertionError, match="a closed DeviceBuffer is used"):
        _ = buffer.handle


def test_a_device_is_there(cuda: Cuda) -> None:
    assert _cuda.why_no_device() == ""
    cuda.failing = len(cuda.calls)
    assert "no CUDA device (cudaError" in _cuda.why_no_device()


@pytest.mark.skipif(not _cuda.why_no_device(), reason="this machine has a CUDA device")
def test_without_a_device_cuda_says_why() -> None:
    assert _cuda.why_no_device().startswith("no CUDA device")
    with pytest.raises(BackendError, match="cudaMalloc failed: cudaErrorInsufficientDriver, CUDA"):
        _cuda.DeviceBuffer(8)


def no_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def test_a_driver_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-bindings 12.8 raises where later versions return an error."""

    def count() -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    module = types.SimpleNamespace(cudaGetDeviceCount=count)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    monkeypatch.setattr(_cuda.ctypes, "CDLL", no_library)
    assert _cuda.why_no_device() == "no CUDA device (no NVIDIA driver)"


def test_an_old_driver_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """cudaGetDeviceCount gives both the same name."""
    errors = _cuda._runtime().cudaError_t
    real = _cuda._runtime()
    module = types.SimpleNamespace(
        cudaGetDeviceCount=lambda: (errors.cudaErrorInsufficientDriver, None),
        cudaError_t=errors,
        cudaGetErrorName=real.cudaGetErrorName,
        cudaGetErrorString=real.cudaGetErrorString,
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    driver = types.SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetCount=one_device)
    monkeypatch.setattr(_cuda.ctypes, "CDLL", lambda name: driver)
    assert "(cudaErrorInsufficientDriver, " in _cuda.why_no_device()
    monkeypatch.setattr(_cuda.ctypes, "CDLL", no_library)
    assert _cuda.why_no_device() == "no CUDA device (no NVIDIA driver)"


def one_device(count: Any) -> int:
    count._obj.value = 1
    return 0


@pytest.fixture
def without_bindings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    yield


def test_without_cuda_python(without_bindings: None) -> None:
    with pytest.raises(BackendError, match=r"expected cuda-python 12.8 or newer\. Pip install"):
        _cuda.use_device(0)


@pytest.mark.parametrize(
    ("status", "count", "reason"),
    [(0, 1, ""), (0, 0, "no CUDA device"), (100, 0, "no CUDA device (driver error 100)")],
)
def test_then_the_driver_is_asked(
    without_bindings: None,
    status: int,
    count: int,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library of the driver's two functions, compiled here, stands in for a GPU."""
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so"
    source.write_text(
        f"int cuInit(unsigned f) {{ return {status}; }}\n"
        f"int cuDeviceGetCount(int *n) {{ *n = {count}; return 0; }}\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    opened = _cuda.ctypes.CDLL(str(library))
    monkeypatch.setattr(_cuda.ctypes, "CDLL", lambda name: opened)
    assert _cuda.why_no_device() == reason


def test_dlpack_of_the_real_library() -> None:
    view = _cuda.dlpack_view(np.zeros((2, 3), np.float32), -1)
    assert (view.shape, view.dtype, view.is_device_accessible) == ((2, 3), np.float32, False)
    with pytest.raises(BackendError, match="list gives no DLPack view"):
        _cuda.dlpack_view([1.0], -1)
