from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from densenet_deploy import data, preprocess
from densenet_deploy.data import ImageSet, read_idx
from densenet_deploy.errors import DataError
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.recipe import DataConfig

GRAY = Preprocessing(6, 8, (0.5,), (0.5,))
byte_arrays = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6))


def idx(array: NDArray[np.uint8], magic: bytes = b"\0\0\x08") -> bytes:
    return magic + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)


def write(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Path:
    path = tmp_path_factory.getbasetemp() / "images-idx"
    path.write_bytes(content)
    return path


# --- the sample in the package


def test_sample_has_the_stated_shapes(sample: tuple[ImageSet, ImageSet]) -> None:
    for images, count, split in zip(sample, (512, 1000), ("train", "test"), strict=True):
        assert len(images) == count
        assert (images.pixels.shape, images.pixels.dtype) == ((count, 28, 28, 1), np.uint8)
        assert (images.labels.shape, images.labels.dtype) == ((count,), np.int64)
        assert images.classes == data.FASHION_MNIST_CLASSES
        assert images.source == f"Fashion-MNIST sample, {count} {split} images"


def test_sample_is_balanced_and_without_repetition(sample: tuple[ImageSet, ImageSet]) -> None:
    for images in sample:
        share = np.bincount(images.labels, minlength=10) / len(images)
        assert share.shape == (10,)
        # a fair draw of 512 strays from 0.1 by 0.013 (one standard deviation)
        np.testing.assert_allclose(share, 0.1, atol=4 * 0.0133)
    everything = np.concatenate([images.pixels for images in sample])
    assert len(np.unique(everything.reshape(1512, -1), axis=0)) == 1512


def test_sample_looks_like_the_data_set_it_is_normalised_for(
    sample: tuple[ImageSet, ImageSet],
) -> None:
    for images in sample:
        normalised = preprocess.FASHION_MNIST.normalise(images.pixels)
        assert normalised.mean() == pytest.approx(0, abs=0.03)
        assert normalised.std() == pytest.approx(1, abs=0.03)


def test_sample_equals_the_full_set_at_its_indices(
    sample: tuple[ImageSet, ImageSet], full_fashion_mnist: Path
) -> None:
    with np.load(data.ASSETS / "fashion_mnist_sample.npz") as arrays:
        indices = arrays["train_indices"], arrays["test_indices"]
    drawn = np.sort(np.random.default_rng(0).choice(60_000, 512, replace=False))
    np.testing.assert_array_equal(indices[0], drawn)
    np.testing.assert_array_equal(indices[1], np.arange(1000))
    for images, at, split in zip(sample, indices, ("train", "test"), strict=True):
        config = DataConfig(directory=str(full_fashion_mnist))
        full = data.load(config, split, preprocess.FASHION_MNIST)  # type: ignore[arg-type]
        assert len(full) == {"train": 60_000, "test": 10_000}[split]
        np.testing.assert_array_equal(images.pixels, full.pixels[at])
        np.testing.assert_array_equal(images.labels, full.labels[at])
        assert (np.bincount(full.labels) == len(full) // 10).all()


def test_full_set_is_what_torchvision_reads(full_fashion_mnist: Path, tmp_path: Path) -> None:
    full = data.load(
        DataConfig(directory=str(full_fashion_mnist)), "test", preprocess.FASHION_MNIST
    )
    for kind, ours in (("images-idx3", full.pixels[..., 0]), ("labels-idx1", full.labels)):
        (source,) = full_fashion_mnist.glob(f"t10k-{kind}-ubyte*")
        packed = source.read_bytes()
        plain = tmp_path / kind
        plain.write_bytes(gzip.decompress(packed) if source.suffix == ".gz" else packed)
        theirs = read_sn3_pascalvincent_tensor(str(plain))
        assert torch.equal(torch.tensor(ours.astype(np.uint8)), theirs)


def test_normalisation_constants_are_those_of_the_full_set(full_fashion_mnist: Path) -> None:
    config = DataConfig(directory=str(full_fashion_mnist))
    pixels = data.load(config, "train", preprocess.FASHION_MNIST).pixels
    moments = np.bincount(pixels.ravel(), minlength=256) / pixels.size
    values = np.arange(256) / 255
    mean = moments @ values
    std = np.sqrt(moments @ (values - mean) ** 2)
    assert preprocess.FASHION_MNIST.mean[0] == pytest.approx(mean, abs=5e-5)
    assert preprocess.FASHION_MNIST.std[0] == pytest.approx(std, abs=5e-5)


# --- taking images


def test_test_images_limits_the_test_split_alone() -> None:
    config = DataConfig(test_images=7)
    assert len(data.load(config, "test", preprocess.FASHION_MNIST)) == 7
    assert len(data.load(config, "train", preprocess.FASHION_MNIST)) == 512


def test_more_test_images_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="has 1000 images; expected at least 1001"):
        data.load(DataConfig(test_images=1001), "test", preprocess.FASHION_MNIST)


def test_train_images_draws_the_same_ones_from_the_train_split_alone() -> None:
    config, images = DataConfig(train_images=100), preprocess.FASHION_MNIST
    some, again = (data.load(config, "train", images) for _ in range(2))
    whole = data.load(DataConfig(), "train", images)
    rows = [
        int((whole.pixels == image).all(axis=(1, 2, 3)).nonzero()[0][0]) for image in some.pixels
    ]
    assert len(set(rows)) == 100 and max(rows) > 400  # distinct, and not the first ones
    np.testing.assert_array_equal(some.labels, whole.labels[rows])
    np.testing.assert_array_equal(some.pixels, again.pixels)
    assert set(some.labels.tolist()) == set(range(10)) and some.source.startswith("100 of ")
    assert len(data.load(config, "test", images)) == 1000
    assert len(data.load(config, "train", images, limit=30)) == 30
    assert len(data.load(DataConfig("synthetic", train_images=9), "train", images)) == 9


def test_more_train_images_than_there_are_is_an_error() -> None:
    assert len(data.load(DataConfig(train_images=512), "train", preprocess.FASHION_MNIST)) == 512
    with pytest.raises(DataError, match=r"512 train images are fewer than data\.train_im"):
        data.load(DataConfig(train_images=513), "train", preprocess.FASHION_MNIST)


def test_train_images_of_a_folder(tmp_path: Path) -> None:
    image_folder(tmp_path, "train", {"ant": 20, "zebra": 20})
    config = DataConfig(name="folder", directory=str(tmp_path), train_images=16)
    some, whole = data.load(config, "train", GRAY), folder(tmp_path, "train")
    found = {image.tobytes() for image in some.pixels}
    assert len(found) == 16 and found < {image.tobytes() for image in whole.pixels}
    assert found > {image.tobytes() for image in data.load(config, "train", GRAY, 5).pixels}


def test_take_keeps_the_first_images_and_their_labels() -> None:
    images = ImageSet(np.arange(5, dtype=np.uint8)[:, None, None, None], np.arange(5), ("a",), "x")
    taken = images.take(3)
    assert taken.pixels.ravel().tolist() == taken.labels.tolist() == [0, 1, 2]
    assert (taken.classes, taken.source) == (("a",), "3 of x")
    assert len(images.take(0)) == len(images.take(5)) == 5
    with pytest.raises(DataError, match="x has 5 images; expected at least 6"):
        images.take(6)


# --- IDX files


@given(byte_arrays, st.booleans())
def test_idx_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[np.uint8], packed: bool
) -> None:
    content = gzip.compress(idx(array), 1) if packed else idx(array)
    found = read_idx(write(tmp_path_factory, content))
    np.testing.assert_array_equal(found, array, strict=True)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)))
def test_idx_is_what_torchvision_reads(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[np.uint8]
) -> None:
    path = write(tmp_path_factory, idx(array))
    np.testing.assert_array_equal(read_idx(path), read_sn3_pascalvincent_tensor(str(path)).numpy())


@given(byte_arrays, st.booleans(), st.data())
def test_truncated_idx_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    array: NDArray[np.uint8],
    packed: bool,
    draw: st.DataObject,
) -> None:
    content = gzip.compress(idx(array), 1) if packed else idx(array)
    length = draw.draw(st.integers(0, len(content) - 1))
    with pytest.raises(DataError, match="is not a readable IDX file"):
        read_idx(write(tmp_path_factory, content[:length]))


@given(byte_arrays, st.binary(min_size=1, max_size=4))
def test_idx_with_bytes_left_over_is_refused(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[np.uint8], rest: bytes
) -> None:
    with pytest.raises(DataError, match="is not a readable IDX file"):
        read_idx(write(tmp_path_factory, idx(array) + rest))


@example(b"\1\0\x08")
@example(b"\0\0\x09")
@given(st.binary(min_size=3, max_size=3).filter(lambda magic: magic != b"\0\0\x08"))
def test_another_magic_number_is_refused(
    tmp_path_factory: pytest.TempPathFactory, magic: bytes
) -> None:
    content = idx(np.zeros((2, 3), np.uint8), magic)
    with pytest.raises(DataError) as caught:
        read_idx(write(tmp_path_factory, content))
    if magic[:2] != b"\x1f\x8b":  # which announces gzip
        assert f"begins with {magic.hex()}02, unsigned bytes with 000008" in str(caught.value)


@given(st.integers(0, 2**31), st.integers(1, 255))
def test_damaged_gzip_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    array = np.random.default_rng(0).integers(0, 4, (20, 5), dtype=np.uint8)
    content = bytearray(gzip.compress(idx(array), mtime=0))
    content[place % len(content)] ^= flip
    path = write(tmp_path_factory, bytes(content))
    try:
        found = read_idx(path)
    except DataError as error:
        assert "is not a readable IDX file" in str(error)
    else:  # the flip hit a header field that says nothing of the content, such as the time
        np.testing.assert_array_equal(found, array)


def test_missing_idx_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        read_idx(tmp_path / "none")


# --- a folder of Fashion-MNIST files


def fashion_mnist(folder: Path, pixels: Any, labels: Any, suffix: str = "") -> DataConfig:
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        content = idx(np.asarray(array, np.uint8))
        content = gzip.compress(content) if suffix else content
        (folder / f"t10k-{kind}-ubyte{suffix}").write_bytes(content)
    return DataConfig(directory=str(folder))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_files_are_read_from_a_directory(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    config = fashion_mnist(tmp_path, pixels, [9, 1, 2, 3, 0], suffix)
    images = data.load(config, "test", preprocess.FASHION_MNIST)
    np.testing.assert_array_equal(images.pixels[..., 0], pixels)
    assert images.labels.tolist() == [9, 1, 2, 3, 0]
    assert images.source == "Fashion-MNIST, 5 test images"


@pytest.mark.parametrize(
    "pixels, labels",
    [
        (np.zeros((5, 28, 28)), np.zeros(4)),
        (np.zeros((5, 27, 28)), np.zeros(5)),
        (np.zeros((5, 28, 28)), np.zeros((5, 28, 28))),
        (np.zeros(5), np.zeros(5)),
    ],
    ids=["one label short", "not 28x28", "images as labels", "labels as images"],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, pixels: Any, labels: Any
) -> None:
    config = fashion_mnist(tmp_path, pixels, labels)
    with pytest.raises(DataError, match=r"images and .* labels"):
        data.load(config, "test", preprocess.FASHION_MNIST)


def test_directory_without_the_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Fashion-MNIST files.*train-images-idx3-ubyte"):
        data.load(DataConfig(directory=str(tmp_path)), "train", preprocess.FASHION_MNIST)


# --- a folder of images


def image_folder(root: Path, split: str, names: dict[str, int]) -> dict[str, list[NDArray[Any]]]:
    """PNGs of noise in one sub-folder per class."""
    generator = np.random.default_rng(len(split))
    written: dict[str, list[NDArray[Any]]] = {}
    for name, count in names.items():
        (root / split / name).mkdir(parents=True)
        written[name] = list(generator.integers(0, 256, (count, 6, 8), dtype=np.uint8))
        for index, pixels in enumerate(written[name]):
            Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return written


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_image_folder(tmp_path: Path, test_name: str) -> None:
    written = {
        "train": image_folder(tmp_path, "train", {"zebra": 2, "ant": 3}),
        "test": image_folder(tmp_path, test_name, {"zebra": 1, "ant": 1}),
    }
    (tmp_path / "train" / "README.txt").write_text("not a class")
    for split, classes in written.items():
        config = DataConfig(name="folder", directory=str(tmp_path))
        images = data.load(config, split, GRAY)  # type: ignore[arg-type]
        assert images.classes == ("ant", "zebra")
        expected = np.stack(classes["ant"] + classes["zebra"])
        labels = np.repeat([0, 1], [len(classes["ant"]), len(classes["zebra"])])
        order = np.random.default_rng(0).permutation(len(labels))
        np.testing.assert_array_equal(images.pixels[..., 0], expected[order])
        np.testing.assert_array_equal(images.labels, labels[order])
        assert tmp_path.name in images.source


def folder(root: Path, split: Any, limit: int = 0, test_images: int = 0) -> ImageSet:
    config = DataConfig(name="folder", directory=str(root), test_images=test_images)
    return data.load(config, split, GRAY, limit)


def test_training_images_name_the_classes(tmp_path: Path) -> None:
    image_folder(tmp_path, "train", {"ant": 1, "bee": 1, "zebra": 1})
    image_folder(tmp_path, "test", {"zebra": 2})
    images = folder(tmp_path, "test")
    assert images.classes == ("ant", "bee", "zebra")
    assert images.labels.tolist() == [2, 2]
    image_folder(tmp_path, "test", {"cat": 1, "dog": 1})
    with pytest.raises(DataError, match="test has classes that train/ lacks: cat, dog"):
        folder(tmp_path, "test")


def test_a_limit_reads_no_further_and_covers_the_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        image_folder(tmp_path, split, {"ant": 20, "zebra": 20})
        everything = folder(tmp_path, split)
        last = int(np.random.default_rng(0).permutation(40)[-1])
        files = sorted((tmp_path / split).glob("*/*.png"))
        files[last].write_bytes(b"damaged")
        for limit in (8, 39):
            images = folder(tmp_path, split, limit, test_images=limit)
            np.testing.assert_array_equal(images.pixels, everything.pixels[:limit])
            assert set(images.labels.tolist()) == {0, 1}
        with pytest.raises(DataError, match="cannot be read as an image"):
            folder(tmp_path, split)


def test_hidden_files_are_no_images_and_no_classes(tmp_path: Path) -> None:
    image_folder(tmp_path, "train", {"ant": 1, ".thumbnails": 1})
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    images = folder(tmp_path, "train")
    assert (len(images), images.classes) == (1, ("ant",))


def test_image_folder_is_resized_as_preprocessing_says(tmp_path: Path) -> None:
    image_folder(tmp_path, "train", {"ant": 1})
    colour = Preprocessing(10, 12, (0.5,) * 3, (0.5,) * 3)
    images = data.load(DataConfig(name="folder", directory=str(tmp_path)), "train", colour)
    with Image.open(tmp_path / "train" / "ant" / "0.png") as image:
        np.testing.assert_array_equal(images.pixels[0], colour.geometry(image))


def test_damaged_image_in_a_folder_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path, "train", {"ant": 1})
    (tmp_path / "train" / "ant" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"ant/1\.png cannot be read as an image"):
        data.load(DataConfig(name="folder", directory=str(tmp_path)), "train", GRAY)


@pytest.mark.parametrize("split, expected", [("train", "train"), ("test", "test or val")])
def test_missing_folder_says_what_is_expected(tmp_path: Path, split: Any, expected: str) -> None:
    for directory in (str(tmp_path), ""):
        with pytest.raises(DataError, match=f"no folder {expected} in .*CLASS/image files"):
            data.load(DataConfig(name="folder", directory=directory), split, GRAY)


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match="train holds no images"):
        data.load(DataConfig(name="folder", directory=str(tmp_path)), "train", GRAY)


# --- synthetic images


@pytest.mark.parametrize("shape", [(28, 28, 1), (33, 20, 3), (5, 3, 3)])
def test_synthetic_images_are_seeded_and_smooth(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    ours = Preprocessing(height, width, (0.5,) * channels, (0.5,) * channels)
    images = data.synthetic(200, ours, seed=3)
    assert (images.pixels.shape, images.pixels.dtype) == ((200, *shape), np.uint8)
    assert (images.labels == -1).all()
    np.testing.assert_array_equal(images.pixels, data.synthetic(200, ours, seed=3).pixels)
    assert (images.pixels != data.synthetic(200, ours, seed=4).pixels).mean() > 0.9
    values = images.pixels.astype(float)
    left, right = values[:, :, :-1].ravel(), values[:, :, 1:].ravel()
    assert np.corrcoef(left, right)[0, 1] > 0.7
    assert values.std() > 40


def test_synthetic_is_loaded_by_name() -> None:
    images = data.load(DataConfig(name="synthetic", test_images=4), "test", GRAY)
    assert images.pixels.shape == (4, 6, 8, 1)


def test_synthetic_test_images_are_not_the_training_images() -> None:
    config = DataConfig(name="synthetic", test_images=4)
    train, test = data.load(config, "train", GRAY, limit=4), data.load(config, "test", GRAY)
    assert train.pixels.shape == test.pixels.shape
    assert (train.pixels != test.pixels).mean() > 0.9


# --- labels


@pytest.mark.parametrize(
    "labels, found", [([0, -1, 2], "no labels"), ([0, 3], "labels up to 3"), ([-1, 9], "no labels")]
)
def test_labels_that_name_no_class_are_refused(labels: list[int], found: str) -> None:
    pixels = np.zeros((len(labels), 1, 1, 1), np.uint8)
    images = ImageSet(pixels, np.asarray(labels), (), "pictures")
    with pytest.raises(DataError, match=f"pictures has {found}; expected labels 0 to 2"):
        data.check_labels(images, 3)


def test_labels_of_the_classes_are_accepted() -> None:
    data.check_labels(ImageSet(np.zeros((3, 1, 1, 1), np.uint8), np.arange(3), (), "x"), 3)
    data.check_labels(data.none(GRAY), 3)
