"""`bench --gpu`, `--python` and `--rebuild`: what is chosen, where it runs and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.bundle import open_bundle
from densenet_deploy.cli import backends, use
from densenet_deploy.environment import device_slug, gpus
from densenet_deploy.runtime import GPU_BACKENDS, why_unavailable
from tests.cli.conftest import Command

QUICK = ("--precision", "fp32", "--batch", "1", "--seconds", "0.02", "--threads", "1", "-q")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment of its own with this one's libraries."""
    folder = tmp_path_factory.mktemp("other")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(str(Path(np.__file__).parents[1]))
    return folder / "bin" / "python"


def test_a_backend_in_an_environment_of_its_own(
    command: Command, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "{device}" / "records.json"
    options = ("--backend", "openvino", "--python", f"onnxruntime={other}", "--out", out)
    done = command("bench", *options, *QUICK, "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert [item["backend"] for item in told["measurements"]] == ["openvino", "onnxruntime"]
    assert list(told["environments"]) == ["onnxruntime"]
    assert told["environments"]["onnxruntime"]["packages"]["numpy"] == np.__version__
    path = tmp_path / device_slug() / "records.json"
    assert json.loads(path.read_text(encoding="utf-8")) == told

    assert command("report", path, "--out", tmp_path / "report").code == 0
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "\nonnxruntime ran with Python " in text


def test_all_backends_elsewhere(command: Command, other: Path) -> None:
    done = command("bench", "--backend", "onnxruntime", "--python", other, *QUICK, "--json")
    assert (done.code, done.err) == (0, "")
    assert list(json.loads(done.out)["environments"]) == ["onnxruntime"]


def test_what_cannot_run_there(command: Command, other: Path) -> None:
    if not why_unavailable("tensorrt"):
        pytest.skip("TensorRT runs here, and so it does there")
    message = command("bench", "--python", f"tensorrt={other}", *QUICK).refusal()
    assert message.startswith(f"tensorrt cannot run in {other}: ")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--python", "cuda=/bin/python"), "--python cuda=/bin/python: unknown backend 'cuda'"),
        (("--python", "/no=t/there"), "/no=t/there does not exist; expected a Python"),
        (("--python", "openvino=/a", "--python", "openvino=/b"), "one interpreter for each"),
        (("--gpu", "--backend", "openvino"), "--gpu and --backend; expected one of them"),
    ],
)
def test_what_is_refused(command: Command, options: tuple[str, ...], message: str) -> None:
    assert message in command("bench", *options, *QUICK).refusal()


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_without_a_gpu_it_says_so_for_every_backend(command: Command) -> None:
    done = command("bench", "--gpu", *QUICK)
    assert (done.code, done.out) == (2, "")
    assert "no GPU backend can run" in done.err
    for name in GPU_BACKENDS:
        assert f"  - {name}: {why_unavailable(name)}" in done.err


def test_a_gpu_that_refuses_everything_is_no_success(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every backend seems to run, until its process opens it."""
    if gpus():
        pytest.skip("there is a GPU, and it refuses nothing")
    monkeypatch.setattr(backends, "why_cannot_run", lambda *_: "")
    done = command("bench", "--gpu", *QUICK)
    assert (done.code, done.out) == (2, "")
    assert "nothing could be measured" in done.err
    assert "  - onnxruntime-cuda: fp32: onnxruntime-cuda cannot run here: no CUDA" in done.err


def test_to_rebuild_a_bundle_needs_no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_unavailable", lambda name: "")
    monkeypatch.setattr(backends, "why_cannot_run", lambda bundle, name, wanted: "no engine fits")
    bundle = open_bundle(use.SHIPPED)
    chosen = backends.select(bundle, (), ("fp32",), (), gpu=True, rebuild=True)
    assert chosen.backends == list(GPU_BACKENDS) and not chosen.skipped and not chosen.pythons
    with pytest.raises(backends.BackendError, match="no GPU backend can run"):
        backends.select(bundle, (), ("fp32",), (), gpu=True, rebuild=False)
