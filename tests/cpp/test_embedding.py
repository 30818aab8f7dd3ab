"""The embedding suite: who is timed when, what a start costs, and a real run on a tiny net."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from densenet_deploy import embedded
from densenet_deploy.embedded import Opening, Side, Start, Task, start
from densenet_deploy.embedding import Claim, Compared, Embedding, Started, embed, find_program
from densenet_deploy.embedding_suite import EmbeddingSuite
from densenet_deploy.errors import BackendError
from densenet_deploy.paired import Ratio
from densenet_deploy.suite import load_suite
from densenet_deploy.turns import Turns, take_turns
from tests.cpp.toolchain import Finished, run

SIDE = """
import sys
name, log = sys.argv[1:]
print('{"load_seconds": 0.5, "steady": true, "requests": 3}', flush=True)
for number, _ in enumerate(sys.stdin):
    open(log, "a").write(name)
    print(number + 0.25, flush=True)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_sides_take_turns_and_change_places(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    sides = [partial(Side, python(SIDE, name, log)) for name in "ab"]
    found = take_turns(sides, 4, 4)
    assert found == [Turns((Opening(0.5, True, 3),), (0.25, 1.25, 2.25, 3.25))] * 2
    assert (tmp_path / "log").read_text() == "abbaabba"


def test_a_side_that_dies_is_an_error() -> None:
    with pytest.raises(BackendError, match="ended with exit code 3"):
        Side(python("raise SystemExit(3)"))
    with pytest.raises(BackendError, match="does not run"):
        Side(["/nowhere/densenet-infer"])
    opening = SIDE.split("for number")[0]
    with Side(python(opening, "a", "b")) as side, pytest.raises(BackendError, match="exit code 0"):
        side._process.wait()
        side.seconds()


@pytest.mark.parametrize("said", ["hello", "[1, 2]", '{"load_seconds": 1}'])
def test_a_program_that_is_no_side_is_an_error(said: str) -> None:
    with pytest.raises(BackendError, match="expected a side of this suite"):
        Side(python(f"print({said!r})"))


def test_peak_memory_is_the_programs_own() -> None:
    mine = bytearray(300 << 20)  # a child must not inherit this
    small, large = start(python("pass")), start(python("bytearray(200 << 20)"))
    assert small.peak_bytes < 60 << 20 < 200 << 20 <= large.peak_bytes < len(mine)
    assert 0 < small.seconds < 20


def test_a_start_that_fails_is_an_error() -> None:
    with pytest.raises(BackendError, match="ended with exit code 3"):
        start(python("raise SystemExit(3)"))
    with pytest.raises(BackendError, match="does not run"):
        start(["/nowhere/densenet-infer"])


def test_either_side_gets_the_same_task(tmp_path: Path) -> None:
    task = Task(tmp_path, "openvino", "int8", 2, 3, (Path("a.png"), Path("b.png")))
    for one in (task, replace(task, images=())):
        command = embedded.python_command(one)
        assert embedded._task(command[4:]) == one
        assert embedded.cpp_command(Path("x"), one) == ["x", "sample", *command[4:]]


def test_the_program_is_found_or_missed(cpu: Path) -> None:
    assert find_program() == cpu / "app" / "densenet-infer"
    with pytest.raises(BackendError, match="make cpp"):
        find_program("/nowhere/densenet-infer")


def test_a_slower_program_fails_its_floor() -> None:
    claim = Claim("m", "fp32", "engine", 1.0)
    slow = Compared(claim, Ratio(0.8, 0.7, 0.9, 24), (1.0,), (0.8,), 0.1, 0.2, steady=True)
    assert not slow and slow.verdict == "fail"
    assert replace(slow, speedup=Ratio(1.0, 0.9, 1.1, 24))
    assert replace(slow, claim=replace(claim, floor=None)).verdict is None
    found = Embedding(EmbeddingSuite("s", ("m",)), 1, 24, 2, "", (slow,), ())
    assert not found and found.to_dict()["passed"] is False


def test_starts_are_told_as_medians() -> None:
    runs = tuple(Start(seconds, int(10 * seconds)) for seconds in (3.0, 1.0, 2.0))
    record = Started("m", "fp32", runs, runs[:1]).to_dict()
    assert record["cpp_median_seconds"] == 2 and record["cpp_median_peak_bytes"] == 20
    assert record["python_median_seconds"] == 3 and record["cpp_seconds"] == [3, 1, 2]


def test_a_real_run(infer: Path, tiny_recipe: Path) -> None:
    suite = EmbeddingSuite("s", ("densenet121",), ("fp32", "int8"), threads=1, starts=1)
    found = embed(suite, infer, [str(tiny_recipe)], pairs=4)
    record = found.to_dict()
    assert [(c.claim.precision, c.claim.part) for c in found.compared] == [
        *(("fp32", "engine"), ("fp32", "image"), ("int8", "engine"), ("int8", "image"))
    ]
    for comparison in record["comparisons"]:
        assert comparison["floor"] is None and comparison["verdict"] is None  # not its own model
        assert len(comparison["cpp_seconds"]) == len(comparison["python_seconds"]) == 4
        assert 0 < comparison["cpp_median_seconds"] < 1
    for one in record["starts"]:
        assert 20 << 20 < one["cpp_median_peak_bytes"] < one["python_median_peak_bytes"]
    json.dumps(record)


def command(*arguments: str | Path) -> Finished:
    return run(Path(sys.executable), "-m", "densenet_deploy.cli.app", *arguments)


def test_the_command_prints_tables(infer: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        f'kind = "embedding"\nname = "small"\nmodels = ["{tiny_recipe}"]\n'
        'precisions = ["fp32"]\nthreads = 1\nstarts = 1\nfloor = 0.001\n'
    )
    out = tmp_path / "out.json"
    done = command("suite", path, "--program", infer, "--pairs", "2", "--out", out)
    assert done.code == 0, done.err
    assert "Python / C++" in done.out and "C++ peak MiB" in done.out
    assert "a trial: fewer than 20 pairs decide nothing" in done.out
    assert json.loads(out.read_text())["passed"] is True


def test_its_option_is_refused_elsewhere() -> None:
    done = command("suite", "int8-cpu", "--program", "x")
    assert done.code == 2
    assert "--program with int8-cpu, a suite of latency; expected a suite of embedding" in done.err


def test_the_shipped_suite_claims_no_slowdown() -> None:
    suite = load_suite("embedding")
    assert isinstance(suite, EmbeddingSuite)
    assert suite.floor == 1 and suite.models == ("fashion-mnist", "densenet121")
