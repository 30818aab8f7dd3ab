"""A child process that answers: in order, with its errors, and gone when it is no more needed."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from pathlib import Path

import pytest

from densenet_deploy import worker as module
from densenet_deploy.errors import BackendError
from densenet_deploy.worker import Worker

CHILD = """
import os, time
from densenet_deploy.errors import DataError
from densenet_deploy.worker import serve

def answers(requests):
    print("a library's chatter")
    for request in requests:
        if request == "die":
            os._exit(3)
        if request == "raise":
            raise DataError("bad", expected="good")
        if request == "sleep":
            time.sleep(600)
        yield request, os.getpid(), os.getpgrp()

serve(answers)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that serves."""
    (tmp_path / "answering_child.py").write_text(CHILD, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "answering_child"


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_process_answers_in_order(child: str) -> None:
    with Worker(child, "a test") as worker:
        answers = [worker.ask(request) for request in (1, "two", None)]
        assert [answer for answer, *_ in answers] == [1, "two", None]
        (pid, group), *others = {(pid, group) for _, pid, group in answers}
        assert not others and pid != os.getpid() and group == os.getpgrp()
        assert running(pid)
    assert not running(pid)


def test_what_lies_in_the_working_directory_shadows_no_library(
    child: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = tmp_path / "somewhere"
    stray.mkdir()
    (stray / "pickle.py").write_text("raise SystemExit('a stray module')")
    monkeypatch.chdir(stray)
    with Worker(child, "a test") as worker:
        assert worker.ask(1)[0] == 1


def test_a_caller_that_gives_up_does_not_wait_for_the_answer(child: str) -> None:
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), Worker(child, "a test") as worker:
        assert worker._process.stdin
        pickle.dump("sleep", worker._process.stdin)
        worker._process.stdin.flush()
        raise ZeroDivisionError
    assert worker._process.returncode
    assert time.monotonic() - began < module._PATIENCE_SECONDS, "it was killed at once"


def test_its_error_arrives_as_it_was(child: str) -> None:
    with (
        pytest.raises(Exception, match=r"^bad; expected good\.$") as caught,
        Worker(child, "a test") as worker,
    ):
        worker.ask("raise")
    assert type(caught.value).__name__ == "DataError"


def test_a_process_that_dies_is_an_error_each_time(child: str) -> None:
    with Worker(child, "a test") as worker:
        for request in ("die", "any more?"):
            with pytest.raises(BackendError, match="the process running a test died"):
                worker.ask(request)


def test_a_module_that_cannot_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="died"), Worker("no_such_module", "a test") as worker:
        worker.ask(b"x" * 10**6)
    assert "No module named no_such_module" in capfd.readouterr().err


def test_an_interrupted_caller_leaves_none_behind(child: str) -> None:
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), Worker(child, "a test") as worker:
        _, pid, _ = worker.ask(0)
        worker._process.stdin.write(b"\x80\x04\x8c\x05sleep.")  # type: ignore[union-attr]
        worker._process.stdin.flush()  # type: ignore[union-attr]
        raise KeyboardInterrupt
    assert not running(pid)
    assert time.perf_counter() - began < 60


def test_one_that_does_not_end_is_ended(child: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densenet_deploy.worker._PATIENCE_SECONDS", 0.2)
    with Worker(child, "a test") as worker:
        _, pid, _ = worker.ask(0)
        worker._process.stdin.write(b"\x80\x04\x8c\x05sleep.")  # type: ignore[union-attr]
        worker._process.stdin.flush()  # type: ignore[union-attr]
        time.sleep(0.3)
    assert not running(pid)
    assert isinstance(worker._process, subprocess.Popen)


def test_an_interpreter_that_is_none_is_an_error(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no program")
    for path in (text, tmp_path / "missing"):
        with pytest.raises(BackendError, match=f"^{path} does not run: "):
            Worker("densenet_deploy.bench", "a test", str(path))


def test_another_environment_finds_a_checkout_and_nothing_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    variables = module.elsewhere()
    assert "PYTHONPATH" not in variables and "PYTHONHOME" not in variables
    assert variables["PATH"] == os.environ["PATH"]
    (tmp_path / "pyproject.toml").touch()
    assert module.elsewhere()["PYTHONPATH"] == str(tmp_path)
    assert module.here()["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/somewhere"
