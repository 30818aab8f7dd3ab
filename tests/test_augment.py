"""Augmentation against torchvision, scipy and the formulas of the authors' code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats
from torchvision.transforms import v2

from densenet_deploy import augment
from densenet_deploy.preprocess import IMAGENET, Preprocessing
from densenet_deploy.train_config import TrainConfig

SMALL = Preprocessing(24, 32, IMAGENET.mean, IMAGENET.std, resize=40)
PHOTOGRAPHS = TrainConfig(crop="random-resized", colour_jitter=0.4, lighting=0.1)


def photograph(width: int = 90, height: int = 60, channels: int = 3) -> Image.Image:
    """Smooth colours, so that resampling and its neighbours matter."""
    noise = np.random.default_rng(0).random((height, width, channels))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return augment.as_image((smooth * 255).astype(np.uint8))


# --- shifts


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
    moved = augment.translate(pixels, shifts)
    np.testing.assert_array_equal(moved, np.stack(expected), strict=True)


def test_translate_moves_down_and_right() -> None:
    pixels = np.zeros((1, 3, 4, 1), np.uint8)
    pixels[0, 0, 1] = 7
    moved = augment.translate(pixels, np.array([[1, 2]]))
    assert moved[0, 1, 3, 0] == moved.sum() == 7


def test_translate_is_the_crop_of_a_padded_image() -> None:
    """The authors' words for it: zero-padded with 4 pixels on each side, and cropped."""
    pixels = np.asarray(photograph(32, 32))
    padded = v2.functional.pad(Image.fromarray(pixels), [4])
    for top in range(9):
        for left in (0, 3, 8):
            cropped = np.asarray(v2.functional.crop(padded, top, left, 32, 32))
            moved = augment.translate(pixels[None], np.array([[4 - top, 4 - left]]))
            np.testing.assert_array_equal(moved[0], cropped)


# --- random resized crops


def boxes(width: int, height: int, count: int) -> NDArray[np.int64]:
    generator = np.random.default_rng(0)
    return np.array([augment.random_box(width, height, generator) for _ in range(count)])


def torchvision_boxes(width: int, height: int, count: int) -> NDArray[np.int64]:
    crop = v2.RandomResizedCrop(224)  # its defaults: 8 to 100 % of the area, ratios 3/4 to 4/3
    image = Image.new("RGB", (width, height))
    drawn = [crop.make_params([image]) for _ in range(count)]
    return np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (900, 300)], ids=str)
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    ours, theirs = boxes(*size, 1000), torchvision_boxes(*size, 1000)
    for name, measure in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
    }.items():
        # torchvision's are unseeded: one pair of samples in 10^5 is farther apart than this
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-5, name


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32))
def test_boxes_lie_in_the_image(width: int, height: int, seed: int) -> None:
    top, left, down, across = augment.random_box(width, height, np.random.default_rng(seed))
    assert 0 <= top <= top + down <= height
    assert 0 <= left <= left + across <= width
    assert min(down, across) > 0


def test_boxes_have_the_published_areas_and_ratios() -> None:
    _, _, down, across = boxes(1000, 1000, 2000).T
    share, ratio = down * across / 1e6, across / down
    assert 0.079 < share.min() < 0.1 and 0.9 < share.max() <= 1
    assert 0.745 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.343
    assert abs(np.log(ratio).mean()) < 4 * math.log(4 / 3) / math.sqrt(3 * 2000)


@pytest.mark.parametrize("size", [(4000, 20), (20, 4000), (1, 50)], ids=str)
def test_an_elongated_image_is_cut_in_its_middle_as_torchvision_does(size: tuple[int, int]) -> None:
    assert {tuple(box) for box in boxes(*size, 5)} == {
        tuple(box) for box in torchvision_boxes(*size, 5)
    }


def test_a_crop_is_torchvisions_of_the_same_box() -> None:
    image, config = photograph(), replace(PHOTOGRAPHS, colour_jitter=0)
    tensor = v2.functional.pil_to_tensor(image)
    for seed in range(4):
        how: Any = ("bilinear", "bicubic")[seed % 2]
        sized = replace(SMALL, interpolation=how)
        cropped = augment.vary(image, config, sized, np.random.default_rng(seed))
        box = augment.random_box(*image.size, np.random.default_rng(seed))
        expected = v2.functional.resized_crop(
            tensor, *box, [24, 32], v2.InterpolationMode(how)
        )  # on tensors; Pillow rounds between its two passes
        difference = cropped.astype(int) - expected.permute(1, 2, 0).numpy()
        assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P"])
@pytest.mark.parametrize("crop", ["shift", "random-resized"])
def test_any_image_becomes_the_networks_size_and_colours(mode: str, crop: Any) -> None:
    config = replace(PHOTOGRAPHS, crop=crop)
    gray = Preprocessing(7, 9, (0.5,), (0.5,))
    for preprocessing, channels in ((SMALL, 3), (gray, 1)):
        image = photograph().convert(mode)
        pixels = augment.vary(image, config, preprocessing, np.random.default_rng(0))
        assert pixels.dtype == np.uint8
        assert pixels.shape == (preprocessing.height, preprocessing.width, channels)


def test_nothing_to_vary_is_the_ordinary_geometry() -> None:
    config = TrainConfig(crop="shift")
    pixels = augment.vary(photograph(), config, SMALL, np.random.default_rng(0))
    np.testing.assert_array_equal(pixels, SMALL.geometry(photograph()))
    assert not augment.is_varied(config)
    assert augment.is_varied(replace(config, colour_jitter=0.1))
    assert augment.is_varied(replace(config, crop="random-resized"))


# --- colours


def luma(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return image @ np.array([0.299, 0.587, 0.114])


def jittered(image: NDArray[np.float64], order: Any, factors: Any) -> NDArray[np.float64]:
    """fb.resnet.torch's ColorJitter: each blends the image with what it lacks."""
    for index in order:
        if index == 0:
            lacking = np.zeros_like(image)
        elif index == 1:
            lacking = np.full_like(image, luma(image).mean())
        else:
            lacking = np.repeat(luma(image)[..., None], 3, axis=2)
        image = np.clip(factors[index] * image + (1 - factors[index]) * lacking, 0, 255)
    return image


def test_colours_are_those_of_the_authors_formula() -> None:
    image = photograph()
    orders = set()
    for seed in range(12):
        changed = augment.jitter_colours(image, 0.4, np.random.default_rng(seed))
        generator = np.random.default_rng(seed)
        order, factors = generator.permutation(3), generator.uniform(0.6, 1.4, 3)
        orders.add(tuple(order))
        expected = jittered(np.asarray(image, np.float64), order, factors)
        # three roundings to 8 bits, each scaled by the following factors
        assert np.abs(np.asarray(changed) - expected).max() < 4
    assert len(orders) > 3


def test_colours_are_torchvisions() -> None:
    """ColorJitter with its draws fixed to ours, on tensors rather than on Pillow's images."""
    image = photograph()
    for seed in range(6):
        generator = np.random.default_rng(seed)
        order, factors = generator.permutation(3), generator.uniform(0.6, 1.4, 3)
        drawn = dict(zip(("brightness", "contrast", "saturation"), factors, strict=True))
        params = {f"{name}_factor": float(factor) for name, factor in drawn.items()}
        theirs = v2.ColorJitter(0.4, 0.4, 0.4).transform(
            v2.functional.pil_to_tensor(image), params | {"fn_idx": order, "hue_factor": None}
        )
        ours = np.asarray(augment.jitter_colours(image, 0.4, np.random.default_rng(seed)))
        assert np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy()).max() <= 3


def test_a_factor_is_never_negative() -> None:
    for seed in range(20):
        pixels = np.asarray(augment.jitter_colours(photograph(), 3.0, np.random.default_rng(seed)))
        assert pixels.dtype == np.uint8  # and no ValueError of torchvision's


# --- light


def test_light_is_the_principal_components() -> None:
    """Its covariance has the eigenvectors and, scaled by the strength, the squared eigenvalues."""
    generator = np.random.default_rng(0)
    added = np.array([augment.light(0.1, generator) for _ in range(40_000)])
    assert np.abs(added.mean(axis=0)).max() < 4 * 0.1 * 0.2175 / 200
    values, vectors = np.linalg.eigh(np.cov(added.T))
    np.testing.assert_allclose(np.sqrt(values[::-1]), 0.1 * augment.EIGENVALUES, rtol=0.03)
    overlaps = np.abs(np.sum(vectors[:, ::-1] * augment.EIGENVECTORS, axis=0))
    np.testing.assert_allclose(overlaps, 1, atol=2e-3)


def test_principal_components_are_orthonormal() -> None:
    product = augment.EIGENVECTORS.T @ augment.EIGENVECTORS
    np.testing.assert_allclose(product, np.eye(3), atol=2e-4)


def test_no_strength_adds_nothing() -> None:
    assert not augment.light(0, np.random.default_rng(0)).any()
