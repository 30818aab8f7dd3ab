"""Every form of PyTorch, for real on the CPU: the same code that runs on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densenet_deploy.bundle import Bundle
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime import BACKENDS, GPU_BACKENDS, runs
from densenet_deploy.runtime import pytorch as module
from densenet_deploy.runtime.torch_forms import FORMS, Form

CPU = torch.device("cpu")
CASES = [(name, half) for name, form in FORMS.items() for half in (False, True)]


def small_model() -> torch.nn.Module:
    """Convolution, BN, pooling and a classifier: compiled in seconds."""
    torch.manual_seed(0)
    layers = torch.nn
    return layers.Sequential(
        layers.Conv2d(1, 8, 3, padding=1),
        layers.BatchNorm2d(8),
        layers.ReLU(),
        layers.AdaptiveAvgPool2d(1),
        layers.Flatten(),
        layers.Linear(8, 10),
    ).eval()


@pytest.mark.parametrize("name, half", [case for case in CASES if not FORMS[case[0]].compile])
def test_golden_logits(name: str, half: bool, bundle: Bundle, one_thread: None) -> None:
    inputs, golden = bundle.golden()
    infer = module.forward(module._load(bundle), FORMS[name], CPU, half)
    logits = infer(inputs)
    assert (logits.dtype, logits.shape) == (np.float32, golden.shape)
    distance = np.abs(logits - golden).max()
    if half:
        assert 5e-4 <= distance <= 0.1  # it did compute in half precision
    else:
        assert distance <= 1e-4
    kept = logits.copy()
    infer(-inputs)
    np.testing.assert_array_equal(logits, kept)
    alone = infer(inputs[:1])
    np.testing.assert_allclose(alone, logits[:1], atol=5e-2 if half else 1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_compiled(half: bool, one_thread: None) -> None:
    """Compiled for each batch size, with the answers of eager."""
    form = FORMS["pytorch-cuda-compile"]
    images = np.random.default_rng(0).normal(size=(3, 1, 12, 12)).astype(np.float32)
    eager = module.forward(small_model(), Form("cpu"), CPU, half)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = module.forward(small_model(), form, CPU, half)
    for size in (3, 1, 3):
        np.testing.assert_allclose(
            compiled(images[:size]), eager(images[:size]), atol=5e-3 if half else 1e-5
        )
    assert counters["stats"]["unique_graphs"] == 2


def test_channels_last_reaches_the_kernels() -> None:
    seen = []
    model = small_model()
    model[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    for form in (Form("cpu"), Form("cpu", channels_last=True)):
        module.forward(model, form, CPU, half=False)(np.zeros((2, 1, 12, 12), np.float32))
    assert [x.is_contiguous(memory_format=torch.channels_last) for x in seen] == [False, True]


def test_settings_are_restored(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GPU, set for the time a runner is open; here it runs on the CPU after all."""

    def settings() -> tuple[bool, bool, bool]:
        backends = torch.backends
        return (
            backends.cudnn.allow_tf32,
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.benchmark,
        )

    before = settings()
    assert before[0]  # else this shows nothing
    monkeypatch.setattr(module, "_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(module, "forward", lambda *_, half: lambda images: images[:, :, 0, 0])
    with module.open_model(bundle, "pytorch-cuda", "fp32", 1, RunConfig()):
        assert settings() == (False, False, True)
    assert settings() == before

    def refuse(*_: object, half: bool) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "forward", refuse)
    with pytest.raises(RuntimeError):
        module.open_model(bundle, "pytorch-cuda", "fp32", 1, RunConfig())
    assert settings() == before


def test_the_table_is_what_backends_and_precisions_follow() -> None:
    assert set(FORMS) <= set(BACKENDS)
    assert {name for name, form in FORMS.items() if form.device == "cuda"} <= set(GPU_BACKENDS)
    assert runs("pytorch", "fp32") and not runs("pytorch", "fp16")
    for name in set(FORMS) - {"pytorch"}:
        assert runs(name, "fp16") and not runs(name, "int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_torch_says_itself_that_it_finds_no_device(bundle: Bundle) -> None:
    """Behind the first check: another driver, or a build of torch for CPUs."""
    with pytest.raises(BackendError, match=r"^PyTorch .* finds no device; expected a build"):
        module.open_model(bundle, "pytorch-cuda", "fp32", 1, RunConfig())


def test_a_build_for_cpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import densenet_deploy.runtime as runtime

    monkeypatch.setattr(runtime._cuda, "why_no_device", lambda: "")
    versions = {"torch": "2.14.1+cpu", "safetensors": "0.8"}
    monkeypatch.setattr(runtime, "package_version", lambda name: versions.get(name, ""))
    assert runtime.why_unavailable("pytorch-cuda") == "torch 2.14.1+cpu is built for CPUs alone"
    assert runtime.why_unavailable("pytorch") == ""
    versions["torch"] = "2.14.1+cu130"
    assert runtime.why_unavailable("pytorch-cuda") == ""


def test_shapes_of_one_runner_do_not_count_for_the_next(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of six shapes each; torch compiles eight of a function before it gives up."""
    real = torch.compile

    def quickly(run: Any, mode: str, **options: Any) -> Any:
        return real(run, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", quickly)
    for half in (False, True, False):
        compiled = module.forward(small_model(), FORMS["pytorch-cuda-compile"], CPU, half)
        for size in (1, 2, 3, 4, 8, 64):
            assert len(compiled(np.zeros((size, 1, 12, 12), np.float32))) == size


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import densenet_deploy.runtime as runtime

    monkeypatch.setattr(runtime._cuda, "why_no_device", lambda: "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "neither gcc nor clang" in runtime.why_unavailable("pytorch-cuda-compile")
    assert runtime.why_unavailable("pytorch-cuda") == ""
    (tmp_path / "gcc").touch(mode=0o755)
    assert runtime.why_unavailable("pytorch-cuda-compile") == ""


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_cuda_graph_is_a_mode_of_the_compiled_form(
    cuda_graph: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def forward(model: object, form: Form, device: object, half: bool) -> object:
        modes.append(form.compile)
        return lambda images: images[:, :, 0, 0]

    monkeypatch.setattr(module, "_device", lambda *_: CPU)
    monkeypatch.setattr(module, "forward", forward)
    config = RunConfig(cuda_graph=cuda_graph)
    with module.open_model(bundle, "pytorch-cuda-compile", "fp32", 1, config) as runner:
        assert runner.cuda_graph is cuda_graph
    with module.open_model(bundle, "pytorch-cuda", "fp32", 1, config) as runner:
        assert not runner.cuda_graph
    assert modes == ["reduce-overhead" if cuda_graph else "default", ""]
    with pytest.raises(BackendError, match="cannot run 2 requests at once"):
        module.open_model(bundle, "pytorch-cuda-compile", "fp32", 1, RunConfig(contexts=2))
