"""Training: what it computes, and that a kill at any moment changes nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from densenet_deploy import checkpoint, data, environment, train
from densenet_deploy.batches import ImagesInMemory
from densenet_deploy.data import ImageSet
from densenet_deploy.distributed import ALONE
from densenet_deploy.errors import CheckpointError, DataError, TrainingError
from densenet_deploy.evaluate import Accuracy, evaluate
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.preprocess import FASHION_MNIST, Preprocessing
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import DataConfig
from densenet_deploy.schedule import learning_rate
from densenet_deploy.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Preprocessing(10, 10, mean=(0.286,), std=(0.353,))
# 80 images make 5 steps of 16 per epoch, 15 in all
CONFIG = TrainConfig(epochs=3, batch_size=16, warmup_epochs=0.5, shift=1)
State = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


def small_images(split: Any, count: int) -> ImageSet:
    """The first sample images at 10x10."""
    images = data.load(DataConfig(), split, FASHION_MNIST).take(count)
    return replace(images, pixels=np.ascontiguousarray(images.pixels[:, ::3, ::3]))


def run(
    out: Path,
    config: TrainConfig = CONFIG,
    track: Track = silent,
    images: ImageSet | None = None,
    name: str = "densenet-bc-10-4",
) -> tuple[State, list[dict[str, Any]]]:
    """Trains a tiny network; its weights and the records without their durations."""
    images = images or small_images("train", 80)
    classes = max(len(images.classes), 2)
    model = create_model(name, SMALL.input_shape, classes, config.seed, dropout=config.dropout)
    batches = ImagesInMemory(images, SMALL)
    records = train.train(model, config, batches, small_images("test", 50), SMALL, out, track)
    return dict(model.state_dict()), [without_seconds(record) for record in records]


def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "seconds"}


class Killed(Exception):
    pass


def killed_after(steps: int) -> Track:
    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        for done, item in enumerate(items):
            if done == steps:
                raise Killed
            yield item

    return track


def recording(batches: list[Batch], counts: list[tuple[int | None, int]]) -> Track:
    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        counts.append((total, start))
        for item in items:
            batches.append(item)
            yield item

    return track


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name  # bit for bit


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> tuple[State, list[dict[str, Any]]]:
    return run(tmp_path_factory.mktemp("uninterrupted"))


# --- resuming


@pytest.mark.parametrize("kills", [(3,), (5,), (7,), (14,), (15,), (1, 1, 6, 2)])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[State, list[dict[str, Any]]],
    kills: tuple[int, ...],
) -> None:
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    for steps in kills:
        try:
            run(tmp_path, track=killed_after(steps))
        except Killed:
            assert not (tmp_path / "model.safetensors").exists()
        else:
            assert kills == (15,)  # there is no sixteenth step to be killed before
    batches: list[Batch] = []
    counts: list[tuple[int | None, int]] = []
    weights, records = run(tmp_path, track=recording(batches, counts))
    assert counts == [(15, sum(kills))]
    assert len(batches) == 15 - sum(kills)  # no step is repeated
    assert_equal(weights, uninterrupted[0])
    assert records == uninterrupted[1]


def test_kill_between_saves_repeats_steps_and_changes_nothing(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, Any]]]
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, track=killed_after(8))
    batches: list[Batch] = []
    counts: list[tuple[int | None, int]] = []
    weights, records = run(tmp_path, track=recording(batches, counts))
    assert counts == [(15, 5)]  # the state of the end of the first epoch
    assert_equal(weights, uninterrupted[0])
    assert records == uninterrupted[1]


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp32", "channels_last": False},
        {"momentum": 0.0},
        {"schedule": "step", "warmup_epochs": 0.0},
        {"dropout": 0.2},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_resuming_is_exact_for_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    config = replace(CONFIG, epochs=2, **change)
    expected = run(tmp_path / "whole", config)
    with pytest.raises(Killed):
        run(tmp_path / "killed", config, killed_after(4))
    weights, records = run(tmp_path / "killed", config)
    assert_equal(weights, expected[0])
    assert records == expected[1]


def trained_by(out: Path) -> list[dict[str, str]]:
    info = checkpoint.read_info(out / "model.safetensors")
    assert info is not None
    software: list[dict[str, str]] = info.training["trained_by"]
    return software


def test_the_software_that_trained_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    for commit, steps in (("a", 3), ("none", 0), ("b", 2), ("b", 2), ("c", 100)):
        monkeypatch.setattr(environment, "software", lambda now=commit: {"git": now})
        with contextlib.suppress(Killed):
            run(tmp_path, track=killed_after(steps))
    assert [software["git"] for software in trained_by(tmp_path)] == ["a", "b", "c"]
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(environment, "software", lambda: {"git": "later"})
    run(tmp_path)  # nothing is left to train
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_what_trained_before_that_was_kept_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, track=killed_after(8))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state.pop("trained_by") == [environment.software() | {"device": environment.cpu_name()}]
    torch.save(state, tmp_path / "state.pt")
    counts: list[tuple[int | None, int]] = []
    monkeypatch.setattr(environment, "software", lambda: {"git": "now"})
    run(tmp_path, track=recording([], counts))
    assert counts == [(15, 5)]
    first, second = trained_by(tmp_path)
    assert first == {"densenet-deploy": "unknown"} and second["git"] == "now"


def test_what_a_kill_left_of_a_save_goes(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, track=killed_after(8))
    half = tmp_path / ".state.pt.0000"
    half.write_bytes(b"half a state")
    run(tmp_path)
    assert not half.exists() and (tmp_path / "state.pt").exists()


def run_reporting_steps(out: str) -> None:
    """What the killed process runs: one line on standard output before each step."""

    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        for step, item in enumerate(items, start):
            print("step", step, flush=True)
            yield item

    torch.set_num_threads(1)
    train.SAVE_SECONDS = 0
    run(Path(out), track=track)


def test_sigkill_and_resume_equals_uninterrupted(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, Any]]]
) -> None:
    here = Path(__file__).parent
    program = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]\n"
        "import test_train; test_train.run_reporting_steps(sys.argv[1])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "step 7\n":
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "model.safetensors").exists()
    counts: list[tuple[int | None, int]] = []
    weights, records = run(tmp_path, track=recording([], counts))
    assert counts[0][0] == 15 and counts[0][1] >= 7  # the first seven steps were saved
    assert_equal(weights, uninterrupted[0])
    assert records == uninterrupted[1]


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    weights, records = run(tmp_path, track=killed_after(0))
    assert_equal(weights, first[0])
    assert records == first[1]


# --- states that do not fit


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


class Trap:
    """Makes a directory where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: overwrite(path, b""),
        lambda path: overwrite(path, path.read_bytes()[:-1000]),
        lambda path: overwrite(path, b"not a torch file"),
        lambda path: torch.save({"epoch": 3}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"config": Trap(path.parents[1] / "sprung")}, path),
    ],
    ids=["empty", "truncated", "text", "other keys", "list", "pickled code"],
)
def test_damaged_state_is_refused_and_kept(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(out, track=killed_after(8))
    damage(out / "state.pt")
    before = contents(out)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged .* Delete it to start over"):
        run(out)
    assert contents(out) == before
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change, named",
    [
        ({"learning_rate": 0.2}, "learning_rate"),
        ({"seed": 1, "flip": False}, "flip, seed"),
        ({"epochs": 4}, "epochs"),
    ],
)
def test_state_of_another_configuration_is_refused_and_kept(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, track=killed_after(8))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"holds a run with another {named}. Train into"):
        run(tmp_path, replace(CONFIG, **change))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("seed", [0, 1])
def test_a_key_that_was_added_since_had_its_default(tmp_path: Path, seed: int) -> None:
    with pytest.raises(Killed):
        run(tmp_path, track=killed_after(8))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["config"]["seed"]
    torch.save(state, tmp_path / "state.pt")
    refused = pytest.raises(CheckpointError, match="a run with another seed")
    with refused if seed else contextlib.nullcontext():
        run(tmp_path, replace(CONFIG, seed=seed))


@pytest.mark.parametrize("change", ["count", "labels"])
def test_state_of_other_images_is_refused_and_kept(tmp_path: Path, change: str) -> None:
    with pytest.raises(Killed):
        run(tmp_path, track=killed_after(8))
    before = contents(tmp_path)
    images = small_images("train", 64 if change == "count" else 80)
    if change == "labels":
        images = replace(images, labels=images.labels[::-1].copy())
    with pytest.raises(
        CheckpointError, match=r"holds a run with another (training images, )?labels"
    ):
        run(tmp_path, images=images)
    assert contents(tmp_path) == before


def test_state_of_another_architecture_is_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, track=killed_after(8))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="holds a run with another architecture"):
        run(tmp_path, name="densenet-bc-10-6")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("log", [None, "", "{\n"], ids=["missing", "empty", "damaged"])
def test_state_without_its_log_is_refused_and_kept(tmp_path: Path, log: str | None) -> None:
    run(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    if log is not None:
        (tmp_path / "metrics.jsonl").write_text(log)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl lacks some of the 3 epochs"):
        run(tmp_path)
    assert contents(tmp_path) == before


def test_fewer_images_than_one_batch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="15 images; expected at least 16"):
        run(tmp_path / "out", images=small_images("train", 15))


@pytest.mark.parametrize("label, found", [(-1, "no labels"), (10, "labels up to 10")])
def test_labels_without_a_class_are_an_error(tmp_path: Path, label: int, found: str) -> None:
    images = small_images("train", 80)
    labels = np.where(np.arange(80) == 79, label, images.labels)
    with pytest.raises(DataError, match=f"{found}; expected labels 0 to 9"):
        run(tmp_path / "out", images=replace(images, labels=labels))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out").exists()


# --- what training computes


def test_network_learns_the_sample(tmp_path: Path, sample: tuple[ImageSet, ImageSet]) -> None:
    config = TrainConfig(epochs=8, batch_size=16, shift=1)
    model = create_model("densenet-bc-10-4", FASHION_MNIST.input_shape, seed=0)
    train_images, test_images = sample[0], sample[1].take(300)
    assert evaluate(model, test_images, FASHION_MNIST).top1 < 30
    images = ImagesInMemory(train_images, FASHION_MNIST)
    records = train.train(model, config, images, test_images, FASHION_MNIST, tmp_path)
    losses = [record["loss"] for record in records]
    assert losses[0] == pytest.approx(math.log(10), abs=0.4)  # first guesses are uniform
    assert losses[-1] < 0.6 * losses[0]
    assert losses[-1] < min(losses[:3])
    assert records[-1]["train_top1"] > 50
    assert records[-1]["evaluation_top1"] > 50
    assert evaluate(model, test_images, FASHION_MNIST).top1 == pytest.approx(
        records[-1]["evaluation_top1"], abs=1e-3
    )


def test_steps_are_nesterov_momentum_with_weight_decay_on_everything(tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        epochs=2,
        learning_rate=0.02,  # low enough that rounding errors do not grow
        weight_decay=0.01,
        precision="fp32",
        channels_last=False,
    )
    batches: list[Batch] = []
    weights, records = run(tmp_path, config, recording(batches, []))
    assert len(batches) == 10
    losses, right = np.zeros((2, 5)), np.zeros((2, 5))
    model = create_model("densenet-bc-10-4", SMALL.input_shape, 10, seed=config.seed).double()
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step, (inputs, labels) in enumerate(batches):
        rate = learning_rate(config, step / 5)
        model.zero_grad()
        logits = model(inputs.double())
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        losses[divmod(step, 5)] = loss.item()
        right[divmod(step, 5)] = (logits.argmax(1) == labels).double().mean().item()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Sutskever et al. 2013 as PyTorch writes it: v = mu v + g, w -= lr (g + mu v)
                assert parameter.grad is not None
                gradient = parameter.grad + 0.01 * parameter
                velocity[name] = 0.9 * velocity[name] + gradient
                parameter -= rate * (gradient + 0.9 * velocity[name])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            weights[name].double(), parameter.data, rtol=1e-4, atol=1e-5, msg=name
        )
    assert [record["loss"] for record in records] == pytest.approx(losses.mean(1), abs=2e-5)
    assert [record["train_top1"] for record in records] == pytest.approx(100 * right.mean(1))


def test_records_describe_each_epoch(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, Any]]]
) -> None:
    weights, records = run(tmp_path)
    assert_equal(weights, uninterrupted[0])  # the same seed is the same run
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [without_seconds(record) for record in logged] == records
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert all(record["evaluation_images"] == 50 for record in records)
    assert all(record["seconds"] >= 0 for record in logged)
    for epoch, record in enumerate(records):
        rate = learning_rate(CONFIG, epoch + 4 / 5)  # of the epoch's last step
        assert record["learning_rate"] == pytest.approx(rate, abs=1e-6)


def test_result_holds_the_weights_and_how_they_were_made(tmp_path: Path) -> None:
    weights, records = run(tmp_path)
    path = tmp_path / "model.safetensors"
    info = checkpoint.read_info(path)
    assert info is not None
    model = DenseNet(info.spec)
    checkpoint.load_weights(path, model)
    assert_equal(dict(model.state_dict()), weights)
    assert info.preprocessing == SMALL
    assert info.labels == data.FASHION_MNIST_CLASSES
    assert info.training["config"] == json.loads(json.dumps(asdict(CONFIG)))
    assert info.training["images"] == "80 of Fashion-MNIST sample, 512 train images"
    assert without_seconds(info.training["final"]) == records[-1]


@pytest.mark.parametrize("kill", [0, 12])
def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int) -> None:
    """The first of those that are best; also where a kill lies between it and the end."""
    accuracies = {1: 50.0, 2: 70.0, 3: 60.0, 4: 70.0}
    states: list[State] = []

    def scripted(model: DenseNet, *_: Any, **__: Any) -> Accuracy:
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Accuracy(accuracies[len(states)], None, 50, 1, "scripted")

    monkeypatch.setattr(train, "evaluate", scripted)
    config = replace(CONFIG, epochs=4, validation_images=1, select="best")
    if kill:
        with pytest.raises(Killed):
            run(tmp_path, config, killed_after(kill))
        assert len(states) == 2
    weights, records = run(tmp_path, config)
    assert [record["evaluation_top1"] for record in records] == [*accuracies.values()]
    assert_equal(weights, states[1])
    assert not torch.equal(states[1]["classifier.weight"], states[3]["classifier.weight"])
    path = tmp_path / "model.safetensors"
    info = checkpoint.read_info(path)
    assert info is not None and without_seconds(info.training["final"]) == records[1]
    model = DenseNet(info.spec)
    checkpoint.load_weights(path, model)
    assert_equal(dict(model.state_dict()), states[1])


def test_a_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    config = replace(CONFIG, learning_rate=1e30, warmup_epochs=0.0)
    for _ in range(2):  # what was saved is from before, so it ends there again
        with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at epoch 1, step 2"):
            run(tmp_path, config)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["position"]["step"] == 1
    assert not (tmp_path / "model.safetensors").exists()


def test_compiled_it_trains_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and called by torch.compile, but run by eager kernels, so that it takes no minutes."""
    compiled: list[DenseNet] = []
    original = torch.compile

    def eager(model: DenseNet) -> Any:
        compiled.append(model)
        return original(model, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    plain = replace(CONFIG, epochs=1, memory_efficient=False, precision="fp32")
    expected = run(tmp_path / "plain", plain)
    config = replace(plain, compile=True, memory_efficient=True)
    with pytest.raises(Killed):
        run(tmp_path / "compiled", config, killed_after(3))
    weights, records = run(tmp_path / "compiled", config)
    assert len(compiled) == 2 and not compiled[0].memory_efficient
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[0][name], rtol=1e-3, atol=1e-4, msg=name)
    assert records[0]["loss"] == pytest.approx(expected[1][0]["loss"], abs=1e-3)


def test_one_process_has_no_other_to_synchronise_with(tmp_path: Path) -> None:
    config = replace(CONFIG, sync_batchnorm=True)
    model = create_model("densenet-bc-10-4", SMALL.input_shape, 10)
    train._learner(model, config, ALONE)
    assert model.memory_efficient


def test_seed_changes_the_run(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, Any]]]
) -> None:
    weights, _ = run(tmp_path, replace(CONFIG, seed=1))
    assert not torch.equal(weights["classifier.weight"], uninterrupted[0]["classifier.weight"])
