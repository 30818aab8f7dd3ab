"""Several processes train as one does, and what a lost one means."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from densenet_deploy import pipeline, train
from densenet_deploy.checkpoint import read_info
from densenet_deploy.data import ImageSet
from densenet_deploy.distributed import ALONE, Processes, join, others_alive, synchronise_batchnorm
from densenet_deploy.errors import DataError, TrainingError
from densenet_deploy.evaluate import evaluate
from densenet_deploy.model import create_model
from densenet_deploy.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name = "small"
[model]
variant = "densenet-bc-10-4"
weights = ""
[train]
epochs = {epochs}
batch_size = 32
accumulate = {accumulate}
learning_rate = 0.01
precision = "{precision}"
sync_batchnorm = {synchronised}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sample: tuple[ImageSet, ImageSet]) -> Path:
    return written(tmp_path_factory.mktemp("data"), sample, 40)


def written(folder: Path, sample: tuple[ImageSet, ImageSet], tested: int) -> Path:
    """96 training images of Fashion-MNIST in its own format, and some test images."""
    for prefix, images, count in (("train", sample[0], 96), ("t10k", sample[1], tested)):
        pixels, labels = images.pixels[:count, ..., 0], images.labels[:count].astype(np.uint8)
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return folder


def write_recipe(
    out: Path, epochs: int = 2, accumulate: int = 1, synchronised: bool = False, **more: str
) -> Path:
    out.mkdir()
    values = {"precision": "fp32"} | more
    values |= {"epochs": str(epochs), "accumulate": str(accumulate)}
    values |= {"synchronised": str(synchronised).lower()}
    (out / "small.toml").write_text(RECIPE.format(**values))
    return out / "small.toml"


def start(folder: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    """A training in two processes."""
    command = [sys.executable, "-m", "densenet_deploy.cli.app", "train"]
    command += [str(write_recipe(out, **options)), "--data-dir", str(folder), "--out", str(out)]
    command += ["--processes", "2", "-q", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes)  # type: ignore[call-overload,no-any-return]


def trained_by_two(
    folder: Path, out: Path, **options: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and last record of a run that ends well."""
    with start(folder, out, **options) as process:
        printed, err = process.communicate()
    assert process.returncode == 0, err
    record = json.loads(printed)
    return load_file(record["weights"]), record


def trained_by_one(
    folder: Path, out: Path, **options: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The same of this process alone."""
    recipe = load_recipe(str(write_recipe(out, **options)))
    whole = replace(recipe, data=replace(recipe.data, sample=False, directory=str(folder)))
    records = pipeline.train_model(whole, out)
    return load_file(out / "model.safetensors"), records[-1]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names: str) -> float:
    """Largest difference of the tensors of these names, over each one's largest value."""
    found = [name for name in one if re.search(names, name)]
    assert found
    return max(
        float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1))
        for name in found
    )


def test_two_processes_are_one_with_the_same_batch(tmp_path: Path, folder: Path) -> None:
    """With BatchNorm over all images; with its statistics over halves the weights are others."""
    whole, record = trained_by_one(folder, tmp_path / "whole")
    shared, shared_record = trained_by_two(folder, tmp_path / "shared", synchronised=True)
    halves, _ = trained_by_one(folder, tmp_path / "halves", accumulate=2)
    assert distance(whole, shared, ".") < 3e-4 < 1e-3 < distance(whole, halves, "weight")
    for key in ("loss", "train_top1", "evaluation_top1"):
        assert shared_record[key] == pytest.approx(record[key], abs=1e-4), key


@pytest.mark.parametrize(("precision", "rounding"), [("fp32", 1e-4), ("bf16", 1.5e-3)])
def test_two_processes_that_accumulate_are_one_that_accumulates_twice_as_often(
    tmp_path: Path, folder: Path, precision: str, rounding: float
) -> None:
    """Each with the batch statistics of its own images."""
    options = {"accumulate": 2, "precision": precision}
    apart, record = trained_by_two(folder, tmp_path / "apart", **options)
    one, its = trained_by_one(folder, tmp_path / "one", **options | {"accumulate": 4})
    other, _ = trained_by_one(folder, tmp_path / "other", **options)
    assert distance(one, apart, "weight|bias") < rounding < distance(other, apart, "weight") / 2
    assert record["loss"] == pytest.approx(its["loss"], abs=1e-4)


@pytest.mark.parametrize("tested", [39, 1])
def test_processes_share_the_evaluation(
    tmp_path: Path, sample: tuple[ImageSet, ImageSet], tested: int
) -> None:
    """Of the first's running statistics; also where there are images for one process alone."""
    (tmp_path / "data").mkdir()
    data = written(tmp_path / "data", sample, tested)
    weights, record = trained_by_two(data, tmp_path / "run", epochs=1)
    network = create_model("densenet-bc-10-4", (1, 28, 28), 10)
    network.load_state_dict(weights)
    images = replace(sample[1], pixels=sample[1].pixels[:tested], labels=sample[1].labels[:tested])
    info = read_info(Path(str(record["weights"])))
    assert info is not None
    alone = evaluate(network, images, info.preprocessing)
    assert record["evaluation_top1"] == round(alone.top1, 3)
    assert record["evaluation_images"] == tested


GROUP = """
from pathlib import Path
import torch
from densenet_deploy.distributed import join

def threads():
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum(name.startswith("pt_gloo") for name in names)

with join("cpu") as processes:
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean.fill_(5.0 + processes.rank)
    norm.num_batches_tracked.fill_(7 + processes.rank)
    processes.share_buffers(norm)
    assert norm.running_mean.tolist() == [5.0, 5.0] and int(norm.num_batches_tracked) == 7
    processes.together(norm)(torch.ones(1, 2, 1, 2)).sum().backward()
    assert threads() > 0
assert threads() == 0
"""


def test_buffers_become_the_firsts_and_no_thread_outlives_the_group(tmp_path: Path) -> None:
    """One that still holds a tensor while Python ends would abort the process, at times."""
    (tmp_path / "group.py").write_text(GROUP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(tmp_path / "group.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_evaluated_has_the_firsts_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps hardly move an accuracy, so the order of the calls is what is checked."""
    calls: list[str] = []
    monkeypatch.setattr(Processes, "share_buffers", lambda *_: calls.append("share"))
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: calls.append("evaluate"))
    train._accuracy(nn.Identity(), None, None, Processes(1, 2))  # type: ignore[arg-type]
    assert calls == ["share", "evaluate"]


def test_a_killed_process_ends_the_job_and_the_state_is_usable(
    tmp_path: Path, folder: Path
) -> None:
    out = tmp_path / "run"
    with start(folder, out, epochs=1000) as process:
        ranks = wait_for_ranks(process.pid)
        while not (out / "metrics.jsonl").exists():
            time.sleep(0.1)
        os.kill(ranks[1], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "process 1 of 2 was killed by signal 9, the others were ended. Run the same" in err
    position = re.search(r"it continues from epoch (\d+), step (\d+)", err)
    assert position is not None and int(position[1]) >= 2
    assert not (out / "model.safetensors").exists()
    recipe = (out / "small.toml").read_text()
    state = torch.load(out / "state.pt", weights_only=True)
    epochs = state["position"]["epoch"] + 1
    state["config"]["epochs"] = epochs  # so that it ends
    torch.save(state, out / "state.pt")
    (out / "small.toml").write_text(recipe.replace("epochs = 1000", f"epochs = {epochs}"))
    command = [sys.executable, "-m", "densenet_deploy.cli.app", "train", out / "small.toml"]
    command += ["--data-dir", folder, "--out", out, "-q"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((out / "metrics.jsonl").read_text().splitlines()) == epochs


def test_interrupting_ends_all_processes(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "run"
    with start(folder, out, epochs=1000) as process:
        ranks = wait_for_ranks(process.pid)
        while not (out / "metrics.jsonl").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())


def test_a_file_that_one_process_cannot_read_is_named(tmp_path: Path) -> None:
    for index in range(16):
        for split in ("train", "test"):
            path = tmp_path / split / "ab"[index // 8] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), 16 * index).save(path)
    row = int(np.random.default_rng((0, 0)).permutation(16)[7])  # the last of the first batch of 8
    (tmp_path / "train" / "ab"[row // 8] / f"{row:02}.png").write_bytes(b"no image")
    recipe = tmp_path / "folder.toml"
    recipe.write_text(
        'name = "folder"\n[model]\nvariant = "densenet-bc-10-4"\nweights = ""\nclasses = 2\n'
        f'[data]\nname = "folder"\ndirectory = "{tmp_path}"\n[train]\nbatch_size = 8\n'
    )
    command = [sys.executable, "-m", "densenet_deploy.cli.app", "train", recipe, "-q"]
    command += ["--processes", "2", "--out", tmp_path / "out"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{row:02}.png cannot be read as an image" in done.stderr
    assert "Traceback" not in done.stderr


def test_images_that_are_not_there_are_said_once(tmp_path: Path, folder: Path) -> None:
    """The first looks for them, while the other waits."""
    with start(tmp_path / "nowhere", tmp_path / "run") as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert err.count("nowhere") == 1 and "Traceback" not in err


def wait_for_ranks(parent: int) -> dict[int, int]:
    """Process ids of the ranks that a launcher started."""
    while True:
        found: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
                variables = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = [value for value in variables if value.startswith(b"RANK=")]
            if int(fields[1]) == parent and rank:
                found[int(rank[0][5:])] = int(path.name)
        if found.keys() == {0, 1}:
            return found
        time.sleep(0.1)


def test_a_batch_that_cannot_be_divided_is_said_once(tmp_path: Path, folder: Path) -> None:
    with start(folder, tmp_path / "run", accumulate=32) as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert err.count("train.batch_size 32 for 2 processes that accumulate 32 times") == 1
    assert "expected a multiple of 64" in err and "Traceback" not in err


# --- one process


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
    )
    yield
    torch.distributed.destroy_process_group()


def test_synchronised_batchnorm_of_one_process_is_torchs(group: None) -> None:
    plain = create_model("densenet-bc-10-4", (3, 8, 8), 3, seed=0).double()
    synchronised = create_model("densenet-bc-10-4", (3, 8, 8), 3, seed=0).double()
    synchronise_batchnorm(synchronised, torch.device("cpu"))
    images = torch.randn(4, 3, 8, 8, dtype=torch.double)
    for network in (plain, synchronised):
        network(images).square().sum().backward()
    for one, other in zip(plain.parameters(), synchronised.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-11)
    assert plain.state_dict().keys() == synchronised.state_dict().keys()
    for (name, one), other in zip(plain.named_buffers(), synchronised.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)
    assert torch.equal(plain.eval()(images), plain.eval()(images))
    torch.testing.assert_close(plain.eval()(images), synchronised.eval()(images))


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join("cpu") as here:
        assert here == ALONE
        network = nn.Linear(2, 2)
        assert here.together(network) is network
        assert here.total(torch.ones(1)).item() == 1


def test_errors_of_ones_own_are_not_blamed_on_others() -> None:
    with (
        pytest.raises(RuntimeError, match="size mismatch"),
        others_alive(Processes(0, 2), Path("out")),
    ):
        raise RuntimeError("size mismatch")
    with (
        pytest.raises(
            TrainingError, match=r"another of the 2 processes ended .*nothing was saved yet"
        ),
        others_alive(Processes(0, 2), Path("out")),
    ):
        raise RuntimeError("[gloo/pair.cc:1] Connection closed by peer [127.0.0.1]:1")


def test_an_error_that_the_first_does_not_meet_is_not_lost() -> None:
    """Another machine's process lacks the images; only what has a note is said by others."""
    with (
        pytest.raises(DataError) as caught,
        Processes(rank=1, world=2).one_by_machine_first(Path("out")),
    ):
        raise DataError("no images")
    assert caught.value.__notes__ == ["process 1"]
