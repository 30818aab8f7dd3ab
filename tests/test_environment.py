"""What a record says about the machine, against other sources of the same facts."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import densenet_deploy
from densenet_deploy import environment

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
    for name in ("__init__.py", "environment.py"):
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
