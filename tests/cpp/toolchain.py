"""Builds the C++ runtime as its users do, and talks to what comes out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2] / "cpp"
# OpenVINO's threads load a library in a way that AddressSanitizer forbids, unless told.
ENVIRONMENT = os.environ | {
    "TBB_ENABLE_SANITIZERS": "1",
    "LSAN_OPTIONS": f"suppressions={PROJECT / 'tests' / 'leaks.txt'}:print_suppressions=0",
}


def require_toolchain() -> None:
    """Skips, or in continuous integration fails, where C++ cannot be built."""
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if missing:
        unavailable(f"{' and '.join(missing)} not installed; see cpp/apt-packages.txt")


def unavailable(reason: str) -> None:
    """Skips a test of the C++ runtime; continuous integration has everything, so there it fails."""
    if os.environ.get("CI"):
        pytest.fail(f"the C++ runtime cannot be built here: {reason}")
    pytest.skip(f"the C++ runtime cannot be built here: {reason}")


def configure(source: Path, build: Path, *options: str) -> None:
    """Runs CMake; what it cannot find is a reason to skip, see `unavailable`."""
    command = ["cmake", "-S", str(source), "-B", str(build), *options]
    command += ["-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        unavailable("; ".join(lines[:4]))


def compile_all(build: Path, *targets: str) -> None:
    """Builds what `configure` prepared; a warning is an error."""
    chosen = ["--target", *targets] if targets else []
    command = ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1), *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def build_preset(preset: str) -> Path:
    """Configures and builds a preset with this environment's OpenVINO; returns its folder."""
    require_toolchain()
    build = PROJECT / "build" / preset
    options = (f"-DPython3_EXECUTABLE={sys.executable}", "-DDENSENET_DEPLOY_ONNXRUNTIME=OFF")
    configure(PROJECT, build, "--preset", preset, *options)
    compile_all(build)
    return build


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.out)


def run(program: Path, *arguments: str | Path, cwd: Path | None = None) -> Finished:
    """Runs a program; a sanitizer's report or a signal is an error of the test."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, timeout=250
    )
    assert done.returncode in (0, 1, 2), f"{command} ended with {done.returncode}\n{done.stderr}"
    return Finished(done.returncode, done.stdout, done.stderr)


class Probe:
    """The test program cpp/tests/probe.cpp; a context manager that ends it."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def ask(self, **request: Any) -> str:
        """The error that a request meets; empty where it succeeds."""
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"it died of {request}\n{self._process.stderr.read()[:5000]}"
        return json.loads(answer)["error"] or ""

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _, said = self._process.communicate(timeout=60)
        assert kind or self._process.returncode == 0, said  # such as leaks, found at the end
