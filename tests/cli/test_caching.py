"""`cache ls`, `cache clear` and `--no-cache`, over real builds in a cache of the test's own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from densenet_deploy.engine.cache import entries, kept_files
from tests.cli.conftest import Command
from tests.conftest import Finished

pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def filled(command: Command, tmp_path: Path, tiny_run: Finished, empty_cache: Path) -> Path:
    """A cache with two engines and a timing cache."""
    graph, options = tiny_run.directory / "fp32.onnx", ("--out", tmp_path / "o.plan", "-q")
    for batch in (("1,2,4",), ("1,1,1", "2,3,4")):
        profiles = [part for profile in batch for part in ("--batch", profile)]
        options = (*options, "--compute-capability", "8.6", "--tf32")
        assert command("build", graph, *profiles, *options).code == 0
    (empty_cache / "timing").mkdir()
    (empty_cache / "timing" / "11.4-NVIDIA-L4-8.9-13.0.cache").write_bytes(b"times")
    return empty_cache


def test_ls(command: Command, filled: Path) -> None:
    done = command("cache", "ls")
    assert done.code == 0, done.err
    newest, oldest = [line for line in done.out.splitlines() if line.startswith("fp32.onnx")]
    assert "1,1,1 and 2,3,4" in newest and "1,2,4" in oldest
    assert "tensorrt-rtx 1." in newest and " 8.6 " in newest and "tf32 true" in newest
    assert done.out.splitlines()[-1].startswith(f"{filled}: 2 engines (")
    assert done.out.endswith("1 file of measured or compiled kernels (0.00 MB)\n")
    told = json.loads(command("cache", "ls", "--json").out)
    assert told["cache"] == str(filled) and told["others"] == {"files": 1, "bytes": 5}
    sizes = [engine["bytes"] for engine in told["engines"]]
    assert sizes == [entry.size for entry in entries(filled)] and min(sizes) > 10_000
    assert told["engines"][0]["config"]["tf32"] is True
    assert told["engines"][0]["age_seconds"] < told["engines"][1]["age_seconds"]


def test_an_empty_cache(command: Command, empty_cache: Path) -> None:
    assert command("cache", "ls").out.startswith(f"{empty_cache}: 0 engines (0.00 MB)")
    assert command("cache", "clear").out.startswith(f"{empty_cache}: removed 0 engines")
    assert not empty_cache.exists(), "looking makes no folder"


def test_clear(command: Command, filled: Path) -> None:
    freed = sum(path.stat().st_size for path in filled.rglob("*") if path.is_file())
    done = command("cache", "clear")
    assert done.out == (
        f"{filled}: removed 2 engines and 1 file of measured or compiled kernels, "
        f"{freed / 1e6:.2f} MB\n"
    )
    assert entries(filled) == [] and kept_files(filled) == []


def test_clear_what_is_old(command: Command, filled: Path) -> None:
    old = entries(filled)[1].path
    past = time.time() - 3 * 86400
    os.utime(old, (past, past))
    assert json.loads(command("cache", "clear", "--older-than", 4, "--json").out)["engines"] == 0
    assert json.loads(command("cache", "clear", "--older-than", 2, "--json").out)["engines"] == 1
    assert not old.exists() and len(entries(filled)) == 1
    assert len(kept_files(filled)) == 1, "which is new"


def test_other_folders_of_the_cache_are_left_alone(command: Command, filled: Path) -> None:
    data = filled / "FashionMNIST" / "raw" / "images"
    data.parent.mkdir(parents=True)
    data.write_bytes(b"pixels")
    assert command("cache", "clear").code == 0
    assert data.read_bytes() == b"pixels"


def test_run_uses_the_cache(
    command: Command, tmp_path: Path, tiny_recipe: Path, tiny_run: Finished
) -> None:
    """Of the session: `tiny_run` has filled it."""
    done = command("run", tiny_recipe, "--out", tmp_path / "again", "-q")
    assert done.code == 0, done.err
    engines = [line for line in done.out.splitlines() if line.startswith("engine: ")]
    assert len(engines) == 2 and all(line.endswith(", from the build cache)") for line in engines)
    for name in ("fp32", "int8"):
        first, second = (
            folder / "engines" / f"tensorrt-rtx-{name}.plan"
            for folder in (tiny_run.directory, tmp_path / "again")
        )
        assert first.read_bytes() == second.read_bytes()


def test_run_without_the_cache(
    command: Command, tmp_path: Path, tiny_recipe: Path, empty_cache: Path
) -> None:
    done = command("run", tiny_recipe, "--out", tmp_path / "again", "-q", "--no-cache")
    assert done.code == 0, done.err
    assert done.out.count(", built)\n") == 2
    assert not empty_cache.exists()


def test_a_cache_that_cannot_be_made(
    command: Command, tmp_path: Path, tiny_run: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    options = ("--out", tmp_path / "o.plan", "-q")
    refusal = command("build", tiny_run.directory / "fp32.onnx", *options).refusal()
    assert "the cache folder" in refusal and "--no-cache" in refusal
