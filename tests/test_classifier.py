"""Classes and probabilities of the images a bundle carries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from densenet_deploy.bundle import Bundle
from densenet_deploy.classifier import classify
from densenet_deploy.data import FASHION_MNIST_CLASSES
from densenet_deploy.errors import DataError
from densenet_deploy.runtime import open_runner


def test_probabilities_are_the_softmax_of_the_logits(bundle: Bundle) -> None:
    paths = [bundle.file(name) for name in bundle.manifest.samples[:3]]
    found = classify(bundle, paths, top=10)
    images = bundle.manifest.preprocessing.normalise(bundle.sample_pixels()[:3])
    with open_runner(bundle, "onnxruntime", "fp32") as runner:
        expected = softmax(runner.logits(images).astype(np.float64), axis=1)
    for candidates, row in zip(found, expected, strict=True):
        assert [c.index for c in candidates] == list(np.argsort(-row))
        np.testing.assert_allclose([c.probability for c in candidates], np.sort(row)[::-1])
        assert [c.label for c in candidates] == [FASHION_MNIST_CLASSES[c.index] for c in candidates]


def test_most_samples_show_what_their_name_says(bundle: Bundle) -> None:
    names = bundle.manifest.samples
    found = classify(bundle, [bundle.file(name) for name in names], precision="int8", top=1)
    slugs = [
        candidates[0].label.lower().replace(" ", "-").replace("/", "-") for candidates in found
    ]
    right = sum(slug in name for slug, name in zip(slugs, names, strict=True))
    assert right >= 0.8 * len(names)


def test_a_missing_file_is_named(bundle: Bundle) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png does not exist"):
        classify(bundle, [bundle.path / "nowhere.png"])
