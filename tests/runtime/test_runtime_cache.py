"""Where kernels that were compiled on a device are kept, and what if they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.engine.cache import default_cache
from densenet_deploy.runtime.runner import Array
from densenet_deploy.runtime.runtime_cache import cache_file
from tests.bindings.surface import Surface
from tests.runtime.conftest import Open, close


def test_engine_version_gpu_and_driver_have_each_their_own_file() -> None:
    made_by = ("1.7.1.116", "8.9", "13.0")
    files = {cache_file(b"plan", *made_by), cache_file(b"other plan", *made_by)}
    for index in range(len(made_by)):
        files.add(cache_file(b"plan", *made_by[:index], "1", *made_by[index + 1 :]))
    assert len(files) == 5 and {file.parent for file in files} == {default_cache() / "runtime"}
    assert cache_file(b"plan", "1", "23") != cache_file(b"plan", "12", "3")


def test_a_cache_that_cannot_be_written_is_no_error(
    opened: Open,
    surface: Surface,
    images: Array,
    expected: Array,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if surface.backend == "tensorrt":
        pytest.skip("TensorRT compiles no kernels on the device")
    (tmp_path / "densenet-deploy").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="is not kept"), opened() as runner:
        close(runner.logits(images[:3]), expected[:3])
