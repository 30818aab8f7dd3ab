"""What machine and which versions a record was made with. Imports nothing heavy to find out."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from densenet_deploy import _cuda, _nvml
from densenet_deploy.errors import BackendError

PACKAGES = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-python",
)


def describe() -> dict[str, Any]:
    """Machine, operating system, versions and, in a checkout, the git commit."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
        "git": git_commit(),
    }


def software() -> dict[str, str]:
    """What a training runs on: versions of this package and torch, and the commit."""
    return {
        "densenet-deploy": package_version("densenet-deploy"),
        "git": git_commit(),
        "torch": package_version("torch"),
    }


def gpus() -> list[dict[str, Any]]:
    """Facts about each NVIDIA GPU: from NVML, or of the first at least its name from CUDA."""
    if found := _nvml.describe():
        return found
    if _cuda.why_no_device():
        return []
    try:
        return [{"name": _cuda.device_name(0), "compute_capability": _cuda.compute_capability(0)}]
    except BackendError:  # neither nvidia-ml-py nor cuda-python is installed
        return []


def device_slug() -> str:
    """Name of a folder for results from here: the first GPU's, or the processor's and its cores."""
    found = gpus()
    name = found[0]["name"] if found else f"{cpu_name()} {usable_cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia")).strip("-")


def package_version(name: str) -> str:
    """Installed version of a distribution; empty where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def usable_cores() -> int:
    """Cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's own name for itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def memory_gib() -> int:
    """Physical memory, rounded; 0 where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):
        return 0


def git_commit() -> str:
    """Commit of the checkout this package runs from, `+` where it has changes; or empty."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
