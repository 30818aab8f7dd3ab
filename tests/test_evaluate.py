"""Accuracy against a count image by image, and ten crops against torchvision's."""

from __future__ import annotations

import threading
import time
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
from torch import Tensor, nn
from torchvision import transforms

from densenet_deploy import evaluate as evaluating
from densenet_deploy.data import ImageSet, load, synthetic
from densenet_deploy.errors import DataError
from densenet_deploy.evaluate import Accuracy, evaluate, ten_crops
from densenet_deploy.image_files import ImageFiles, list_files
from densenet_deploy.model import create_model
from densenet_deploy.preprocess import Interpolation, Preprocessing
from densenet_deploy.recipe import DataConfig

pytestmark = pytest.mark.usefixtures("one_thread")

HOW = Preprocessing(20, 24, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), resize=30, interpolation="bicubic")
CLASSES = tuple("abcdefg")


def network(classes: int = len(CLASSES)) -> nn.Module:
    return create_model("densenet-bc-10-4", HOW.input_shape, classes, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, some smaller than the input, in DIRECTORY/val/CLASS."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(42):
        place = root / "val" / CLASSES[index % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        height, width = random.integers(18, 70, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index:02}.png")
    return root


def torchvisions_inputs(path: Path, crops: int) -> Tensor:
    """(crops, C, H, W) by torchvision alone."""
    size = (HOW.height, HOW.width)
    resize = transforms.Resize(HOW.resize, transforms.InterpolationMode.BICUBIC)
    image = resize(Image.open(path).convert("RGB"))
    crop = transforms.TenCrop(size) if crops == 10 else transforms.CenterCrop(size)
    cropped = crop(image) if crops == 10 else [crop(image)]
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(HOW.mean, HOW.std)])
    return torch.stack([normalise(part) for part in cropped])


@pytest.mark.parametrize("crops", [1, 10])
def test_accuracy_on_files_is_that_of_torchvisions_crops(folder: Path, crops: int) -> None:
    model, files = network(), list_files(str(folder), "test")
    first = five = 0
    model.eval()
    with torch.inference_mode():
        for index, name in enumerate(CLASSES):
            for path in sorted((folder / "val" / name).iterdir()):
                logits = model(torchvisions_inputs(path, crops)).mean(0)
                best = logits.topk(5).indices.tolist()
                first, five = first + (best[0] == index), five + (index in best)
    for batch_size in (1, 7, 64, 1000):
        found = evaluate(model, files, HOW, batch_size, 10 if crops == 10 else 1)
        assert found == Accuracy(100 * first / 42, 100 * five / 42, 42, crops, files.source)
    assert 0 < first < five < 42


class Recording(nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """The same logits for everything."""
        self.seen.append(inputs)
        return torch.zeros(len(inputs), len(CLASSES))


@pytest.mark.parametrize("crops", [1, 10])
def test_the_network_sees_torchvisions_crops(folder: Path, crops: int) -> None:
    model = Recording()
    evaluate(model, list_files(str(folder), "test"), HOW, 25, 10 if crops == 10 else 1)
    paths = sorted((folder / "val").glob("*/*.png"))
    expected = torch.cat([torchvisions_inputs(path, crops) for path in paths])
    assert len(expected) == 42 * crops
    torch.testing.assert_close(torch.cat(model.seen), expected, rtol=0, atol=1e-6)


def test_a_batch_is_read_while_another_is_computed(folder: Path) -> None:
    """The network waits for the second image while it has the first."""
    files = list_files(str(folder), "test").pick(np.arange(3))
    second = threading.Event()

    class Watched(ImageFiles):
        def read(self, row: int, *arguments: Any) -> NDArray[np.uint8]:
            if row == 1:
                second.set()
            return super().read(row, *arguments)

    class Waiting(Recording):
        def forward(self, inputs: Tensor) -> Tensor:
            assert second.wait(timeout=20)
            return super().forward(inputs)

    model = Waiting()
    evaluate(model, Watched(**vars(files)), HOW, batch_size=1)
    assert len(model.seen) == 3


def test_what_waits_to_be_read_is_not_read_after_an_error(folder: Path) -> None:
    files = list_files(str(folder), "test")
    read: list[int] = []

    class Broken(ImageFiles):
        def read(self, row: int, *arguments: Any) -> NDArray[np.uint8]:
            read.append(row)
            if row == 0:
                raise DataError("unreadable")
            time.sleep(0.05)
            return super().read(row, *arguments)

    with pytest.raises(DataError, match="unreadable"):
        evaluate(Recording(), Broken(**vars(files)), HOW, batch_size=42)
    assert len(read) < 42


class Torn(nn.Module):
    """Sure of class 0 where it sees black, and doubtful where white."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, 3)."""
        black, white = torch.tensor([8.0, 1.0, -8.0]), torch.tensor([-8.0, 1.0, 1.0])
        return torch.where(inputs[:, 0, 0, :1] < 0.5, black, white)


def test_logits_of_the_crops_are_averaged_not_probabilities() -> None:
    """As the authors' code does; the mean of the probabilities would be class 0."""
    how = Preprocessing(1, 1, (0.0,), (1.0,))
    pixels = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    inputs = torch.from_numpy(how.normalise(ten_crops(pixels[0], 1, 1)))
    assert int(Torn()(inputs).softmax(1).mean(0).argmax()) == 0
    half = ImageSet(pixels, np.array([1]), (), "half black, half white")
    assert evaluate(Torn(), half, how, crops=10).top1 == 100


@given(
    crop=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any),
    channels=st.sampled_from([1, 3]),
)
def test_ten_crops_are_torchvisions(
    crop: tuple[int, int], extra: tuple[int, int], channels: int
) -> None:
    shape = (crop[0] + extra[0], crop[1] + extra[1], channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    theirs = transforms.TenCrop(crop)(torch.from_numpy(pixels).permute(2, 0, 1))
    expected = torch.stack(list(theirs)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(ten_crops(pixels, *crop), expected, strict=True)


@pytest.mark.parametrize("size", [(4, 4), (3, 9), (9, 3)])
def test_ten_crops_need_a_larger_image(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"10 crops of 4x4 .* larger than the crop.*single crop"):
        ten_crops(np.zeros((*size, 3), np.uint8), 4, 4)


def pixels_of(count: int, height: int, width: int) -> NDArray[np.uint8]:
    shape = (count, height, width, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def images(count: int = 30, height: int = 20, width: int = 24) -> ImageSet:
    labels = np.arange(count) % len(CLASSES)
    return ImageSet(pixels_of(count, height, width), labels, CLASSES, "pictures")


def test_pixels_larger_than_the_input_take_ten_crops() -> None:
    model, larger = network().eval(), images(height=22)
    right = 0
    for pixels, label in zip(larger.pixels, larger.labels, strict=True):
        inputs = torch.from_numpy(HOW.normalise(ten_crops(pixels, 20, 24)))
        right += int(model(inputs).mean(0).argmax()) == label
    assert evaluate(model, larger, HOW, crops=10).top1 == 100 * right / 30


def test_ten_crops_of_images_of_the_inputs_size_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="expected an image larger than the crop"):
        evaluate(network(), images(), HOW, crops=10)
    files = list_files(str(folder), "test")
    with pytest.raises(DataError, match="images are resized straight to the input"):
        evaluate(network(), files, replace(HOW, resize=0), crops=10)


def test_the_model_is_left_as_it_was() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = evaluate(model, images(), HOW)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert evaluate(model.eval(), images(), HOW) == first
    assert not model.training


def test_the_training_flag_is_restored_after_an_error() -> None:
    model = network().train()
    with pytest.raises(DataError):
        evaluate(model, images(height=21), HOW)
    assert model.training


class First(nn.Module):
    """Says what the first pixel is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits that fall with the distance from the first pixel's value."""
        assert inputs.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        value = (inputs[:, 0, 0, :1] * 255).round()
        return -(torch.arange(self.classes) - value).abs()


@pytest.mark.parametrize("classes, top5", [(5, None), (6, 50), (9, 50)])
def test_top5_where_there_are_more_than_five_classes(classes: int, top5: float | None) -> None:
    """Six images of class 0, whose pixels say 0 to 5: from 3 on, 0 is not of the nearest five."""
    how = Preprocessing(1, 1, (0.0,), (1.0,))
    pixels = np.minimum(np.arange(6), classes - 1).astype(np.uint8).reshape(6, 1, 1, 1)
    zeros = ImageSet(pixels, np.zeros(6, np.int64), (), "zeros")
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(First(classes), zeros, how)
    assert found == Accuracy(100 / 6, top5, 6, 1, "zeros")


def test_images_without_the_networks_labels_are_refused() -> None:
    with pytest.raises(DataError, match="no labels"):
        evaluate(network(), synthetic(4, replace(HOW, resize=0)), HOW)
    with pytest.raises(DataError, match="pictures has labels up to 6; expected labels 0 to 2"):
        evaluate(network(classes=3), images(), HOW)
    with pytest.raises(DataError, match="no images"):
        evaluate(network(), images(0), HOW)


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    files = list_files(str(folder), "test")
    broken = tmp_path / "val" / "a"
    broken.mkdir(parents=True)
    (broken / "broken.png").write_bytes(b"\x89PNG")
    damaged = replace(files, root=tmp_path / "val", names=np.array([b"a/broken.png"]))
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        evaluate(network(), replace(damaged, labels=files.labels[:1]), HOW)


def test_files_are_read_batch_by_batch(folder: Path) -> None:
    model = Recording()
    evaluate(model, list_files(str(folder), "test"), HOW, 16)
    evaluate(model, list_files(str(folder), "test"), HOW, 25, 10)
    assert [len(inputs) for inputs in model.seen] == [16, 16, 10] + [20] * 21


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_folder_is_the_same_images_as_in_memory(
    folder: Path, limit: int, interpolation: Interpolation
) -> None:
    config = DataConfig("folder", str(folder), test_images=limit)
    how = replace(HOW, interpolation=interpolation)
    files, loaded = evaluating.test_images(config, how), load(config, "test", how)
    assert isinstance(files, ImageFiles) and len(files) == len(loaded) == (limit or 42)
    assert sorted(files.labels) == sorted(loaded.labels)
    one, other = evaluate(network(), files, how), evaluate(network(), loaded, how)
    assert (one.top1, one.top5) == (other.top1, other.top5)
    with pytest.raises(DataError, match="42 images; expected at least 43"):
        evaluating.test_images(replace(config, test_images=43), how)


def test_summary_says_what_was_counted() -> None:
    one = Accuracy(74.434, 91.972, 50_000, 1, "val images")
    assert one.summary() == "top-1 74.43 %, top-5 91.97 % (val images)"
    ten = Accuracy(95.0, None, 10, 10, "ten images")
    assert ten.summary() == "top-1 95.00 % (ten images, 10 crops of each)"
    assert ten.to_dict() == {
        "top1": 95.0,
        "top5": None,
        "images": 10,
        "crops": 10,
        "source": "ten images",
    }
