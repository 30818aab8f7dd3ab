"""Training: what it computes, and that a kill at any moment changes nothing."""

from __future__ import annotations

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
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from densenet_deploy import checkpoint, data, train
from densenet_deploy.data import ImageSet
from densenet_deploy.errors import CheckpointError, DataError
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.preprocess import FASHION_MNIST, Preprocessing
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import DataConfig, TrainConfig

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
    model = create_model(name, SMALL.input_shape, max(len(images.classes), 2), seed=config.seed)
    records = train.train(model, config, images, small_images("test", 50), SMALL, out, track)
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
        {"bf16": False, "channels_last": False},
        {"momentum": 0.0},
        {"schedule": "step", "warmup_epochs": 0.0},
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


def test_state_of_another_architecture_is_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, track=killed_after(8))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="holds a run of another architecture"):
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
    assert train.evaluate(model, test_images, FASHION_MNIST) < 30
    records = train.train(model, config, train_images, test_images, FASHION_MNIST, tmp_path)
    losses = [record["loss"] for record in records]
    assert losses[0] == pytest.approx(math.log(10), abs=0.4)  # first guesses are uniform
    assert losses[-1] < 0.6 * losses[0]
    assert losses[-1] < min(losses[:3])
    assert records[-1]["train_top1"] > 50
    assert records[-1]["evaluation_top1"] > 50
    assert train.evaluate(model, test_images, FASHION_MNIST) == pytest.approx(
        records[-1]["evaluation_top1"], abs=1e-3
    )


def test_steps_are_nesterov_momentum_with_weight_decay_on_everything(tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        epochs=2,
        learning_rate=0.02,  # low enough that rounding errors do not grow
        weight_decay=0.01,
        bf16=False,
        channels_last=False,
    )
    batches: list[Batch] = []
    weights, records = run(tmp_path, config, recording(batches, []))
    assert len(batches) == 10
    losses, right = np.zeros((2, 5)), np.zeros((2, 5))
    model = create_model("densenet-bc-10-4", SMALL.input_shape, 10, seed=config.seed).double()
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step, (inputs, labels) in enumerate(batches):
        rate = train.learning_rate(config, step / 5)
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
        rate = train.learning_rate(CONFIG, epoch + 4 / 5)  # of the epoch's last step
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
    assert info.training["config"] == asdict(CONFIG)
    assert info.training["images"] == "80 of Fashion-MNIST sample, 512 train images"
    assert without_seconds(info.training["final"]) == records[-1]


def test_seed_changes_the_run(
    tmp_path: Path, uninterrupted: tuple[State, list[dict[str, Any]]]
) -> None:
    weights, _ = run(tmp_path, replace(CONFIG, seed=1))
    assert not torch.equal(weights["classifier.weight"], uninterrupted[0]["classifier.weight"])


def test_evaluate_counts_right_answers_and_changes_nothing() -> None:
    model = create_model("densenet-bc-10-4", SMALL.input_shape, 10, seed=0).train()
    images = small_images("test", 50)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    top1 = [train.evaluate(model, images, SMALL, batch_size) for batch_size in (1, 7, 50, 250)]
    assert model.training
    assert_equal(dict(model.state_dict()), before)
    model.eval()
    right = 0
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        image = torch.from_numpy((pixels[..., 0] / 255 - 0.286) / 0.353).float()
        right += int(model(image[None, None]).argmax()) == label
    assert top1 == [100 * right / 50] * 4
    assert 0 < right < 50
    train.evaluate(model, images, SMALL)
    assert not model.training


# --- the learning rate


@pytest.mark.parametrize(
    "epoch, rate",
    [(0, 0), (0.5, 0.125), (1, 0.25), (2, 0.5), (4, 0.4267767), (6, 0.25), (8, 0.0732233), (10, 0)],
)
def test_cosine_learning_rate(epoch: float, rate: float) -> None:
    config = TrainConfig(epochs=10, learning_rate=0.5, warmup_epochs=2, schedule="cosine")
    assert train.learning_rate(config, epoch) == pytest.approx(rate, abs=1e-7)


@pytest.mark.parametrize(
    "epoch, rate",
    [(0, 0), (0.5, 0.05), (1, 0.1), (9.99, 0.1), (10, 0.01), (14.9, 0.01), (15, 1e-3), (19, 1e-3)],
)
def test_step_learning_rate(epoch: float, rate: float) -> None:
    config = TrainConfig(epochs=20, learning_rate=0.1, warmup_epochs=1, schedule="step")
    assert train.learning_rate(config, epoch) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedules_are_those_of_torch(schedule: Any) -> None:
    config = TrainConfig(epochs=40, learning_rate=0.3, warmup_epochs=0, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    schedulers = {
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40),
        "step": torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30], gamma=0.1),
    }
    for epoch in range(40):
        rate = optimizer.param_groups[0]["lr"]
        assert train.learning_rate(config, epoch) == pytest.approx(rate, rel=1e-6), epoch
        optimizer.step()
        schedulers[schedule].step()


# --- augmentation


@given(
    hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 4), *[st.integers(1, 9)] * 2, st.just(2)])),
    st.data(),
)
def test_translate_is_scipys_shift(pixels: NDArray[np.uint8], draw: st.DataObject) -> None:
    reach = draw.draw(st.integers(0, 12))
    shifts = draw.draw(hnp.arrays(np.int64, (len(pixels), 2), elements=st.integers(-reach, reach)))
    expected = [
        ndimage.shift(image, (*shift, 0), order=0, mode="constant", cval=0)
        for image, shift in zip(pixels, shifts, strict=True)
    ]
    np.testing.assert_array_equal(train.translate(pixels, shifts), np.stack(expected), strict=True)


def test_translate_moves_down_and_right() -> None:
    pixels = np.zeros((1, 3, 4, 1), np.uint8)
    pixels[0, 0, 1] = 7
    moved = train.translate(pixels, np.array([[1, 2]]))
    assert moved[0, 1, 3, 0] == moved.sum() == 7


def numbered(count: int) -> ImageSet:
    """Images of noise, each a class of its own, so that a batch says which they are."""
    pixels = np.random.default_rng(0).integers(1, 256, (count, 10, 10, 1), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count), tuple(map(str, range(count))), "numbered")


def seen_batches(out: Path, images: ImageSet, **options: Any) -> list[Batch]:
    """What the network was shown in two epochs of as many steps as `images` allow."""
    config = TrainConfig(epochs=2, batch_size=16, **options)
    model = create_model("densenet-bc-10-4", SMALL.input_shape, len(images.classes), seed=0)
    batches: list[Batch] = []
    train.train(model, config, images, images, SMALL, out, recording(batches, []))
    return batches


def test_each_epoch_shows_every_image_once_in_another_order(tmp_path: Path) -> None:
    images = numbered(64)
    orders = []
    for seed in (0, 1):
        batches = seen_batches(tmp_path / str(seed), images, flip=False, shift=0, seed=seed)
        assert len(batches) == 8
        for inputs, labels in batches:
            np.testing.assert_array_equal(inputs, SMALL.normalise(images.pixels[labels]))
        labels = torch.cat([labels for _, labels in batches])
        orders += [labels[:64].tolist(), labels[64:].tolist()]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_last_incomplete_batch_is_dropped(tmp_path: Path) -> None:
    batches = seen_batches(tmp_path, numbered(40), flip=False, shift=0)
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 16]
    for epoch in (batches[:2], batches[2:]):
        assert len({int(label) for _, labels in epoch for label in labels}) == 32


def test_flip_mirrors_about_half_and_not_always_the_same(tmp_path: Path) -> None:
    images = numbered(64)
    mirrored = np.zeros((2, 64), bool)
    for step, (inputs, labels) in enumerate(seen_batches(tmp_path, images, flip=True, shift=0)):
        originals = SMALL.normalise(images.pixels[labels])
        for image, original, label in zip(inputs.numpy(), originals, labels, strict=True):
            flipped = not np.array_equal(image, original)
            np.testing.assert_array_equal(image, original[:, :, ::-1] if flipped else original)
            mirrored[step // 4, label] = flipped
    assert (np.abs(mirrored.mean(axis=1) - 0.5) < 0.25).all()  # four standard deviations
    assert (mirrored[0] != mirrored[1]).any()


def test_shift_moves_each_image_by_up_to_its_limit_into_black(tmp_path: Path) -> None:
    images = numbered(64)
    offsets = [(row, column) for row in range(-2, 3) for column in range(-2, 3)]
    found = []
    for inputs, labels in seen_batches(tmp_path, images, flip=False, shift=2):
        for image, label in zip(inputs.numpy(), labels, strict=True):
            pixels = images.pixels[label, :, :, 0]
            moved = [ndimage.shift(pixels, o, order=0, mode="constant", cval=0) for o in offsets]
            normalised = SMALL.normalise(np.stack(moved)[..., None])
            (match,) = [o for o, m in zip(offsets, normalised, strict=True) if (m == image).all()]
            found.append(match)
    assert len(found) == 128
    for axis in (0, 1):
        assert {offset[axis] for offset in found} == {-2, -1, 0, 1, 2}
