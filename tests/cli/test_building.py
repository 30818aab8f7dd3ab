"""`build`: what it says, what it refuses, and that Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.engine.process import STOP_SECONDS
from tests.cli.conftest import Command
from tests.conftest import Finished
from tests.graphs import exported

pytest.importorskip("tensorrt_rtx")
TINY = ("--batch", "1,2,4", "--compute-capability", "8.6")


def test_what_was_built_and_where_it_came_from(
    command: Command, tmp_path: Path, tiny_run: Finished, empty_cache: Path
) -> None:
    graph, out = tiny_run.directory / "fp32.onnx", tmp_path / "fp32.plan"
    done = command("build", graph, *TINY, "--out", out)
    assert done.code == 0, done.err
    assert out.read_bytes().startswith(b"vtrt")
    engine, batch, origin = done.out.splitlines()
    megabytes = f"{out.stat().st_size / 1e6:.2f} MB"
    assert re.fullmatch(
        rf"engine: {out} \({megabytes}, tensorrt-rtx [\d.]+, compute capability 8\.6\)", engine
    )
    assert batch == "batch: 1,2,4"
    assert re.fullmatch(r"built in \d+\.\d\d s", origin)
    assert "Building tensorrt-rtx engine" in done.err
    before = out.read_bytes()
    again = command("build", graph, *TINY, "--out", out)
    assert re.fullmatch(r"from the build cache in \d+\.\d\d s", again.out.splitlines()[-1])
    assert out.read_bytes() == before
    anew = command("build", graph, *TINY, "--out", out, "--no-cache", "-q")
    assert "\nbuilt in" in anew.out and anew.err == ""


def test_every_option(command: Command, tmp_path: Path, tiny_run: Finished) -> None:
    out, log = tmp_path / "fp32.plan", tmp_path / "log"
    options: Any = ("--batch", "1,1,1", "--batch", "2,3,4", "--compute-capability", "8.9")
    options += ("--workspace", 64, "--optimization-level", 5, "--tf32", "--verbosity", "none")
    options += ("--no-timing-cache", "--out", out, "--log", log, "-q")
    done = command("build", tiny_run.directory / "fp32.onnx", *options)
    assert done.code == 0, done.err
    _, batch, changed, _ = done.out.splitlines()
    assert batch == "batch: 1,1,1 and 2,3,4"
    assert changed == (
        "options: workspace_mib 64, optimization_level 5, timing_cache false, tf32 true, "
        "profiling_verbosity none"
    )
    assert "verbose: " in log.read_text(encoding="utf-8")
    told = json.loads(command("build", tiny_run.directory / "fp32.onnx", *options, "--json").out)
    assert told["cached"] and told["engine"] == str(out)
    assert told["config"]["profiles"] == [[1, 1, 1], [2, 3, 4]]
    assert told["compute_capabilities"] == ["8.9"] and told["timing_cache"] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--version-compatible",), "TensorRT 10.0 or newer has it"),
        (("--hardware-compatibility", "ampere-plus"), "name the GPUs in compute_capabilities"),
        (("--batch", "2,1"), "expected 3 integers separated by commas"),
        (("--batch", "4,2,1"), "1 <= min <= opt <= max"),
        (("--compute-capability", "9.0"), "expected one of 7.5, 8.0"),
    ],
)
def test_refused_options(
    options: tuple[str, ...], message: str, command: Command, tmp_path: Path, tiny_run: Finished
) -> None:
    out = tmp_path / "engine.plan"
    done = command("build", tiny_run.directory / "fp32.onnx", "--out", out, "-q", *options)
    assert message in done.refusal()
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--optimization-level", "6"), "'--optimization-level': Input should be less than or eq"),
        (("--workspace", "-1"), "'--workspace': Input should be greater than or equal to 0"),
        (("--log", "."), "'--log': "),
        (("--out", "."), "'--out': "),
    ],
)
def test_usage_errors(
    options: tuple[str, ...], message: str, command: Command, tmp_path: Path, empty_cache: Path
) -> None:
    done = command("build", "fp32.onnx", "--out", tmp_path / "engine.plan", *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and "densenet-deploy build [OPTIONS]" in done.err


def test_a_place_that_cannot_be_written_costs_no_build(
    command: Command, tmp_path: Path, tiny_run: Finished, empty_cache: Path
) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "engine.plan"
    message = command("build", tiny_run.directory / "fp32.onnx", *TINY, "--out", out).refusal()
    assert str(tmp_path / "file") in message
    assert not empty_cache.exists(), "nothing was built"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that takes seconds to compile."""
    path = tmp_path_factory.mktemp("large") / "densenet121.onnx"
    path.write_bytes(exported("densenet121").content)
    return path


class Build:
    """`densenet-deploy build` in a process of its own, amid the builder's work."""

    def __init__(self, graph: Path, folder: Path) -> None:
        self.out, self.temporary, log = folder / "engine.plan", folder / "tmp", folder / "log"
        self.out.write_bytes(b"an earlier engine")
        self.temporary.mkdir()
        command = [sys.executable, "-m", "densenet_deploy.cli.app", "build", str(graph)]
        options = ["--out", str(self.out), "--log", str(log), "--no-cache", "--batch", "1,8,64"]
        self.process = subprocess.Popen(
            [*command, *options, "--batch", "1,1,1", "--optimization-level", "5"],
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # As a terminal starts it; a shell's background jobs, and so pytest as one, ignore it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_for(lambda: log.is_file() and "Constructing optimization" in log.read_text(), 60)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.builder = int(children.read_text())

    def builder_ended(self) -> bool:
        try:
            state = Path(f"/proc/{self.builder}/stat").read_text().rpartition(") ")[2]
        except OSError:
            return True
        return state.startswith("Z")  # nobody reaps orphans in a container without an init


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def build(large: Path, tmp_path: Path) -> Iterator[Build]:
    if sys.platform != "linux":
        pytest.skip("looks at processes in /proc")
    building = Build(large, tmp_path)
    yield building
    building.process.kill()
    building.process.communicate()


@pytest.mark.parametrize("whole_group", [False, True], ids=["kill -INT", "Ctrl-C"])
def test_an_interrupt_leaves_nothing_behind(build: Build, whole_group: bool) -> None:
    """A terminal sends Ctrl-C to the whole process group, `kill` to one process."""
    if whole_group:
        os.killpg(build.process.pid, signal.SIGINT)
    else:
        build.process.send_signal(signal.SIGINT)
    out, err = build.process.communicate(timeout=30)
    assert (build.process.returncode, out) == (130, "")
    assert "Traceback" not in err and "error" not in err
    assert build.builder_ended()
    assert build.out.read_bytes() == b"an earlier engine"
    assert sorted(path.name for path in build.out.parent.iterdir()) == ["engine.plan", "log", "tmp"]
    assert list(build.temporary.iterdir()) == []


def test_no_builder_outlives_a_command_that_is_killed(build: Build) -> None:
    build.process.kill()
    wait_for(build.builder_ended, STOP_SECONDS + 10)
