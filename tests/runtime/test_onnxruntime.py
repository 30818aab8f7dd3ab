"""How sessions of ONNX Runtime are opened for a device; tests/gpu runs them there."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from densenet_deploy.bundle import Bundle
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime import onnxruntime as module
from densenet_deploy.runtime.binding import BoundSession


class HostOptions(ort.SessionOptions):
    """Session options that allow the CPU, which stands for the device here."""

    told: tuple[str, str] = ("", "")

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.told = (key, value)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, str]]:
    """The options of each session that is opened: for real, but on the CPU provider."""
    opened: list[dict[str, str]] = []
    real = module._open

    def spy(path: Path, backend: str, options: Any, settings: dict[str, str]) -> Any:
        assert options.told == ("session.disable_cpu_ep_fallback", "1")
        opened.append(settings)
        return real(path, "onnxruntime", options, {})

    def on_host(session_for: Any, device: str, index: int, *kept: int) -> BoundSession:
        assert (device, index) == ("cuda", 1)
        return BoundSession(session_for, "cpu", 0, *kept)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(module, "_open", spy)
    monkeypatch.setattr(module, "_session_options", HostOptions)
    monkeypatch.setattr(module, "BoundSession", on_host)
    return opened


@pytest.mark.parametrize(
    "backend, cuda_graph, expected",
    [
        ("onnxruntime-cuda", True, 1),  # its graphs have numbers
        ("onnxruntime-cuda", False, 1),
        ("onnxruntime-tensorrt", True, 3),  # replays its one graph for any batch size
        ("onnxruntime-tensorrt", False, 1),
    ],
)
def test_sessions_that_batch_sizes_need(
    backend: str,
    cuda_graph: bool,
    expected: int,
    bundle: Bundle,
    sessions: list[dict[str, str]],
) -> None:
    config = RunConfig(device=1, cuda_graph=cuda_graph)
    images = bundle.manifest.preprocessing.normalise(bundle.sample_pixels())
    with module.open_model(bundle, backend, "fp32", 1, config) as runner:
        assert len(sessions) == 1  # what is wrong is found before the first request
        assert runner.cuda_graph is cuda_graph
        together = runner.logits(images[:4])
        for size in (4, 2, 1, 2, 4):
            np.testing.assert_allclose(runner.logits(images[:size]), together[:size], atol=1e-5)
    assert len(sessions) == expected
    with pytest.raises(BackendError, match="is closed"):
        runner.logits(images[:4])


def test_without_a_cache_no_batch_size_compiles_its_own_engine(
    bundle: Bundle, sessions: list[dict[str, str]]
) -> None:
    config = RunConfig(device=1, runtime_cache=False)
    with module.open_model(bundle, "onnxruntime-tensorrt", "fp32", 1, config) as runner:
        assert not runner.cuda_graph
        for size in (1, 2, 3):
            runner.logits(np.zeros((size, 1, 28, 28), np.float32))
    assert [settings["trt_cuda_graph_enable"] for settings in sessions] == ["0"]


@pytest.mark.parametrize(("users", "found"), [(None, "0"), ("1", "1")])
def test_tf32_is_off_for_tensorrt_unless_the_user_decides(
    bundle: Bundle,
    sessions: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    users: str | None,
    found: str,
) -> None:
    """By the one thing that turns it off there, and before the library that reads it is loaded."""
    if users is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    else:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", users)
    module.open_model(bundle, "onnxruntime-cuda", "fp32", 1, RunConfig(device=1)).close()
    assert os.environ.get("NVIDIA_TF32_OVERRIDE") == users, "an option of its own there"
    module.open_model(bundle, "onnxruntime-tensorrt", "fp32", 1, RunConfig(device=1)).close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == found


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_closing_frees_the_sessions(
    bundle: Bundle,
    sessions: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    """Also while somebody still has the runner, as a server that waits for its last request."""
    alive: list[weakref.ref[Any]] = []
    spied = module._open

    def spy(*arguments: Any) -> Any:
        session = spied(*arguments)
        alive.append(weakref.ref(session))
        return session

    monkeypatch.setattr(module, "_open", spy)
    runner = module.open_model(bundle, backend, "fp32", 1, RunConfig(device=1))
    for size in (1, 2, 1):
        runner.logits(np.zeros((size, 1, 28, 28), np.float32))
    runner.close()
    gc.collect()
    assert alive and not any(session() for session in alive)


def test_requests_at_once_are_refused(bundle: Bundle, sessions: list[dict[str, str]]) -> None:
    for backend in ("onnxruntime-cuda", "onnxruntime-tensorrt"):
        with pytest.raises(BackendError, match=f"{backend} cannot run 2 requests at once"):
            module.open_model(bundle, backend, "fp32", 1, RunConfig(device=1, contexts=2))
    assert sessions == []


def test_a_provider_that_steps_aside_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's own way to say that CUDA did not load: a session on the CPU."""
    real = ort.InferenceSession
    on_host = {"providers": ["CPUExecutionProvider"]}
    monkeypatch.setattr(ort, "InferenceSession", lambda *given, **_: real(*given, **on_host))
    refused = pytest.raises(BackendError, match="onnxruntime-cuda fell back to CPUExecutionProvi")
    with refused:
        module._open(bundle.model("fp32"), "onnxruntime-cuda", ort.SessionOptions(), {})


def test_the_profile_is_the_bundles(bundle: Bundle, sessions: list[dict[str, str]]) -> None:
    module.open_model(bundle, "onnxruntime-tensorrt", "fp32", 1, RunConfig(device=1)).close()
    assert sessions[0]["trt_profile_max_shapes"] == "images:64x1x28x28"


def test_a_refusal_is_the_reason_and_not_a_place_in_a_source() -> None:
    said = (
        "/onnxruntime_src/onnxruntime/python/state.cc:729 void onnxruntime::Register"
        "(Options&, const Other&) Please install the libraries"
    )
    assert module._SOURCE_LINE.sub("", said) == "Please install the libraries"
    assert module._SOURCE_LINE.sub("", "[ONNXRuntimeError] : 7 (a) B") == (
        "[ONNXRuntimeError] : 7 (a) B"
    )
