"""The C++ preprocessing against the Python one, which is Pillow: to the bit, whatever the image."""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from densenet_deploy.embedded import start
from densenet_deploy.errors import DataError
from densenet_deploy.preprocess import CIFAR10, FASHION_MNIST, IMAGENET, Preprocessing
from tests.cpp.toolchain import Probe, run

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
# A file of each example is written to one folder, which every example may overwrite.
property_test = settings(
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
JPEG_MODES = ("L", "RGB", "CMYK")


@st.composite
def preprocessings(draw: st.DrawFn) -> Preprocessing:
    """Of small inputs, gray or colour, with and without a crop."""
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    resize = draw(st.just(0) | st.integers(max(height, width), 120))
    channels = draw(st.sampled_from([1, 3]))
    values = st.floats(0.01, 1).map(lambda value: round(value, 4))
    triples = st.tuples(*[values] * channels)
    interpolation = draw(st.sampled_from(["bilinear", "bicubic"]))
    return Preprocessing(height, width, draw(triples), draw(triples), resize, interpolation)


@st.composite
def pictures(draw: st.DrawFn, modes: tuple[str, ...]) -> Image.Image:
    """Noise, gradients and plain areas: sharp edges are where resizing errs."""
    mode = draw(st.sampled_from(modes))
    width, height = draw(st.integers(1, 160)), draw(st.integers(1, 160))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["noise", "blocks", "gradient"]))
    channels = {"L": 1, "1": 1, "P": 1, "I;16": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    if kind == "noise":
        pixels = random.integers(0, 256, (height, width, channels))
    elif kind == "blocks":
        small = random.integers(0, 2, (height // 7 + 1, width // 7 + 1, channels)) * 255
        pixels = small.repeat(7, 0).repeat(7, 1)[:height, :width]
    else:
        ramp = np.add.outer(np.arange(height), 2 * np.arange(width))
        pixels = (ramp[:, :, None] + 40 * np.arange(channels)) % 256
    if mode == "I;16":
        return Image.fromarray((pixels[:, :, 0] * 257 - pixels[:, :, 0] // 3).astype(np.uint16))
    if mode in ("1", "P"):
        gray = Image.fromarray(pixels[:, :, 0].astype(np.uint8))
        colours = draw(st.sampled_from([2, 16, 256]))
        return gray.convert("1") if mode == "1" else gray.convert("RGB").quantize(colours)
    return Image.fromarray(pixels.squeeze(2 if channels == 1 else ()).astype(np.uint8), mode)


def in_both(
    probe: Probe, folder: Path, image: Path, how: Preprocessing
) -> tuple[np.ndarray, np.ndarray, str, str]:
    """(Python's pixels, C++'s pixels, Python's error, C++'s error); C++'s input is checked."""
    pixels, tensor = folder / "pixels", folder / "input.npy"
    request = {"mean": how.mean, "std": how.std, "resize": how.resize}
    request |= {"height": how.height, "width": how.width, "interpolation": how.interpolation}
    said = probe.ask(preprocess=str(image), pixels=str(pixels), input=str(tensor), **request)
    nothing = np.zeros(0, np.uint8)
    try:
        expected, error = how.read(image), ""
    except DataError as refused:
        expected, error = nothing, str(refused)
    if said:
        return expected, nothing, error, said
    shape = (how.height, how.width, how.channels)
    found = np.fromfile(pixels, np.uint8).reshape(shape)
    # The same arithmetic on the same pixels: to the bit.
    assert np.array_equal(np.load(tensor), how.normalise(found[None]))
    return expected, found, error, said


@property_test
@given(picture=pictures(PNG_MODES), how=preprocessings(), level=st.integers(0, 9))
def test_png_is_equal_to_the_bit(
    probe: Probe, tmp_path: Path, picture: Image.Image, how: Preprocessing, level: int
) -> None:
    picture.save(tmp_path / "image.png", compress_level=level)
    expected, found, *errors = in_both(probe, tmp_path, tmp_path / "image.png", how)
    assert errors == ["", ""]
    assert np.array_equal(expected, found)


@property_test
@given(
    picture=pictures(JPEG_MODES),
    how=preprocessings(),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "subsampling": st.sampled_from([0, 1, 2]),
            "progressive": st.booleans(),
            "optimize": st.booleans(),
            "restart_marker_rows": st.sampled_from([0, 1]),
        }
    ),
)
def test_jpeg_is_equal_to_one_step(
    probe: Probe,
    tmp_path: Path,
    picture: Image.Image,
    how: Preprocessing,
    options: dict[str, Any],
) -> None:
    picture.save(tmp_path / "image.jpg", **options)
    expected, found, *errors = in_both(probe, tmp_path, tmp_path / "image.jpg", how)
    assert errors == ["", ""]
    # Pillow brings a libjpeg-turbo of its own, which need not be the system's.
    assert np.abs(expected.astype(int) - found).max(initial=0) <= 1


@pytest.mark.parametrize(
    "how",
    [IMAGENET, replace(IMAGENET, interpolation="bicubic"), CIFAR10, FASHION_MNIST],
    ids=["ImageNet", "ImageNet bicubic", "CIFAR-10", "Fashion-MNIST"],
)
@pytest.mark.parametrize("size", [None, (640, 480), (481, 321), (97, 1200), (256, 256), (224, 224)])
def test_a_photograph_is_equal(
    probe: Probe, tmp_path: Path, how: Preprocessing, size: tuple[int, int] | None
) -> None:
    path = tmp_path / "photograph.jpg"
    with Image.open(PHOTOGRAPH) as image:
        (image.resize(size) if size else image).save(path, quality=92)
    expected, found, *errors = in_both(probe, tmp_path, path, how)
    assert errors == ["", ""]
    assert np.abs(expected.astype(int) - found).max(initial=0) <= 1


@pytest.mark.parametrize("interlaced", ["transparent palette", "transparent gray", "16-bit RGB"])
def test_rarer_png(probe: Probe, tmp_path: Path, interlaced: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(_rare_png(interlaced))
    for how in (FASHION_MNIST, IMAGENET):
        expected, found, *errors = in_both(probe, tmp_path, path, how)
        assert errors == ["", ""]
        assert np.array_equal(expected, found)


def _rare_png(kind: str) -> bytes:
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    if kind == "16-bit RGB":
        return _png_of(random.integers(0, 65536, (13, 17, 3)).astype(">u2"), bits=16, colour=2)
    gray = Image.fromarray(random.integers(0, 256, (30, 40)).astype(np.uint8))
    if kind == "transparent palette":
        gray = gray.convert("RGB").quantize(16)
    gray.save(buffer, "png", transparency=3)
    return buffer.getvalue()


def _png_of(samples: np.ndarray, bits: int, colour: int) -> bytes:
    """A PNG that Pillow reads but cannot write."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    return _png(width, height, bits, colour, rows)


def _png(width: int, height: int, bits: int, colour: int, rows: bytes, more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    whole = [_chunk(*part) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + whole[0] + more + whole[1] + whole[2]


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def _huge_jpeg() -> bytes:
    """A small JPEG whose frame header claims 65,000x65,000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "jpeg")
    whole = bytearray(buffer.getvalue())
    frame = whole.index(b"\xff\xc0")
    whole[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_png(30_000, 30_000, 8, 0, b""), "30000x30000 pixels"),
        (_png(2**31 - 1, 2**31 - 1, 8, 2, b""), "Invalid IHDR data"),
        (_huge_jpeg(), "65000x65000 pixels"),
        (_png(1, 64_000_000, 8, 0, b""), "data"),
    ],
    ids=["png", "largest png", "jpeg", "tall png"],
)
def test_huge_claims_are_refused_without_their_memory(
    infer: Path, fashion_bundle: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    done = run(infer, "classify", fashion_bundle, path)
    assert done.code == 2 and re.search(message, done.err), done.err
    assert peak_bytes(infer, "classify", fashion_bundle, path) < 160 << 20


def test_compressed_texts_are_not_unpacked(
    infer: Path, fashion_bundle: Path, tmp_path: Path
) -> None:
    texts = _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_900_000))) * 100
    path = tmp_path / "image.png"
    path.write_bytes(_png(28, 28, 8, 0, bytes(29 * 28), texts))
    assert run(infer, "classify", fashion_bundle, path).code == 0
    assert peak_bytes(infer, "classify", fashion_bundle, path) < 200 << 20


def test_photographs_are_not_held_all_at_once(
    infer: Path, fashion_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (3000, 3000)).save(path)  # 27 MB
    assert peak_bytes(infer, "classify", fashion_bundle, *[path] * 20) < 250 << 20


def peak_bytes(*command: Path | str) -> int:
    """Largest resident set of a program, whatever its exit code."""
    shell = ["sh", "-c", '"$@" >/dev/null 2>&1; true', "sh", *map(str, command)]
    return start(shell).peak_bytes


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_what_python_refuses_is_refused(probe: Probe, tmp_path: Path, suffix: str) -> None:
    """Files cut short or with bytes changed: no crash, and nothing that Pillow calls broken."""
    with Image.open(PHOTOGRAPH) as image:
        image.resize((60, 40)).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / f"damaged.{suffix}"
    refused = lenient = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in random.integers(0, len(damaged), random.integers(1, 4)):
            damaged[place] ^= 1 << random.integers(8)
        if random.random() < 0.3:
            del damaged[random.integers(len(damaged)) :]
        path.write_bytes(damaged)
        _, _, error, said = in_both(probe, tmp_path, path, CIFAR10)
        refused += bool(said)
        lenient += bool(error) and not said
    assert refused > 40
    # Pillow also checks what does not change a pixel, such as the CRC of a chunk it skips.
    assert lenient <= 40, lenient


def test_an_image_that_would_become_huge(probe: Probe, tmp_path: Path) -> None:
    Image.new("RGB", (1, 60_000)).save(tmp_path / "thin.png")
    *_, error, said = in_both(probe, tmp_path, tmp_path / "thin.png", IMAGENET)
    assert "would be resized to 256x15360000" in error
    assert "would be resized to 256x15360000" in said


def test_formats_it_does_not_read_are_named(probe: Probe, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.bmp")
    *_, error, said = in_both(probe, tmp_path, tmp_path / "image.bmp", CIFAR10)
    assert error == ""
    assert said.endswith("(neither PNG nor JPEG); expected a PNG or JPEG file. Convert it to PNG.")
