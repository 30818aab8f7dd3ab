"""`tune` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command


def test_tune_prints_writes_and_draws(command: Command, tiny_recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    out = tmp_path / "tuned"
    done = command("tune", tiny_recipe, "--target", "tensorrt-rtx", "--out", out, "-q")
    assert done.code == 0, done.err
    assert "equalized" in done.out and "after-bn-relu" in done.out and "chosen: int8" in done.out
    record = json.loads((out / "tune.json").read_text())
    assert record["target"] == "tensorrt-rtx" and len(record["policies"]) == 4
    assert (out / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_the_shipped_sample_has_no_images_to_spare(command: Command, tmp_path: Path) -> None:
    done = command("tune", "fashion-mnist", "--out", tmp_path / "tuned", "-q")
    assert done.code == 2
    assert "no training images are left" in done.err and "--full" in done.err
    assert not (tmp_path / "tuned").exists()
