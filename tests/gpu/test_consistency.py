"""The self-consistency gate, the fallback and the examples on a device; skipped elsewhere."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import densenet_deploy
from densenet_deploy.bundle import Bundle
from densenet_deploy.consistency import check_bundle
from densenet_deploy.data import ASSETS, ImageSet
from densenet_deploy.recipe import PRECISIONS, Precision
from densenet_deploy.runtime import GPU_BACKENDS, runs
from densenet_deploy.runtime.fallback import open_with_fallback
from tests.gpu.conftest import why_no_engine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]  # engines are compiled here
ENGINES = ("tensorrt", "tensorrt-rtx")


def cases(backend: str, *values: object) -> object:
    reason = why_no_engine(backend)
    mark = pytest.mark.skipif(bool(reason), reason=f"{backend} cannot run here: {reason}")
    return pytest.param(backend, *values, marks=mark)


@pytest.mark.parametrize(
    "backend, precision",
    [cases(name, item) for name in GPU_BACKENDS for item in PRECISIONS if runs(name, item)],
)
def test_every_gpu_backend_is_consistent(
    bundle: Bundle, sample: tuple[ImageSet, ImageSet], backend: str, precision: Precision
) -> None:
    """Engines are compiled for this device where the bundle has none; nothing else may step in."""
    opener = partial(open_with_fallback, fallback=("rebuild",) if backend in ENGINES else ())
    (result,) = check_bundle(bundle, sample[1], [backend], [precision], opener=opener)
    assert result, result.summary()
    assert result.backend == backend
    skipped = {finding.rule for finding in result.findings if finding.skipped}
    assert skipped <= {"CUDA graph"}
    if backend == "tensorrt":
        assert not skipped


@pytest.mark.parametrize("backend", [cases(name) for name in ENGINES])
@pytest.mark.parametrize("name", ["embed_torch.py", "embed_pycuda.py"])
def test_the_examples_run_without_a_copy(backend: str, name: str) -> None:
    pytest.importorskip(name.removeprefix("embed_").removesuffix(".py"))
    root = Path(densenet_deploy.__file__).parents[1]
    program = root / "examples" / name
    command = [sys.executable, str(program), str(ASSETS / "bundle"), backend]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=1000)
    assert done.returncode == 0, done.stderr
    # After what is said of the rebuild: the shipped bundle has no engines
    assert done.stdout.splitlines()[-1] == "classes of the golden images: 9 2 1 1"
