"""Every route to an engine's layers, over an engine that TensorRT-RTX really built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from densenet_deploy import _cuda
from densenet_deploy.engine import cache, inspected
from densenet_deploy.engine.build import build_widest
from densenet_deploy.engine.inspected import inspect_engine, is_engine
from densenet_deploy.engine.kernels import EngineLayers
from densenet_deploy.engine.layers import parse_build_log
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import BuildError
from tests.engine.test_inspector import json_of_log
from tests.engine.test_layers import Block, build_log, engine

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A real engine file, its log and the build cache that knows it."""
    folder = tmp_path_factory.mktemp("built")
    config = BuildConfig("tensorrt-rtx", ((1, 2, 4),), ("8.9",), ())
    model = Block("tensor", "n").model.SerializeToString()
    made = build_widest(model, config, log=folder / "log", cache=folder / "cache")
    (folder / "block.plan").write_bytes(made.plan)
    return folder / "block.plan", folder / "log", folder / "cache"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without a GPU, with an empty build cache."""
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "no CUDA device")
    monkeypatch.setattr(inspected, "default_cache", lambda: tmp_path / "empty")


def test_by_the_log_that_is_given(built: tuple[Path, Path, Path]) -> None:
    plan, log, _ = built
    found = inspect_engine(plan, log)
    assert found.layers == parse_build_log(log.read_text(encoding="utf-8")).at_batch(1)
    assert found.source == f"the build log {log}; sizes of one image"
    assert inspect_engine(log) == found
    assert found.layers.bytes_in == engine().bytes_in
    assert found.summary().endswith(f"layers by {found.source}")


def test_by_the_log_in_the_build_cache(
    built: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, log, kept = built
    monkeypatch.setattr(inspected, "default_cache", lambda: kept)
    found = inspect_engine(plan)
    assert found.layers == inspect_engine(log).layers
    assert found.source.startswith("the log that the build cache has of this engine")
    changed = plan.with_name("changed.plan")
    changed.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(BuildError, match="cannot be read here"):
        inspect_engine(changed)
    assert cache.log_of(changed.read_bytes(), kept) is None


def test_the_profile_is_the_one_asked_for(
    built: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every route that is open without a GPU; this engine has profile 0 alone."""
    plan, log, kept = built
    monkeypatch.setattr(inspected, "default_cache", lambda: kept)
    exported = tmp_path / "layers.json"
    exported.write_text(json_of_log(build_log(), separate=True), encoding="utf-8")
    for path in (plan, log, exported):
        assert inspect_engine(path, profile=0)
        with pytest.raises(BuildError, match="the engine has no optimization profile 1"):
            inspect_engine(path, profile=1)


def test_without_a_route_the_error_says_how_to_open_one(built: tuple[Path, Path, Path]) -> None:
    plan, *_ = built
    with pytest.raises(BuildError) as caught:
        inspect_engine(plan)
    said = str(caught.value)
    assert said.startswith(f"the layers of {plan} cannot be read here: the engine inspector cannot")
    assert "no CUDA device; expected its GPU, or its build log. Build it again with" in said
    assert "--log build.log" in said


def test_by_the_inspector_where_there_is_a_gpu(
    built: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bytes, str, int]] = []

    def read(plan: bytes, backend: str, device: int = 0, profile: int = 0) -> EngineLayers:
        asked.append((plan[:4], backend, profile))
        return engine()

    monkeypatch.setattr(inspected, "read_engine", read)
    plan, *_ = built
    found = inspect_engine(plan, profile=1)
    assert found.layers == engine() and found.source.startswith("the engine inspector")
    other = plan.with_suffix(".engine")
    other.write_bytes(b"ftrt and more")
    inspect_engine(other)
    assert asked == [(b"vtrt", "tensorrt-rtx", 1), (b"ftrt", "tensorrt", 0)]


def test_by_the_inspectors_json(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json_of_log(build_log(), separate=True), encoding="utf-8")
    found = inspect_engine(path)
    assert found.layers == engine() and found.source == f"the engine inspector's JSON {path}"
    told = json.loads(json.dumps(found.to_dict()))
    assert told["source"] == found.source and told["bytes_in"] == engine().bytes_in
    assert [one["name"] for one in told["layers"]] == [one.name for one in engine().layers]
    lines = found.kernels().splitlines()
    assert len(lines) == len(engine().layers)
    assert lines[1].split() == [
        *("features.denseblock1.denselayer1", "convolution", "Int8>Half", "0.018", "MB"),
        *("conv1,", "r.q.dq,", "conv1.weight.dq,", "r2"),
    ]


def test_what_is_no_engine(tmp_path: Path) -> None:
    headed = tmp_path / "model.engine"
    headed.write_bytes(b'\x20\0\0\0{"task": "classify"}vtrt')
    with pytest.raises(BuildError, match="starts with another program's header"):
        inspect_engine(headed)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\xff\x00")
    assert not is_engine(picture)
    with pytest.raises(BuildError, match="has no layer list; expected an engine, its build log"):
        inspect_engine(picture)


def test_of_a_directory_the_engines_are_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"is a directory; .* Name a file in it\.$"):
        inspect_engine(tmp_path)
    (tmp_path / "engines").mkdir()
    for name in ("engines/tensorrt-rtx-int8.plan", "int8.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(BuildError, match=r"in it: \S+/engines/tensorrt-rtx-int8.plan, \S+/int8"):
        inspect_engine(tmp_path)
