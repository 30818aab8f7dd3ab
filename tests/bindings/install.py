"""Real TensorRT bindings on a machine without TensorRT: the wheel, stub libraries, their surface.

The wheels are small and complete but for the libraries they link; nine C symbols let them be
imported. They are made once and kept in the environment, below `share/tensorrt-bindings`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = Path(sys.prefix) / "share" / "tensorrt-bindings"
WHEELS = {
    "10.0.1": "tensorrt-cu12-bindings==10.0.1",
    "10.16.1.11": "tensorrt-cu13-bindings==10.16.1.11",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
}
PATHS = ("LD_LIBRARY_PATH", "PYTHONPATH")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


class Unavailable(Exception):
    """These bindings cannot be had here; the text is the reason to skip a test."""


def run_with(version: str, script: str) -> Any:
    """What a script of this folder prints as JSON, in a process that can import the bindings.

    Args:
        version: A key of `WHEELS`, or `rtx` for the TensorRT-RTX that is installed.
        script: Its file name; it gets the name of the bindings' module as its argument.

    Raises:
        Unavailable: No network at the first run, no wheel for this platform, no C compiler.
    """
    if version == "rtx":
        if importlib.util.find_spec("tensorrt_rtx") is None:
            raise Unavailable("tensorrt_rtx is not installed")
        module, paths = "tensorrt_rtx", {}
    else:
        folder = CACHE / version
        if not folder.exists():
            _make(folder, WHEELS[version])
        module, paths = "tensorrt_bindings", dict.fromkeys(PATHS, str(folder))
    command = [sys.executable, str(HERE / script), module]
    environment = os.environ | paths
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)


def _make(folder: Path, requirement: str) -> None:
    """Fills a sibling with the wheel and its libraries, then moves it into place."""
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=CACHE))
    except OSError as error:
        raise Unavailable(f"they cannot be kept in the environment: {error}") from error
    try:
        _install(requirement, fresh)
        _compile_stubs(fresh, major=requirement.partition("==")[2].split(".")[0])
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.exists():  # else another run was faster
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _install(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    limits = ["--only-binary", ":all:", "--retries", "1", "--timeout", "20"]
    command = [*pip, *limits, "--target", str(folder), requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"pip cannot install {requirement}: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pip took more than 200 s to install {requirement}") from error


def _compile_stubs(folder: Path, major: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable("no C compiler (cc, gcc, clang) for the stub of TensorRT's libraries")
    stubs = [folder / f"lib{library}.so.{major}" for library in LIBRARIES]
    command = [compiler, "-shared", "-fPIC", str(HERE / "stub.c"), "-o", str(stubs[0])]
    subprocess.run(command, check=True)
    for copy in stubs[1:]:
        shutil.copy(stubs[0], copy)
