"""The build cache: keys over everything, entries whole or not used, real builds through it."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_deploy import _cuda, errors
from densenet_deploy.engine import build, cache
from densenet_deploy.engine.build import build_widest
from densenet_deploy.engine.cache import (
    clear,
    default_cache,
    entries,
    find,
    identify,
    kept_files,
    key_of,
    log_of,
    store,
    timing_file,
)
from densenet_deploy.engine_config import BuildConfig
from tests.engine.test_build import CONFIG, conv_relu, matrix_product

GPU = {"gpu": "NVIDIA L4", "compute_capability": "8.9", "driver": "13.0"}
OTHER_VALUES: dict[str, Any] = {
    "backend": "tensorrt",
    "profiles": ((1, 8, 64), (1, 1, 1)),
    "compute_capabilities": ("8.6",),
    "optional_compute_capabilities": (),
    "workspace_mib": 1,
    "optimization_level": 2,
    "timing_cache": False,
    "hardware_compatibility": "ampere-plus",
    "version_compatible": True,
    "tf32": True,
    "profiling_verbosity": "none",
    "weights": "stripped",
}


def key(
    model: bytes | Path = b"graph",
    config: BuildConfig = BuildConfig(),  # noqa: B008
    version: str = "1.7.1.116",
    target: dict[str, str] = GPU,
) -> str:
    return key_of(identify(model, config, version, target))


def with_weights_beside(folder: Path, name: str = "weights.bin") -> Path:
    """A model whose weights lie in a file of its folder, as onnx writes it."""
    model = onnx.load_model_from_string(conv_relu())
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)
    return path


# ------------------------------------------------------------------ the key


def test_equal_requests_have_equal_keys(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"graph")
    assert key() == key(tmp_path / "a.onnx") == key(config=BuildConfig()) and len(key()) == 64


def test_any_field_of_the_configuration_changes_the_key() -> None:
    assert set(OTHER_VALUES) == {field.name for field in dataclasses.fields(BuildConfig)}
    keys = {
        key(config=dataclasses.replace(BuildConfig(), **{n: v})) for n, v in OTHER_VALUES.items()
    }
    assert len(keys | {key()}) == len(OTHER_VALUES) + 1


@given(st.binary(min_size=1, max_size=200), st.data())
def test_any_byte_of_the_graph_changes_the_key(graph: bytes, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(graph) - 1))
    other = bytearray(graph)
    other[index] ^= data.draw(st.integers(1, 255))
    assert key(graph) != key(bytes(other))
    assert key(graph) != key(graph[:index] + graph[index + 1 :])


@settings(max_examples=50)
@given(st.sampled_from(["w", "weights.bin", "folder/w.data", "w" * 130, "gewichte-ä"]), st.data())
def test_any_byte_of_a_weight_file_changes_the_key(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / name).parent.mkdir(exist_ok=True)
    path = with_weights_beside(folder, name)
    before, weights = key(path), bytearray((folder / name).read_bytes())
    index = data.draw(st.integers(0, len(weights) - 1))
    weights[index] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(weights)
    changed = key(path)
    (folder / name).unlink()
    assert len({before, changed, key(path)}) == 3
    assert path.read_bytes() and key(path.read_bytes()) == key(path), "none lies beside bytes"


@given(st.text(max_size=20), st.text(max_size=20))
def test_version_and_target_change_the_key(one: str, two: str) -> None:
    assert (key(version=one) == key(version=two)) == (one == two)
    for part in GPU:
        same = key(target=GPU | {part: one}) == key(target=GPU | {part: two})
        assert same == (one == two)
    assert key(target={"gpu": one}, version=two) != key(target={"gpu": two}, version=one) or (
        one == two
    )


def test_another_version_of_this_package_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(cache, "__version__", "0.0.0")
    assert key() != before
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert len({before, key()}) == 2


# ------------------------------------------------------------------ entries


@pytest.fixture
def identity() -> dict[str, Any]:
    return identify(b"graph", BuildConfig(), "1.7.1.116", {})


def test_what_is_stored_is_found(tmp_path: Path, identity: dict[str, Any]) -> None:
    assert find(tmp_path, identity) is None and entries(tmp_path) == []
    store(tmp_path, identity, "model.onnx", b"plan", b"the log", ("8.6",))
    found = find(tmp_path, identity)
    assert found is not None
    entry, plan, log = found
    assert (plan, log, entry.key) == (b"plan", "the log", key_of(identity))
    assert (entry.record.name, entry.record.compute_capabilities) == ("model.onnx", ("8.6",))
    assert entries(tmp_path) == [entry] and 0 <= entry.age < 60
    other = identify(b"another", BuildConfig(), "1.7.1.116", {})
    assert find(tmp_path, other) is None
    assert log_of(b"plan", tmp_path) == "the log" and log_of(b"other", tmp_path) is None


@settings(max_examples=150)
@given(st.data())
def test_no_damaged_entry_is_used(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any byte of any file, changed, cut off or added: removed, or what was stored after all."""
    folder, identity = tmp_path_factory.mktemp("c"), identify(b"graph", BuildConfig(), "1", {})
    store(folder, identity, "m", b"the plan" * 9, b"the log" * 9, ("8.6",))
    before = find(folder, identity)
    assert before is not None
    victim = data.draw(st.sampled_from(sorted(before[0].path.iterdir())))
    content = bytearray(victim.read_bytes())
    index = data.draw(st.integers(0, 10_000)) % len(content)
    match data.draw(st.sampled_from(["change", "cut", "add", "remove"])):
        case "change":
            content[index] ^= data.draw(st.integers(1, 255))
        case "cut":
            del content[index:]
        case "add":
            content.insert(index, data.draw(st.integers(0, 255)))
        case _:
            victim.unlink()
    if victim.exists():
        victim.write_bytes(content)
    after = find(folder, identity)
    if after is None:
        assert not before[0].path.exists(), "it was removed"
    else:
        assert victim.name == cache.RECORD and after == before, "white space of the record"


def test_a_record_of_another_identity_is_not_believed(tmp_path: Path) -> None:
    """An entry that was copied to another name, whole as it is."""
    one, two = (identify(b"graph", BuildConfig(), version, {}) for version in ("1", "2"))
    store(tmp_path, one, "m", b"plan", b"log", ())
    folder = tmp_path / "engines"
    (folder / key_of(one)).rename(folder / key_of(two))
    assert find(tmp_path, two) is None and entries(tmp_path) == []


def test_the_first_of_two_is_kept(tmp_path: Path, identity: dict[str, Any]) -> None:
    store(tmp_path, identity, "m", b"first", b"log", ())
    store(tmp_path, identity, "m", b"second", b"log", ())
    found = find(tmp_path, identity)
    assert found is not None and found[1] == b"first"
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [key_of(identity)]


def test_entries_are_listed_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.time()
    for age, version in ((50, "1"), (10, "2"), (90, "3")):
        monkeypatch.setattr(time, "time", lambda age=age: clock - age)
        store(tmp_path, identify(b"graph", BuildConfig(), version, {}), "m", b"plan", b"", ())
    monkeypatch.setattr(time, "time", lambda: clock)
    assert [entry.record.identity["version"] for entry in entries(tmp_path)] == ["2", "1", "3"]
    assert [round(entry.age) for entry in entries(tmp_path)] == [10, 50, 90]


def test_clear_removes_damaged_and_abandoned_entries(
    tmp_path: Path, identity: dict[str, Any]
) -> None:
    store(tmp_path, identity, "m", b"plan", b"log", ())
    engines = tmp_path / "engines"
    (engines / key_of(identity) / "record.json").write_text("{")
    for name, age in ((".abandoned", 7200), (".being-written", 0)):
        (engines / name).mkdir()
        os.utime(engines / name, (time.time() - age,) * 2)
    kept = tmp_path / "runtime" / "L4" / "kernels.bin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kernels")
    assert kept_files(tmp_path) == [kept]
    assert clear(tmp_path).engines == 1
    assert [path.name for path in engines.iterdir()] == [".being-written"]
    assert kept_files(tmp_path) == []


def test_the_user_s_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "densenet-deploy"


def test_kernel_times_are_kept_for_each_gpu_and_version(tmp_path: Path) -> None:
    names = {
        timing_file(tmp_path, version, GPU | {"gpu": gpu}).name
        for version in ("10.0.1", "11.4.0.106")
        for gpu in ("NVIDIA L4", "NVIDIA H100 80GB HBM3", "../evil/../../GPU")
    }
    assert len(names) == 6 and all("/" not in name for name in names)


# ------------------------------------------------------------------ builds


@pytest.fixture(scope="module", autouse=True)
def needs_builder() -> None:
    pytest.importorskip("tensorrt_rtx")


def test_a_second_build_is_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, log = tmp_path / "cache", tmp_path / "deep" / "log"
    plain = build_widest(conv_relu(), CONFIG)
    first = build_widest(conv_relu(), CONFIG, cache=folder)
    monkeypatch.setattr(build, "_compile", None)  # the builder is not called again
    second = build_widest(conv_relu(), CONFIG, log=log, cache=folder)
    assert first.plan == second.plan == plain.plan
    assert (first.cached, second.cached) == (False, True)
    assert second == dataclasses.replace(first, cached=True)
    assert "verbose: Layers:\n" in log.read_text(encoding="utf-8")
    assert log_of(first.plan, folder) == log.read_text(encoding="utf-8")


def test_nothing_is_looked_up_or_kept_without_a_cache(own_cache: Path) -> None:
    before = sorted(own_cache.rglob("*"))
    assert not build_widest(conv_relu(), CONFIG).cached
    assert sorted(own_cache.rglob("*")) == before


def test_a_damaged_engine_is_built_again(tmp_path: Path) -> None:
    first = build_widest(conv_relu(), CONFIG, cache=tmp_path)
    plan = entries(tmp_path)[0].path / cache.PLAN
    plan.write_bytes(first.plan[:-1])
    again = build_widest(conv_relu(), CONFIG, cache=tmp_path)
    assert (again.cached, again.plan) == (False, first.plan)
    assert build_widest(conv_relu(), CONFIG, cache=tmp_path).cached


def test_other_weights_are_another_engine(tmp_path: Path) -> None:
    path = with_weights_beside(tmp_path)
    first = build_widest(path, CONFIG, cache=tmp_path / "cache")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    other = build_widest(path, CONFIG, cache=tmp_path / "cache")
    assert not other.cached and other.plan != first.plan


def test_the_optional_targets_are_found_again(tmp_path: Path) -> None:
    for model in (matrix_product(half=True), matrix_product(half=False)):
        first, second = (build_widest(model, CONFIG, cache=tmp_path) for _ in range(2))
        assert second.cached and first.compute_capabilities == second.compute_capabilities
    assert len(entries(tmp_path)) == 2


def test_a_build_that_fails_leaves_no_entry(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(errors.BuildError, match="parse"):
        build_widest(b"not an onnx file", CONFIG, log=log, cache=tmp_path)
    assert entries(tmp_path) == [] and "error: " in log.read_text(encoding="utf-8")
    with pytest.raises(errors.GraphError, match="no file"):
        build_widest(tmp_path / "absent.onnx", CONFIG, cache=tmp_path)


def test_a_model_that_changes_during_the_build_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv_relu())

    def overwrite(items: Any, *_: Any, **__: Any) -> Any:
        for item in items:
            path.write_bytes(conv_relu(half=True))
            yield item

    assert build_widest(path, CONFIG, overwrite, cache=tmp_path).plan.startswith(b"vtrt")
    assert entries(tmp_path) == []


def test_two_at_once_both_succeed(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    def wait_first(items: Any, *_: Any, **__: Any) -> Any:
        barrier.wait(60)  # neither looks into the cache when the other has filled it
        yield from items

    def one(_: int) -> build.Built:
        return build_widest(conv_relu(), CONFIG, wait_first, cache=tmp_path)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, range(2))
    assert first == second and not first.cached
    assert len(entries(tmp_path)) == 1 and build_widest(conv_relu(), CONFIG, cache=tmp_path).cached


def test_two_processes_at_once_both_succeed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from densenet_deploy.recipe import BuildConfig;"
        "from densenet_deploy.engine.build import build_widest as b;"
        "c = BuildConfig(profiles=((1, 2, 4),), compute_capabilities=('8.6',));"
        "print(len(b(Path(sys.argv[1]), c, cache=Path(sys.argv[2])).plan))"
    )
    (tmp_path / "m.onnx").write_bytes(conv_relu())
    command = [sys.executable, "-c", program, str(tmp_path / "m.onnx"), str(tmp_path)]
    root = Path(errors.__file__).parents[1]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) for _ in range(2)]
    sizes = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(sizes) == 1 and len(entries(tmp_path)) == 1


def test_tensorrt_compiles_for_the_gpu_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two different ones in a machine; and a cache that takes no engine costs none."""
    monkeypatch.setattr(_cuda, "device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(_cuda, "compute_capability", lambda index: ("8.9", "9.0")[index])
    monkeypatch.setattr(_cuda, "driver_version", lambda: "13.0")
    monkeypatch.setattr(build, "engine_version", lambda backend: "11.4.0.106")
    devices: list[int] = []

    def compile_(model: Any, config: Any, track: Any, log: Path, *more: Any) -> tuple[bytes, str]:
        devices.append(more[-1])
        log.write_text("the log", encoding="utf-8")
        return b"plan", ""

    monkeypatch.setattr(build, "_compile", compile_)
    config = BuildConfig("tensorrt")
    built = build_widest(b"graph", config, cache=tmp_path, device=1)
    assert (devices, built.compute_capabilities) == ([1], ("9.0",))
    assert entries(tmp_path)[0].record.identity["target"]["gpu"] == "GPU 1"

    def full(*arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(cache, "store", full)
    with pytest.warns(UserWarning, match="is not kept in .*: No space left"):
        assert build_widest(b"graph", config, cache=tmp_path).plan == b"plan"


def test_tensorrt_is_bound_to_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: what it would say is given, and so is what it would compile."""
    facts = {"device_name": "NVIDIA L4", "compute_capability": "8.9"}
    for name, value in facts.items():
        monkeypatch.setattr(_cuda, name, lambda index, value=value: value)
    monkeypatch.setattr(_cuda, "driver_version", lambda: "13.0")
    monkeypatch.setattr(build, "engine_version", lambda backend: "11.4.0.106")
    asked: list[Any] = []

    def compile_(
        model: Any, config: Any, track: Any, log: Path, timing: Path | None, device: int
    ) -> tuple[bytes, str]:
        asked.append(timing)
        log.write_text("the log", encoding="utf-8")
        return b"plan", "missed" if timing else ""

    monkeypatch.setattr(build, "_compile", compile_)
    config = BuildConfig("tensorrt")
    first, second = (build_widest(b"graph", config, cache=tmp_path) for _ in range(2))
    assert (first.compute_capabilities, first.timing_cache, first.cached) == (
        ("8.9",),
        "missed",
        False,
    )
    assert (second.plan, second.timing_cache, second.cached) == (b"plan", "", True)
    assert asked == [tmp_path / "timing" / "11.4.0.106-NVIDIA-L4-8.9-13.0.cache"]
    without = dataclasses.replace(config, timing_cache=False)
    assert build_widest(b"graph", without, cache=tmp_path).timing_cache == "" and asked[1:] == [
        None
    ]
    monkeypatch.setattr(_cuda, "driver_version", lambda: "13.1")
    assert not build_widest(b"graph", config, cache=tmp_path).cached
    record = json.loads((entries(tmp_path)[0].path / cache.RECORD).read_text())
    assert record["identity"]["target"] == GPU | {"driver": "13.1"}
    assert gzip.decompress((entries(tmp_path)[0].path / cache.LOG).read_bytes()) == b"the log"
