"""Exit codes and standard error, as a shell sees them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import densenet_deploy
from densenet_deploy import errors
from densenet_deploy.cli import app, use
from densenet_deploy.errors import CheckFailedError, DeployError
from tests.cli.conftest import Command

COMMANDS = [
    "run",
    "export",
    "quantize",
    "build",
    "verify",
    "bench",
    "report",
    "predict",
    "train",
    "models",
    "doctor",
]


def shell(*arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "densenet_deploy.cli.app", *map(str, arguments)]
    root = Path(densenet_deploy.__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or root)


def test_success_is_0() -> None:
    done = shell("models", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "densenet121" in json.loads(done.stdout)


def test_failed_check_is_1(damaged: Path) -> None:
    manifest = damaged / "manifest.json"
    table = json.loads(manifest.read_text())
    table["recipe"]["verify"]["tolerances"]["fp16"]["max_abs"] = 1e-9
    manifest.write_text(json.dumps(table))
    options = ("--backend", "onnxruntime", "--precision", "fp16", "--precision", "fp32", "--quiet")
    done = shell("verify", damaged, *options)
    assert (done.returncode, done.stderr) == (1, "")
    assert "fp32 on onnxruntime" in done.stdout and "pass\n" in done.stdout
    assert "FAIL: max |d logit|" in done.stdout and "allowed 1e-09" in done.stdout


def test_bad_input_is_2_in_one_sentence(tmp_path: Path) -> None:
    done = shell("bench", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path} is not a bundle: it has no manifest.json. "
        "Make one with: densenet-deploy run.\n"
    )


def test_the_installed_script_is_this_program() -> None:
    script = Path(sys.executable).with_name("densenet-deploy")
    if not script.exists():
        pytest.skip(f"no {script}: the package is not installed here")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"densenet-deploy {densenet_deploy.__version__}\n"


@pytest.mark.parametrize("help_option", ["--help", "-h"])
def test_help_names_every_command(command: Command, help_option: str) -> None:
    done = command(help_option)
    assert done.code == 0
    assert all(f" {name} " in done.out for name in COMMANDS)


def test_nothing_asked_shows_the_help(command: Command) -> None:
    done = command()
    assert done.code == 2
    assert "bench" in done.out + done.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert done.code == 0
    assert done.out.splitlines()[2].strip()


@pytest.mark.parametrize(
    "words", [*([name] for name in COMMANDS), ["doctor", "why-slow"], ["cache", "clear"]]
)
def test_help_explains_every_option_in_words(command: Command, words: list[str]) -> None:
    options = command(*words, "--help").out.partition("Options:\n")[2]
    assert "<list[" not in options and "range>" not in options, "a type of Python's"
    entries = re.split(r"\n  (?=-)", re.sub(r"\[.*?\]", "", options, flags=re.DOTALL))
    assert [entry for entry in entries if not re.search(r"[\w`][.)]", entry)] == [], "no sentence"


@pytest.mark.parametrize(
    "arguments", [["fly"], ["bench", "--fast"], ["build"], ["export", "--target", "tpu"]]
)
def test_usage_errors_are_2(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage:" in done.err and "Traceback" not in done.err


def test_a_place_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "below"
    message = command("report", use.SHIPPED, "--out", out).refusal()
    assert str(tmp_path / "file") in message
    assert "Not a directory" in message or "File exists" in message


def test_what_is_not_installed_is_named_with_its_extra(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in list(sys.modules):
        if name.startswith(("densenet_deploy.pipeline", "densenet_deploy.assemble")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(densenet_deploy, "pipeline", raising=False)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    message = command("export", "--out", tmp_path / "out").refusal()
    assert "needs onnx_ir, which is not installed" in message
    assert "pip install 'densenet-deploy[export]'" in message


def test_a_bug_of_ours_is_not_dressed_up(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a user can act on becomes a sentence; anything else keeps its traceback."""
    # our own module is missing
    monkeypatch.setitem(sys.modules, "densenet_deploy.engine.build", None)
    monkeypatch.delattr(densenet_deploy.engine, "build", raising=False)
    with pytest.raises(ImportError):
        command("build", "x.onnx", "--out", "y")


@pytest.mark.parametrize("kind", [k for k in vars(errors).values() if isinstance(k, type)])
def test_exit_codes_of_the_error_tree(kind: type[Exception]) -> None:
    if issubclass(kind, DeployError):
        assert kind.exit_code == (1 if kind is CheckFailedError else 2)


def test_ctrl_c_is_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", interrupted)
    done = command("models")
    assert (done.code, done.out, done.err) == (130, "", "")
