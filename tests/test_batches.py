"""Training batches: what they hold, and that neither processes nor workers nor resuming matter."""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torchvision import datasets

from densenet_deploy import augment, batches, data, preprocess
from densenet_deploy.batches import ImagesInFolder, ImagesInMemory, Share
from densenet_deploy.data import ImageSet
from densenet_deploy.errors import DataError, RecipeError
from densenet_deploy.image_files import ImageFiles, list_files
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.recipe import DataConfig
from densenet_deploy.train_config import TrainConfig

SMALL = Preprocessing(10, 10, mean=(0.286,), std=(0.353,))
COLOUR = Preprocessing(12, 16, preprocess.IMAGENET.mean, preprocess.IMAGENET.std, resize=16)
PLAIN = TrainConfig(epochs=2, batch_size=16, flip=False, shift=0)
PHOTOGRAPHS = TrainConfig(
    batch_size=8, crop="random-resized", colour_jitter=0.4, lighting=0.1, flip=True
)
Batch = tuple[Tensor, Tensor]


def numbered(count: int, channels: int = 1) -> ImageSet:
    """Images of noise, each a class of its own, so that a batch says which they are."""
    pixels = np.random.default_rng(0).integers(1, 256, (count, 10, 10, channels), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count), tuple(map(str, range(count))), "numbered")


def epoch_of(images: ImageSet, config: TrainConfig, epoch: int = 0, first: int = 0) -> list[Batch]:
    return list(ImagesInMemory(images, SMALL).batches(config, epoch, first))


def assert_equal(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others) > 0
    for (inputs, labels), (other_inputs, other_labels) in zip(some, others, strict=True):
        assert torch.equal(inputs, other_inputs)  # bit for bit
        assert torch.equal(labels, other_labels)


def joined(parts: list[list[Batch]]) -> list[Batch]:
    """The whole batches of what several processes got."""
    return [tuple(map(torch.cat, zip(*each, strict=True))) for each in zip(*parts, strict=True)]  # type: ignore[misc]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photographs of three classes, none of the same size."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(1)
    for index in range(24):
        size = (int(generator.integers(20, 50)), int(generator.integers(20, 50)), 3)
        smooth = ndimage.gaussian_filter(generator.random(size), (2, 2, 0))
        pixels = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
        place = root / "train" / "abc"[index % 3] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return root


def in_folder(root: Path, workers: int = 0) -> ImagesInFolder:
    return ImagesInFolder(list_files(str(root), "train"), COLOUR, workers)


# --- order


def test_each_epoch_shows_every_image_once_in_another_order() -> None:
    images = numbered(64)
    orders = []
    for seed in (0, 1):
        for epoch in (0, 1):
            shown = epoch_of(images, replace(PLAIN, seed=seed), epoch)
            assert len(shown) == 4
            for inputs, labels in shown:
                np.testing.assert_array_equal(inputs, SMALL.normalise(images.pixels[labels]))
            orders.append(torch.cat([labels for _, labels in shown]).tolist())
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_an_epoch_is_these_numpy_draws() -> None:
    """A run in progress goes on with the same batches: neither draws nor their order may change."""
    images, config = numbered(40), TrainConfig(batch_size=16, flip=True, shift=2, seed=7)
    generator = np.random.default_rng((7, 3))
    order = generator.permutation(40)
    mirrored = generator.random(40) < 0.5
    shifts = generator.integers(-2, 3, (40, 2))
    for step, (inputs, labels) in enumerate(epoch_of(images, config, epoch=3)):
        rows = order[16 * step : 16 * step + 16]
        np.testing.assert_array_equal(labels, rows)
        for image, row in zip(inputs, rows, strict=True):
            pixels = images.pixels[row, :, ::-1] if mirrored[row] else images.pixels[row]
            moved = ndimage.shift(pixels, (*shifts[row], 0), order=0, mode="constant", cval=0)
            np.testing.assert_array_equal(image, SMALL.normalise(moved[None])[0])


def test_last_incomplete_batch_is_dropped() -> None:
    shown = epoch_of(numbered(40), PLAIN)
    assert [len(labels) for _, labels in shown] == [16, 16]
    assert len({int(label) for _, labels in shown for label in labels}) == 32


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_goes_on_from_any_step(first: int) -> None:
    images, config = numbered(64), replace(PLAIN, flip=True, shift=2)
    whole, rest = epoch_of(images, config), epoch_of(images, config, first=first)
    assert len(rest) == 4 - first
    if rest:
        assert_equal(whole[first:], rest)


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 40), st.booleans())
def test_the_shares_of_all_processes_are_the_batch(world: int, images: int, lit: bool) -> None:
    config = TrainConfig(batch_size=12, shift=3, padding="mean", lighting=0.1 * lit)
    source = ImagesInMemory(
        numbered(images + 12, 3), replace(SMALL, mean=(0.4,) * 3, std=(0.2,) * 3)
    )
    whole = list(source.batches(config, 1, 0))
    parts = [list(source.batches(config, 1, 0, Share(rank, world))) for rank in range(world)]
    assert {len(labels) for part in parts for _, labels in part} == {12 // world}
    assert_equal(whole, joined(parts))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("padding", ["black", "mean"])
def test_inputs_lie_in_memory_as_asked(channels_last: bool, padding: Any) -> None:
    config = TrainConfig(batch_size=16, channels_last=channels_last, shift=2, padding=padding)
    source = ImagesInMemory(numbered(16, 3), replace(SMALL, mean=(0.4,) * 3, std=(0.2,) * 3))
    ((inputs, labels),) = source.batches(config, 0, 0)
    assert (inputs.dtype, inputs.shape) == (torch.float32, (16, 3, 10, 10))
    assert (labels.dtype, labels.shape) == (torch.int64, (16,))
    assert inputs.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert inputs.is_contiguous() == (not channels_last)


# --- flips and shifts


def test_flip_mirrors_about_half_and_not_always_the_same() -> None:
    images = numbered(64)
    mirrored = np.zeros((2, 64), bool)
    for epoch in (0, 1):
        for inputs, labels in epoch_of(images, replace(PLAIN, flip=True), epoch):
            originals = SMALL.normalise(images.pixels[labels])
            for image, original, label in zip(inputs.numpy(), originals, labels, strict=True):
                flipped = not np.array_equal(image, original)
                np.testing.assert_array_equal(image, original[:, :, ::-1] if flipped else original)
                mirrored[epoch, label] = flipped
    assert (np.abs(mirrored.mean(axis=1) - 0.5) < 0.25).all()  # four standard deviations
    assert (mirrored[0] != mirrored[1]).any()


@pytest.mark.parametrize("padding", ["black", "mean"])
def test_shift_moves_each_image_by_up_to_its_limit(padding: Any) -> None:
    """`black` enters before normalisation, as a pixel of 0; `mean` after it, as a value of 0."""
    images, config = numbered(64), replace(PLAIN, shift=2, padding=padding)
    offsets = [(row, column) for row in range(-2, 3) for column in range(-2, 3)]
    found = []
    for inputs, labels in (batch for epoch in (0, 1) for batch in epoch_of(images, config, epoch)):
        for image, label in zip(inputs.numpy(), labels, strict=True):
            pixels = images.pixels[label, :, :, 0]
            if padding == "mean":
                normalised = SMALL.normalise(pixels[None, :, :, None])[0, 0]
                moved = [ndimage.shift(normalised, o, order=0, cval=0) for o in offsets]
            else:
                shifted = [ndimage.shift(pixels, o, order=0, cval=0) for o in offsets]
                moved = list(SMALL.normalise(np.stack(shifted)[..., None])[:, 0])
            (match,) = [o for o, m in zip(offsets, moved, strict=True) if (m == image[0]).all()]
            found.append(match)
    assert len(found) == 128
    for axis in (0, 1):
        assert {offset[axis] for offset in found} == {-2, -1, 0, 1, 2}


# --- crops, colours, light


def folder_epoch(root: Path, config: TrainConfig, workers: int = 0, **where: Any) -> list[Batch]:
    return list(in_folder(root, workers).batches(config, where.pop("epoch", 0), 0, **where))


def test_light_is_added_to_the_pixels_before_normalisation(folder: Path) -> None:
    config = replace(PLAIN, batch_size=8, lighting=0.5)
    lit, plain = folder_epoch(folder, config), folder_epoch(folder, replace(config, lighting=0))
    order = np.random.default_rng((0, 0)).permutation(24)
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (COLOUR.mean, COLOUR.std))
    added = []
    for step, ((inputs, _), (originals, _)) in enumerate(zip(lit, plain, strict=True)):
        for image, original, row in zip(inputs, originals, order[8 * step :], strict=False):
            pixels, before = image * std + mean, original * std + mean
            difference = (pixels - before).mean((1, 2))
            assert torch.allclose(pixels, before + difference.reshape(3, 1, 1), atol=1e-6)
            generator = np.random.default_rng((0, 0, int(row), 2))
            expected = augment.light(0.5, generator)
            np.testing.assert_allclose(difference, expected, atol=1e-6)
            added.append(expected)
    assert len(np.unique(np.stack(added), axis=0)) == 24


def test_every_image_is_varied_on_its_own_and_anew_in_each_epoch(folder: Path) -> None:
    seen: dict[int, list[Tensor]] = {}
    for epoch in (0, 1):
        order = np.random.default_rng((0, epoch)).permutation(24)
        shown = folder_epoch(folder, PHOTOGRAPHS, epoch=epoch)
        inputs = torch.cat([inputs for inputs, _ in shown])
        for row, image in zip(order, inputs, strict=True):
            seen.setdefault(int(row), []).append(image)
    assert all(not torch.allclose(first, second) for first, second in seen.values())


def test_a_crop_is_that_of_its_generator(folder: Path) -> None:
    config = replace(PHOTOGRAPHS, lighting=0, flip=False)
    files = list_files(str(folder), "train")
    order = np.random.default_rng((0, 0)).permutation(24)
    inputs = torch.cat([inputs for inputs, _ in folder_epoch(folder, config)])
    for row, image in zip(order, inputs, strict=True):
        with Image.open(folder / "train" / files.names[row].decode()) as opened:
            generator = np.random.default_rng((0, 0, int(row), 1))
            pixels = augment.vary(opened, config, COLOUR, generator)
        np.testing.assert_array_equal(image, COLOUR.normalise(pixels[None])[0])


def test_images_in_memory_are_varied_as_files_are(folder: Path) -> None:
    """Of one size, so that decoding them first changes nothing."""
    images = data.read_files(list_files(str(folder), "train"), COLOUR)
    config = replace(PHOTOGRAPHS, batch_size=24)
    memory = list(ImagesInMemory(images, COLOUR).batches(config, 0, 0))
    place = folder / "decoded"
    for index, pixels in enumerate(images.pixels):
        path = place / "train" / "a" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    files = list(in_folder(place).batches(config, 0, 0))
    assert torch.equal(memory[0][0], files[0][0])


def test_light_of_gray_images_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.lighting with 1 channel; expected RGB images"):
        epoch_of(numbered(16), replace(PLAIN, lighting=0.1))


# --- files


def test_a_folder_is_what_torchvision_reads(folder: Path) -> None:
    theirs = datasets.ImageFolder(str(folder / "train"))
    images, config = in_folder(folder), replace(PLAIN, batch_size=8)
    assert images.classes == tuple(theirs.classes)
    assert len(images) == len(theirs) == 24
    assert images.labels.tolist() == theirs.targets
    order = np.random.default_rng((0, 0)).permutation(24)
    shown = list(images.batches(config, 0, 0))
    labels = torch.cat([labels for _, labels in shown])
    assert labels.tolist() == [theirs.targets[row] for row in order]
    for row, image in zip(order, torch.cat([inputs for inputs, _ in shown]), strict=True):
        pixels = COLOUR.geometry(theirs[row][0])
        np.testing.assert_array_equal(image, COLOUR.normalise(pixels[None])[0])


def test_neither_workers_nor_processes_change_anything(folder: Path) -> None:
    whole = folder_epoch(folder, PHOTOGRAPHS)
    assert len(whole) == 3
    assert_equal(whole, folder_epoch(folder, PHOTOGRAPHS, workers=2))
    shares = [
        folder_epoch(folder, PHOTOGRAPHS, workers=rank, share=Share(rank, 2)) for rank in (0, 1)
    ]
    assert_equal(whole, joined(shares))
    assert_equal(whole[2:], list(in_folder(folder, 2).batches(PHOTOGRAPHS, 0, 2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_generator_is_left_alone(folder: Path, workers: int) -> None:
    """Dropout draws from it: a resumed run would not repeat what a loader has taken."""
    before = torch.get_rng_state()
    folder_epoch(folder, PHOTOGRAPHS, workers)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(tmp_path: Path, folder: Path, workers: int) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    for index in range(8):
        (tmp_path / "train" / "a" / f"{index}.png").write_bytes(
            (folder / "train" / "a" / "0.png").read_bytes() if index else b"damaged"
        )
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image") as caught:
        list(in_folder(tmp_path, workers).batches(PHOTOGRAPHS, 0, 0))
    assert "Traceback" not in str(caught.value)


def peak(run: Iterator[Batch]) -> int:
    tracemalloc.start()
    for _ in run:
        pass
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used


def test_memory_does_not_grow_with_the_folder(tmp_path: Path) -> None:
    """numpy reports its arrays to tracemalloc, torch's share them."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = tmp_path / "image.png"
    Image.fromarray(pixels).save(image)
    preprocessing = Preprocessing(64, 64, (0.5,) * 3, (0.5,) * 3)
    used = {}
    for count in (16, 256):
        place = tmp_path / str(count) / "train" / "a"
        place.mkdir(parents=True)
        for index in range(count):
            (place / f"{index}.png").hardlink_to(image)
        files = ImagesInFolder(list_files(str(place.parents[1]), "train"), preprocessing, 0)
        config = replace(PLAIN, batch_size=8)
        list(files.batches(config, 0, 0))  # imports and caches
        used[count] = peak(files.batches(config, 0, 0))
    assert used[256] < used[16] + 100_000  # of 3 MB that 240 decoded images take


def test_a_million_names_are_one_array(folder: Path) -> None:
    files = list_files(str(folder), "train")
    assert isinstance(files.names, np.ndarray) and files.names.dtype.kind == "S"
    assert files.names.nbytes <= 24 * len("c/23.png")


def test_names_need_not_be_ascii(tmp_path: Path, folder: Path) -> None:
    place = tmp_path / "train" / "grün"
    place.mkdir(parents=True)
    (place / "blåbær.png").write_bytes((folder / "train" / "a" / "0.png").read_bytes())
    files = list_files(str(tmp_path), "train")
    assert files.classes == ("grün",)
    assert files.read(0, COLOUR).shape == (12, 16, 3)


# --- opening


def test_a_folder_is_opened_as_files_and_a_sample_in_memory(folder: Path) -> None:
    config = DataConfig(name="folder", directory=str(folder))
    images, held_out = batches.open_images(config, COLOUR, workers=0)
    assert isinstance(images, ImagesInFolder) and held_out is None
    memory, _ = batches.open_images(DataConfig(), preprocess.FASHION_MNIST)
    assert isinstance(memory, ImagesInMemory)
    assert (len(memory), memory.source) == (512, "Fashion-MNIST sample, 512 train images")


def image_keys(pixels: NDArray[np.uint8]) -> set[bytes]:
    return {image.tobytes() for image in pixels}


def test_held_out_images_are_not_trained_on(folder: Path) -> None:
    config = DataConfig(name="folder", directory=str(folder))
    everything = data.load(config, "train", COLOUR)
    images, held_out = batches.open_images(config, COLOUR, held_out=6, seed=3, workers=0)
    assert isinstance(images, ImagesInFolder) and isinstance(held_out, ImageFiles)
    assert (len(images), len(held_out)) == (18, 6)
    kept, away = (data.read_files(files, COLOUR).pixels for files in (images.files, held_out))
    assert image_keys(kept) | image_keys(away) == image_keys(everything.pixels)
    assert not image_keys(kept) & image_keys(away)
    again = batches.open_images(config, COLOUR, held_out=6, seed=3, workers=0)[1]
    assert isinstance(again, ImageFiles)
    np.testing.assert_array_equal(again.names, held_out.names)
    few, none = batches.open_images(replace(config, train_images=10), COLOUR, workers=0)
    assert (len(few), none) == (10, None)
    with pytest.raises(DataError, match="has 24 images; expected more than 24"):
        batches.open_images(config, COLOUR, held_out=24)


@pytest.mark.parametrize(
    "world, local_world, workers", [(1, 1, 6), (2, 2, 3), (4, 4, 1), (12, 12, 1), (4, 2, 3)]
)
def test_processes_share_the_cores_of_their_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, world: int, local_world: int, workers: int
) -> None:
    started = []

    def loader(*arguments: Any, **options: Any) -> list[Batch]:
        started.append(options["num_workers"])
        return []

    monkeypatch.setattr(batches, "usable_cores", lambda: 6)
    monkeypatch.setattr(batches, "DataLoader", loader)
    images = ImagesInFolder(list_files(str(folder), "train"), COLOUR)
    list(images.batches(replace(PHOTOGRAPHS, batch_size=12), 0, 0, Share(0, world, local_world)))
    assert started == [workers]


def test_the_loaders_handler_of_children_does_not_stay(folder: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    images = ImagesInFolder(list_files(str(folder), "train"), COLOUR, workers=1)
    for _ in images.batches(TrainConfig(batch_size=4), 0, 0):
        pass
    assert signal.getsignal(signal.SIGCHLD) == before
