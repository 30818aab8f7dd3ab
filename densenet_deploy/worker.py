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


class Worker:
    """A running child; a context manager that ends it.

    Args:
        module: Run with `python -m`; it calls `serve`. Its own classes cannot be pickled there, so
            requests and answers are made of other modules' classes and plain values.
        task: What it does, as a noun for error messages.
    """

    def __init__(self, module: str, task: str) -> None:
        search = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._task = task
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

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
