"""How sessions of ONNX Runtime are opened for a device; tests/gpu runs them there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import RunConfig
from densenet_deploy.runtime import onnxruntime as module
from densenet_deploy.runtime.binding import BoundSession


class HostOptions(ort.SessionOptions):
    """Session options that allow the CPU, which stands for the device here."""

    def add_session_config_entry(self, key: str, value: str) -> None:
        assert (key, value) == ("session.disable_cpu_ep_fallback", "1")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, str]]:
    """The options of each session that is opened: for real, but on the CPU provider."""
    opened: list[dict[str, str]] = []
    real = module._open

    def spy(path: Path, backend: str, options: Any, settings: dict[str, str]) -> Any:
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
