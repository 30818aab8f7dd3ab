"""What a record says about the machine, against other sources of the same facts."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import densenet_deploy
from densenet_deploy import environment
from densenet_deploy.errors import BackendError

CHECKOUT = Path(densenet_deploy.__file__).parents[1]


def test_describe_is_json_with_the_true_versions() -> None:
    described = json.loads(json.dumps(environment.describe()))
    assert described["packages"]["numpy"] == np.__version__
    assert described["packages"].keys() <= set(environment.PACKAGES)
    for name in environment.PACKAGES:
        assert (name in described["packages"]) == any(metadata.distributions(name=name)), name
    assert described["python"] == sys.version.split()[0]
    assert described["system"] == f"{platform.system()} {platform.machine()}"


def test_absent_package_has_no_version() -> None:
    assert environment.package_version("no-such-distribution") == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_cores_are_those_this_process_may_use() -> None:
    program = (
        "import os; from densenet_deploy.environment import usable_cores;"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(usable_cores())"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert printed.stdout == "1\n"
    assert environment.usable_cores() == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="no /proc/meminfo on this system")
def test_memory_and_processor_are_the_kernels() -> None:
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    assert abs(environment.memory_gib() - kilobytes / 2**20) <= 1
    cpuinfo = Path("/proc/cpuinfo").read_text()
    assert environment.cpu_name()
    if "model name" in cpuinfo:
        assert f": {environment.cpu_name()}\n" in cpuinfo


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_of_the_checkout_and_says_when_it_has_changes(tmp_path: Path) -> None:
    """In a copy of the package, because this checkout may be clean or not."""
    package = tmp_path / "densenet_deploy"
    package.mkdir()
    for name in ("__init__.py", "environment.py", "errors.py", "_cuda.py", "_nvml.py"):
        shutil.copy(CHECKOUT / "densenet_deploy" / name, package)

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        command = ["git", *who, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit() -> str:
        program = "from densenet_deploy.environment import git_commit; print(git_commit())"
        command = [sys.executable, "-B", "-c", program]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit() == ""  # an installed wheel
    git("init", "--quiet")
    assert commit() == ""  # no commit yet
    git("add", ".")
    git("commit", "--quiet", "--no-verify", "-m", "first")
    assert commit() == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "untracked").touch()
    assert not commit().endswith("+")
    with (package / "environment.py").open("a") as stream:
        stream.write("# changed\n")
    assert commit() == git("rev-parse", "--short=12", "HEAD") + "+"


def fake_nvml(**answers: object) -> types.SimpleNamespace:
    """NVML of a machine with one GPU; what is not among the answers is not supported there."""

    class NVMLError(Exception):
        pass

    def unsupported(*_: object) -> object:
        raise NVMLError("Not Supported")

    class Module(types.SimpleNamespace):
        def __getattr__(self, name: str) -> object:
            if not name.startswith(("nvml", "NVML_")):
                raise AttributeError(name)
            return name if name.startswith("NVML_") else unsupported

    counts = {"nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetCount": 1}
    functions = {
        name: lambda *_, value=value: value
        for name, value in {**counts, "nvmlDeviceGetHandleByIndex": "device", **answers}.items()
    }
    return Module(NVMLError=NVMLError, **functions)


def test_a_gpu_is_described_by_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml(
        nvmlDeviceGetName="NVIDIA H200",
        nvmlDeviceGetCudaComputeCapability=(9, 0),
        nvmlSystemGetDriverVersion="580.95.05",
        nvmlDeviceGetPowerUsage=120500,
        nvmlDeviceGetMemoryInfo=types.SimpleNamespace(total=139 * 2**30),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert environment.describe()["gpus"] == [
        {
            "name": "NVIDIA H200",
            "compute_capability": "9.0",
            "driver": "580.95.05",
            "memory_gib": 139,
            "power_watts": 120.5,
        }
    ]
    assert environment.device_slug() == "h200"


def test_every_name_of_nvml_exists() -> None:
    """What the code asks a device for, in the real bindings."""
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    source = (CHECKOUT / "densenet_deploy" / "_nvml.py").read_text()
    names = set(re.findall(r"nvml\.(nvml\w+|NVML\w+)", source))
    assert len(names) > 15
    assert [name for name in sorted(names) if not hasattr(real, name)] == []


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml()
    del nvml.nvmlInit  # raises, as without a driver
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("densenet_deploy._cuda.why_no_device", lambda: "no CUDA device")
    assert environment.describe()["gpus"] == []
    slug = environment.device_slug()
    assert slug.endswith(f"-{environment.usable_cores()}-cores")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)


def test_without_nvml_cuda_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    cuda = "densenet_deploy._cuda."
    monkeypatch.setattr(cuda + "why_no_device", lambda: "")
    monkeypatch.setattr(cuda + "device_name", lambda index: f"NVIDIA L4 {index}")
    monkeypatch.setattr(cuda + "compute_capability", lambda index: "8.9")
    assert environment.gpus() == [{"name": "NVIDIA L4 0", "compute_capability": "8.9"}]

    def missing(index: int) -> str:
        raise BackendError("cuda-python is not installed")

    monkeypatch.setattr(cuda + "device_name", missing)
    assert environment.gpus() == []
