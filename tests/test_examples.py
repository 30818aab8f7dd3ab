"""The example programs, each run as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import densenet_deploy
from densenet_deploy.bundle import open_bundle
from densenet_deploy.data import ASSETS
from densenet_deploy.runtime import why_unavailable

ROOT = Path(densenet_deploy.__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHIPPED = ASSETS / "bundle"
ON_GPU = ("embed_torch.py", "embed_pycuda.py")

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples/ is not installed")


def example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)


@pytest.fixture(scope="module")
def answers() -> list[str]:
    """What the shipped int8 graph says to the samples, by ONNX Runtime alone."""
    manifest = open_bundle(SHIPPED).manifest
    pixels = np.stack([np.asarray(Image.open(SHIPPED / name)) for name in manifest.samples])
    images = ((pixels / 255 - 0.2860) / 0.3530).astype(np.float32)[:, None]
    session = onnxruntime.InferenceSession(SHIPPED / "onnxruntime" / "int8.onnx")
    (logits,) = session.run(None, {"images": images})
    return [manifest.labels[index] for index in logits.argmax(1)]


def test_classify(answers: list[str]) -> None:
    files = [SHIPPED / name for name in open_bundle(SHIPPED).manifest.samples]
    done = example("classify.py", SHIPPED, *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{file}: {label}" for file, label in zip(files, answers, strict=True)
    ]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads(backend: str, answers: list[str]) -> None:
    done = example("threads.py", SHIPPED, backend)
    assert (done.returncode, done.stderr) == (0, "")
    samples = open_bundle(SHIPPED).manifest.samples
    found = dict(line.split(": ") for line in done.stdout.splitlines())
    assert list(found) == list(samples)
    if backend == "onnxruntime":
        assert list(found.values()) == answers


@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_one_sentence_says_so(name: str, backend: str) -> None:
    if not (reason := why_unavailable(backend)):
        pytest.skip(f"{backend} runs here; tests/gpu runs the example")
    done = example(name, SHIPPED, backend)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{backend} cannot run here: {reason}.\n"


@pytest.mark.parametrize("name", ["classify.py", "threads.py"])
def test_what_is_no_bundle_is_said_too(name: str, tmp_path: Path) -> None:
    done = example(name, tmp_path, "photo.png")
    assert done.returncode == 2 and "is not a bundle" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["classify.py", "threads.py", *ON_GPU])
def test_without_arguments_it_says_how_it_is_called(name: str) -> None:
    done = example(name)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"python examples/{name} BUNDLE" in done.stderr and "Traceback" not in done.stderr


def test_each_is_short_and_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = sorted(path for path in EXAMPLES.glob("*.py"))
    assert {path.name for path in programs} >= {"classify.py", "threads.py", *ON_GPU}
    for path in programs:
        assert f"[{path.name}]({path.name})" in table
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60
