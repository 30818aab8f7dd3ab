"""Preprocessing against torchvision.transforms, pixel for pixel."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, features
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from densenet_deploy import preprocess, schema
from densenet_deploy.errors import DataError
from densenet_deploy.preprocess import Interpolation, Preprocessing

PUBLISHED = {
    name: getattr(preprocess, name)
    for name in ("FASHION_MNIST", "CIFAR10", "CIFAR100", "SVHN", "IMAGENET")
}
MODES = ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "YCbCr"]


def preprocessing(
    height: int,
    width: int,
    channels: int,
    resize: int = 0,
    interpolation: Interpolation = "bilinear",
) -> Preprocessing:
    values = (0.4,) * channels, (0.2,) * channels
    return Preprocessing(height, width, *values, resize, interpolation)


def photograph(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def torchvision_geometry(image: Image.Image, ours: Preprocessing) -> NDArray[np.uint8]:
    size = (ours.height, ours.width)
    steps: list[Any] = [
        transforms.Resize(
            ours.resize or size, InterpolationMode(ours.interpolation), antialias=True
        )
    ]
    if ours.resize:
        steps.append(transforms.CenterCrop(size))
    image = image.convert("L" if ours.channels == 1 else "RGB")
    pixels = np.asarray(transforms.Compose(steps)(image))
    return pixels[..., None] if ours.channels == 1 else pixels


@settings(max_examples=200)
@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    extra=st.none() | st.integers(0, 20),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 1000),
)
def test_geometry_equals_torchvisions(
    source: tuple[int, int],
    height: int,
    width: int,
    extra: int | None,
    channels: int,
    interpolation: Interpolation,
    mode: str,
    seed: int,
) -> None:
    resize = 0 if extra is None else max(height, width) + extra
    ours = preprocessing(height, width, channels, resize, interpolation)
    image = photograph(*source, mode, seed)
    pixels = ours.geometry(image)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, torchvision_geometry(image, ours), strict=True)


@pytest.mark.parametrize("size", [(499, 375), (375, 499), (224, 224), (1000, 257), (64, 301)])
def test_imagenet_geometry_equals_torchvisions_own_recipe(size: tuple[int, int]) -> None:
    image = photograph(*size)
    expected = torchvision_geometry(image, preprocess.IMAGENET)
    np.testing.assert_array_equal(preprocess.IMAGENET.geometry(image), expected)
    assert expected.shape == (224, 224, 3)


def test_bicubic_is_another_resize_and_bilinear_the_default() -> None:
    image, bicubic = photograph(100, 80), replace(preprocess.IMAGENET, interpolation="bicubic")
    assert preprocess.IMAGENET.interpolation == "bilinear"
    assert (bicubic.geometry(image) != preprocess.IMAGENET.geometry(image)).any()


@pytest.mark.parametrize(
    "table, expected",
    [({}, "bilinear"), ({"interpolation": "bicubic"}, "bicubic"), ({"interpolation": "x"}, None)],
)
def test_a_file_from_before_there_was_a_choice_means_bilinear(
    table: dict[str, str], expected: str | None
) -> None:
    problems: list[str] = []
    table = json.loads(json.dumps({"height": 8, "width": 8, "mean": [0.5], "std": [0.5]} | table))
    read = schema.read(Preprocessing, table, "preprocessing", problems)
    assert (read and read.interpolation) == expected
    assert problems == [] or "'x', expected one of: bilinear, bicubic" in problems[0]


@pytest.mark.parametrize(
    "size, resize", [((224, 224), 256), ((288, 288), 329), ((112, 56), 128), ((448, 1), 512)]
)
def test_another_input_size_keeps_the_share_of_the_crop(size: tuple[int, int], resize: int) -> None:
    found = preprocess.IMAGENET.at(*size)
    assert ((found.height, found.width), found.resize) == (size, resize)
    assert replace(found, height=224, width=224, resize=256) == preprocess.IMAGENET
    assert preprocess.CIFAR10.at(*size).resize == 0


def test_image_of_the_right_size_is_not_touched() -> None:
    image = photograph(28, 28, "L")
    pixels = preprocess.FASHION_MNIST.geometry(image)
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(image))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_pixel_value_is_normalised_to_1e_6(name: str) -> None:
    ours = replace(PUBLISHED[name], height=2, width=3)
    values = np.arange(256, dtype=np.uint8)
    shape = (256, ours.height, ours.width, ours.channels)
    pixels = np.broadcast_to(values[:, None, None, None], shape)
    expected = (values[:, None] / 255 - np.array(ours.mean)) / np.array(ours.std)
    normalised = ours.normalise(pixels)
    assert normalised.shape == (256, *ours.input_shape)
    assert normalised.dtype == np.float32
    assert normalised.flags.c_contiguous
    np.testing.assert_allclose(
        normalised, np.broadcast_to(expected[..., None, None], normalised.shape), rtol=0, atol=1e-6
    )


def test_whole_chain_equals_totensor_and_normalize() -> None:
    ours = Preprocessing(20, 24, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=30)
    image = photograph(70, 50)
    theirs = transforms.Compose(
        [
            transforms.Resize(30),
            transforms.CenterCrop((20, 24)),
            transforms.ToTensor(),
            transforms.Normalize(ours.mean, ours.std),
        ]
    )
    np.testing.assert_allclose(
        ours.normalise(ours.geometry(image)[None])[0], theirs(image).numpy(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 28, 28, 1), np.float32),
        np.zeros((1, 28, 28, 3), np.uint8),
        np.zeros((1, 28, 27, 1), np.uint8),
        np.zeros((28, 28, 1), np.uint8),
        np.zeros((1, 1, 28, 28), np.uint8),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \(N, 28, 28, 1\)"):
        preprocess.FASHION_MNIST.normalise(pixels)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((28, 28, (0.5, 0.5), (0.5, 0.5)), "1 .grayscale. or 3 .RGB. values"),
        ((28, 28, (0.5,), (0.5, 0.5, 0.5)), "mean and std must both"),
        ((28, 28, (), ()), "mean and std must both"),
        ((28, 28, (0.5,), (0.0,)), "std must be positive"),
        ((0, 28, (0.5,), (0.5,)), "height and width must be positive"),
        ((28, 32, (0.5,), (0.5,), 31), "resize must be 0 or at least height and width"),
        ((28, 32, (0.5,), (0.5,), 0, "nearest"), "interpolation must be one of: bilinear, bicubic"),
    ],
)
def test_impossible_preprocessing_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(*arguments)


@pytest.mark.parametrize("extension", ["png", "bmp", "ppm", "tiff"])
def test_read_decodes_lossless_files(tmp_path: Path, extension: str) -> None:
    image = photograph(40, 30)
    image.save(tmp_path / f"image.{extension}")
    ours = preprocessing(30, 40, 3)
    pixels = ours.read(tmp_path / f"image.{extension}")
    np.testing.assert_array_equal(pixels, np.asarray(image))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(file_format: str) -> bytes:
    stream = io.BytesIO()
    photograph(20, 17).save(stream, file_format)
    return stream.getvalue()


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        preprocess.CIFAR10.read(tmp_path / "none.png")


def without_pixel_format() -> bytes:
    """A DDS image with a zero where the format of its pixels stands."""
    dds = encoded("DDS")
    return dds[:80] + bytes(4) + dds[84:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        encoded("PNG")[:-100],
        encoded("JPEG")[:300],
        encoded("PNG")[:20],
        without_pixel_format(),
    ],
    ids=["empty", "text", "truncated PNG", "truncated JPEG", "only a signature", "unknown DDS"],
)
def test_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png cannot be read as an image"):
        preprocess.CIFAR10.read(path)


def test_folder_instead_of_an_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as an image"):
        preprocess.CIFAR10.read(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8000, 8001), (10_000, 10_000), (60_000, 60_000)])
def test_huge_image_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "huge.png").write_bytes(png_header(*size))
    # decoding this file would fail with another message: it holds no pixels
    with pytest.raises(DataError, match=r"huge\.png.*pixels.* expected at most 64000000 pixels"):
        preprocess.CIFAR10.read(tmp_path / "huge.png")


def test_image_that_the_resize_would_make_huge_is_refused(tmp_path: Path) -> None:
    photograph(1, 5000, "L").save(tmp_path / "thread.png")
    # 256x1280000 are 328 megapixels
    with pytest.raises(DataError, match="1x5000 pixels would be resized to 256x1280000"):
        preprocess.IMAGENET.read(tmp_path / "thread.png")


FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "DDS"]
FORMATS += ["AVIF"] if features.check("avif") else []
ENCODED = {file_format: encoded(file_format) for file_format in FORMATS}


@settings(max_examples=300)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it repairs
@given(
    file_format=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4),
    length=st.none() | st.integers(0, 500),
)
def test_any_damage_is_a_data_error(
    tmp_path_factory: pytest.TempPathFactory,
    file_format: str,
    changes: list[tuple[int, int]],
    length: int | None,
) -> None:
    content = bytearray(ENCODED[file_format])
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[:length])
    ours = preprocessing(8, 8, 3, resize=9)
    try:
        pixels = ours.read(path)
    except DataError as error:
        assert "damaged" in str(error) or "resized" in str(error)
    else:
        assert (pixels.dtype, pixels.shape) == (np.uint8, (8, 8, 3))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grayscale_keeps_its_high_byte(tmp_path: Path, suffix: str) -> None:
    """Pillow's own conversion clips at 255 of 65,535: nearly all white."""
    samples = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], np.uint16)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(samples).save(path)
    how = Preprocessing(2, 4, (0.5,), (0.5,))
    assert how.read(path)[:, :, 0].tolist() == [[0, 0, 1, 0x12], [0x7F, 0x80, 0xFF, 0xFF]]
