"""Options of execution providers, against the providers' own files; and what they need."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path

import pytest

from densenet_deploy import _tensorrt
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.runtime import providers
from densenet_deploy.runtime.providers import Shapes, cuda_options, tensorrt_options

SHAPES = Shapes("images", (3, 224, 224), (1, 8, 64))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / "cache" / name)
    path = tmp_path / "fp32.onnx"
    path.write_bytes(b"weights")
    return path


def library(provider: str) -> bytes:
    """The file of a provider in the installed wheel."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec and spec.origin
    path = Path(spec.origin).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if not path.exists():
        pytest.skip(f"this onnxruntime has no {provider} provider")
    return path.read_bytes()


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_the_cuda_provider_knows_every_option(cuda_graph: bool) -> None:
    options = cuda_options(RunConfig(device=2, cuda_graph=cuda_graph))
    assert options["device_id"] == "2" and options["use_tf32"] == "0"
    assert options["enable_cuda_graph"] == ("1" if cuda_graph else "0")
    content = library("cuda")
    assert [name for name in options if name.encode() not in content] == []
    assert b"enable_cuda_graphs" not in content  # the scan does not find just anything


def test_the_tensorrt_provider_knows_every_option(model: Path) -> None:
    options = tensorrt_options(model, RunConfig(device=1), SHAPES)
    content = library("tensorrt")
    assert [name for name in options if name.encode() not in content] == []
    assert b"trt_tf32" not in content  # else the variable would not be needed
    assert options["device_id"] == "1" and options["trt_cuda_graph_enable"] == "1"
    assert options["trt_profile_min_shapes"] == "images:1x3x224x224"
    assert options["trt_profile_opt_shapes"] == "images:8x3x224x224"
    assert options["trt_profile_max_shapes"] == "images:64x3x224x224"


def test_no_provider_is_told_a_precision(model: Path) -> None:
    names = {*cuda_options(RunConfig()), *tensorrt_options(model, RunConfig(), SHAPES)}
    assert not [name for name in names if "fp16" in name or "int8" in name or "bf16" in name]


def test_other_weights_of_the_same_name_get_another_engine(model: Path) -> None:
    """ONNX Runtime names engines after the file's name and its nodes."""
    folder = tensorrt_options(model, RunConfig(), SHAPES)["trt_engine_cache_path"]
    assert Path(folder).is_dir() and Path(folder).is_absolute()
    assert tensorrt_options(model, RunConfig(), SHAPES)["trt_engine_cache_path"] == folder
    model.write_bytes(b"others!")
    changed = tensorrt_options(model, RunConfig(), SHAPES)
    assert changed["trt_engine_cache_path"] != folder
    assert Path(changed["trt_timing_cache_path"]).is_dir()


def test_nothing_is_kept_where_that_is_not_wanted(model: Path, tmp_path: Path) -> None:
    options = tensorrt_options(model, RunConfig(runtime_cache=False, cuda_graph=False), None)
    assert options == {
        "device_id": "0",
        "trt_cuda_graph_enable": "0",
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
    }
    assert not (tmp_path / "cache").exists()


def test_the_provider_says_which_tensorrt_it_is_linked_with() -> None:
    """Against the dynamic section, which the loader itself reads."""
    import subprocess

    library("tensorrt")
    spec = importlib.util.find_spec("onnxruntime")
    assert spec and spec.origin
    path = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    done = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    needed = {line.split("[")[1][:-1] for line in done.stdout.splitlines() if "(NEEDED)" in line}
    linked = providers.linked_tensorrt()
    assert linked == sorted(name for name in needed if name.startswith("libnv"))
    if version("onnxruntime-gpu").startswith("1.31."):
        assert linked == ["libnvinfer.so.10", "libnvonnxparser.so.10"]


def test_why_tensorrt_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tensorrt, "open_library", lambda name: False)
    monkeypatch.setattr(providers, "linked_tensorrt", lambda: ["libnvinfer.so.10"])
    monkeypatch.setattr(providers, "package_version", lambda name: "")
    expected = "it needs TensorRT 10 (libnvinfer.so.10), which is not installed"
    assert providers.why_no_tensorrt() == expected
    versions = {"tensorrt-cu13": "11.4.0.106"}
    monkeypatch.setattr(providers, "package_version", lambda name: versions.get(name, ""))
    assert providers.why_no_tensorrt() == (
        "it needs TensorRT 10 (libnvinfer.so.10), and 11.4.0.106 is installed: run it from an "
        "environment of its own with bench --python"
    )
    monkeypatch.setattr(providers, "linked_tensorrt", list)
    assert "has no TensorRT execution provider" in providers.why_no_tensorrt()
    monkeypatch.setattr(providers, "linked_tensorrt", lambda: ["libnvinfer.so.10"])
    monkeypatch.setattr(_tensorrt, "open_library", lambda name: True)
    assert providers.why_no_tensorrt() == ""


def test_a_library_is_found_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, compiled where only the package `tensorrt_libs` is."""
    import subprocess
    import sys

    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('not to be imported')")
    name = "libdensenet_deploy_test.so.10"
    assert not _tensorrt.open_library(name)
    source = tmp_path / "library.c"
    source.write_text("int answer(void) { return 42; }")
    command = ["cc", "-shared", "-fPIC", str(source), "-o", str(folder / name)]
    subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt_libs", raising=False)
    assert _tensorrt.open_library(name)
    assert not _tensorrt.open_library("libnot_there.so.10")
