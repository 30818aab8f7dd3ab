"""A child process of our own that answers one request after another over pipes.

A fresh interpreter: no library state of this process reaches it, and the caller's script is not
run again, as multiprocessing would. It stays in the caller's process group, so Ctrl-C ends both.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from densenet_deploy.errors import BackendError

_PATIENCE_SECONDS = 10  # for a process whose work is done
_ROOT = Path(__file__).parents[1]  # of a checkout; site-packages where it is installed
_OF_THIS_PYTHON = ("PYTHONPATH", "PYTHONHOME")


def here() -> dict[str, str]:
    """Variables with which this interpreter finds the package it runs now, and all else."""
    search = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search)}


def elsewhere() -> dict[str, str]:
    """Variables with which another environment finds nothing of this one but a checkout's package.

    An installed package lies beside this environment's other packages, compiled for it alone.
    """
    variables = {name: value for name, value in os.environ.items() if name not in _OF_THIS_PYTHON}
    if (_ROOT / "pyproject.toml").is_file():
        variables["PYTHONPATH"] = str(_ROOT)
    return variables


class Worker:
    """A running child; a context manager that ends it.

    Args:
        module: Run with `python -m`; it calls `serve`. Its own classes cannot be pickled there, so
            requests and answers are made of other modules' classes and plain values.
        task: What it does, as a noun for error messages.
        python: Interpreter of another environment; empty for this one.

    Raises:
        BackendError: There is no such interpreter.
    """

    def __init__(self, module: str, task: str, python: str = "") -> None:
        self._task = task
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, "-P", "-m", module],
                env=elsewhere() if python else here(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            raise BackendError(f"{python or sys.executable} does not run: {error}") from None

    def ask(self, request: Any) -> Any:
        """Sends one request and waits for its answer.

        Raises:
            BackendError: The process died.
            Exception: What the child raised; it answers no more after that.
        """
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise BackendError(f"the process running {self._task} died") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        try:
            self._process.communicate(timeout=_PATIENCE_SECONDS)  # end of input: no more requests
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def serve(answers: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
    """The child's side: requests on standard input, answers on standard output, until its end.

    Args:
        answers: Yields one answer for each request it takes.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)  # what a library prints is no answer
        try:
            for answer in answers(_requests()):
                _send(answer, output)
        except Exception as error:  # raised again where it was asked
            _send(error, output)


def _requests() -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(sys.stdin.buffer)
        except EOFError:
            return


def _send(answer: Any, output: Any) -> None:
    pickle.dump(answer, output)
    output.flush()
