"""Other interpreters: a real environment of its own, and everything that is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import densenet_deploy
from densenet_deploy import interpreter
from densenet_deploy.bench import bench
from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import BenchConfig
from densenet_deploy.results import Skipped

QUICK = BenchConfig(batch_sizes=(1,), seconds=0.02, threads=1)
CHECKOUT = Path(densenet_deploy.__file__).parents[1]


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new virtual environment with nothing in it."""
    folder = tmp_path_factory.mktemp("environments") / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of one with this one's libraries, and a package of its own that this one lacks."""
    folder = tmp_path_factory.mktemp("environments") / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(str(Path(np.__file__).parents[1]))
    distribution = packages / "openvino-1.2.3.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: openvino\nVersion: 1.2.3")
    return folder / "bin" / "python"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program that a test writes; it calls itself a Python."""
    path = tmp_path / "python"
    path.touch(mode=0o755)
    return path


def test_it_is_asked_what_can_run_and_what_is_installed_there(other: Path) -> None:
    found = interpreter.inspect(other, ("onnxruntime", "tensorrt"))
    assert found.python == str(other)  # the link is the environment: it is not followed
    assert found.reasons["onnxruntime"] == "" and len(found.reasons["tensorrt"]) > 10
    assert found.description["packages"]["openvino"] == "1.2.3"
    assert found.description["packages"]["numpy"] == np.__version__


def test_it_measures_there(other: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that interpreter and no other: it says so itself, from inside the process."""
    started = []
    real = subprocess.Popen

    def spy(command: list[str], **options: object) -> object:
        started.append(command[0])
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", spy)
    pythons = {"onnxruntime": str(other)}
    records = bench(bundle, ["onnxruntime", "openvino"], ["fp32"], QUICK, pythons=pythons)
    assert [record.backend for record in records] == ["onnxruntime", "openvino"]
    assert started == [str(other), sys.executable]


def test_a_relative_path_is_found_from_here(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(other.parent)
    assert interpreter.inspect(Path("python"), ()).python == str(other)


def test_what_a_backend_refuses_is_told_and_the_others_go_on(bundle: Bundle, script: Path) -> None:
    script.write_text("#!/bin/sh\nexit 3\n")
    refused: list[Skipped] = []
    backends = ["openvino", "onnxruntime"]
    pythons = {"openvino": str(script)}
    records = bench(bundle, backends, ["fp32"], QUICK, pythons=pythons, refused=refused.append)
    assert [record.backend for record in records] == ["onnxruntime"]
    assert refused == [Skipped("openvino", "fp32: the process running fp32 on openvino died.")]
    with pytest.raises(BackendError, match="fp32 on openvino died"):
        bench(bundle, backends, ["fp32"], QUICK, pythons=pythons)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no does not exist; expected a Python interpreter"):
        interpreter.inspect(tmp_path / "no", ())
    with pytest.raises(BackendError, match="does not exist"):
        interpreter.inspect(tmp_path, ())


@pytest.mark.parametrize(
    "content, message",
    [
        ("#!/bin/sh\necho hello\n", "is not a Python that runs: hello"),
        ("#!/bin/sh\necho trouble >&2; exit 1\n", "is not a Python that runs: trouble"),
        ("#!/bin/sh\nexit 7\n", "is not a Python that runs: it exits with 7"),
        ("#!/bin/sh\nkill -9 $$\n", "is not a Python that runs: it exits with -9"),
        ('#!/bin/sh\necho \'[[3, 10, 1], "", ""]\'\n', "is Python 3.10.1; expected 3.11 or newer"),
        ("not a program", "does not run: .*Exec format error"),
        ("#!/no/such/shell\n", "does not run: "),
    ],
)
def test_what_is_no_python(script: Path, content: str, message: str) -> None:
    script.write_text(content)
    with pytest.raises(BackendError, match=message) as caught:
        interpreter.inspect(script, ())
    assert str(script) in str(caught.value) and "\n" not in str(caught.value)


def test_one_that_does_not_answer(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(interpreter, "_PATIENCE_SECONDS", 0.2)
    with pytest.raises(BackendError, match=r"does not run: .* timed out"):
        interpreter.inspect(script, ())


def test_one_that_dies_later(script: Path) -> None:
    version = densenet_deploy.__version__
    answer = f'[[3, 11, 0], "{version}", ""]'
    script.write_text(f"#!/bin/sh\ncase $1 in -c) echo '{answer}';; *) kill -9 $$;; esac\n")
    with pytest.raises(BackendError, match=r"the process running the inspection of .* died"):
        interpreter.inspect(script, ())


def test_an_environment_without_libraries_uses_the_checkout_and_says_what_it_lacks(
    empty: Path,
) -> None:
    with pytest.raises(BackendError) as caught:
        interpreter.inspect(empty, ())
    message = str(caught.value)
    assert f"the environment of {empty} cannot load densenet-deploy: ModuleNotFoundError" in message
    assert f"{empty} -m pip install densenet-deploy=={densenet_deploy.__version__}" in message


def test_an_installed_package_gives_nothing_to_another_environment(
    empty: Path, other: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a checkout the other environment needs the package itself, in this version."""
    monkeypatch.setattr("densenet_deploy.worker._ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))  # what this process finds it by
    monkeypatch.chdir(CHECKOUT)
    with pytest.raises(BackendError, match=f"of {empty} has no densenet-deploy; expected version"):
        interpreter.inspect(empty, ())
    (packages,) = other.parents[1].glob("lib/python*/site-packages")
    (packages / "checkout.pth").write_text(str(CHECKOUT))
    try:
        assert interpreter.inspect(other, ("onnxruntime",)).reasons == {"onnxruntime": ""}
    finally:
        (packages / "checkout.pth").unlink()


def test_another_version_is_named(
    other: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "densenet_deploy"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.0.1'")
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr("densenet_deploy.worker._ROOT", tmp_path)
    with pytest.raises(BackendError) as caught:
        interpreter.inspect(other, ())
    message = str(caught.value)
    assert f"has densenet-deploy 0.0.1; expected version {densenet_deploy.__version__}" in message
    assert os.linesep not in message
