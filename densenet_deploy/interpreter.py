"""Backends that run in an environment of their own, such as TensorRT 10 beside TensorRT 11.

Asks another Python, before anything is measured, whether this package is there in this version,
which backends can run and what is installed.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import densenet_deploy
from densenet_deploy import environment
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime import why_unavailable
from densenet_deploy.worker import Worker, elsewhere, serve

_PATIENCE_SECONDS = 60
_LEAST_PYTHON = (3, 11)
# For any Python there is, so in words that all of them know.
_QUESTION = """
import json, sys
found = problem = ""
try:
    import densenet_deploy
    found = densenet_deploy.__version__
    import densenet_deploy.runtime
except Exception as error:
    problem = "{}: {}".format(type(error).__name__, error)
print(json.dumps([sys.version_info[:3], found, problem]))
"""


@dataclass(frozen=True)
class Environment:
    """What another interpreter says about its environment.

    Attributes:
        python: Path of the interpreter.
        reasons: Why a backend cannot run there, by its name; empty where it can.
        description: As `environment.describe` gives it there.
    """

    python: str
    reasons: Mapping[str, str]
    description: Mapping[str, Any]


def inspect(python: Path, backends: Sequence[str]) -> Environment:
    """Asks an interpreter about its environment.

    Args:
        python: Of an environment in which this version of the package is installed, or that may
            use the checkout this one runs from.
        backends: To ask about.

    Raises:
        BackendError: There is no such file, it is no Python, the package or its version is
            missing, or the process died.
    """
    if not python.is_file():
        raise BackendError(f"{python} does not exist", expected="a Python interpreter")
    path = str(python.absolute())  # a virtual environment is found by its link, so none is followed
    _check_version(path)
    with Worker(__name__, f"the inspection of {path}", path) as worker:
        reasons, description = worker.ask(tuple(backends))
    return Environment(path, reasons, description)


def _check_version(python: str) -> None:
    version, found, problem = _about(python)
    if tuple(version) < _LEAST_PYTHON:
        raise BackendError(
            f"{python} is Python {'.'.join(map(str, version))}",
            expected=f"{'.'.join(map(str, _LEAST_PYTHON))} or newer",
        )
    wanted = densenet_deploy.__version__
    if found != wanted:
        has = f"densenet-deploy {found}" if found else "no densenet-deploy"
        raise BackendError(
            f"the environment of {python} has {has}",
            expected=f"version {wanted}, which runs here",
            remedy=f"install it with: {python} -m pip install densenet-deploy=={wanted}",
        )
    if problem:
        raise BackendError(
            f"the environment of {python} cannot load densenet-deploy: {problem}",
            remedy=f"install what it needs with: {python} -m pip install densenet-deploy=={wanted}",
        )


def _about(python: str) -> tuple[list[int], str, str]:
    """Version of Python, version of this package, and why that does not load there."""
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION],
            env=elsewhere(),
            cwd=Path(python).anchor,  # `-c` looks into the working directory first
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendError(f"{python} does not run: {error}") from None
    try:
        version, found, problem = json.loads(done.stdout.strip().splitlines()[-1])
        return [int(part) for part in version], str(found), str(problem)
    except (ValueError, TypeError, LookupError):
        said = done.stderr.strip() or done.stdout.strip() or f"it exits with {done.returncode}"
        last = said.splitlines()[-1][:200]
        raise BackendError(f"{python} is not a Python that runs: {last}") from None


def _answers(requests: Iterator[Any]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """The other interpreter's side."""
    for backends in requests:
        reasons = {backend: why_unavailable(backend) for backend in backends}
        yield reasons, environment.describe()


if __name__ == "__main__":
    serve(_answers)
