"""Feature reuse: weights made by hand, a slow loop written apart, and what must hold of any net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from densenet_deploy import checkpoint
from densenet_deploy.checkpoint import CheckpointInfo
from densenet_deploy.errors import CheckpointError, RecipeError
from densenet_deploy.figures.feature_reuse import (
    by_source,
    feature_reuse,
    measure,
    read_weights,
    scale_columns,
)
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.spec import DenseNetSpec, variant
from tests.figures.conftest import Drawn

TINY = "densenet-bc-16-4"
Weights = dict[str, NDArray[np.float64]]


def spec_of(name: str) -> DenseNetSpec:
    spec = variant(name)
    assert isinstance(spec, DenseNetSpec)
    return spec


def random_weights(spec: DenseNetSpec, seed: int) -> Weights:
    """Normal weights of the shapes of the model itself."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(size=tuple(value.shape))
        for name, value in DenseNet(spec).named_parameters()
    }


def slowly(spec: DenseNetSpec, weights: Weights, block: int) -> list[list[float | None]]:
    """The scaled matrix, channel by channel: who made a channel is written down as it is made."""
    channels = spec.init_channels
    for earlier in range(block):
        channels += spec.block_layers[earlier] * spec.growth_rate
        channels = int(channels * spec.compression)
    layers = spec.block_layers[block]
    owners = [0] * channels
    columns: list[list[float | None]] = []
    for target in range(1, layers + 2):
        name = f"features.denseblock{block + 1}.denselayer{target}.conv1.weight"
        if target == layers + 1:
            last = block == len(spec.block_layers) - 1
            name = "classifier.weight" if last else f"features.transition{block + 1}.conv.weight"
        weight = weights[name]
        assert weight.shape[1] == len(owners)
        means: list[float | None] = []
        for source in range(layers + 1):
            mine = [index for index, owner in enumerate(owners) if owner == source]
            total = sum(abs(float(value)) for index in mine for value in weight[:, index].flat)
            means.append(total / len(mine) if mine else None)
        known = [mean for mean in means if mean is not None]
        low, high = min(known), max(known)
        columns.append(
            [None if m is None else 1.0 if high == low else (m - low) / (high - low) for m in means]
        )
        owners += [target] * spec.growth_rate
    return [list(row) for row in zip(*columns, strict=True)]


def test_weights_made_by_hand() -> None:
    # 3 maps enter, k = 2, two layers: 3 + 2 + 2 input channels, one output, 1x1.
    weight = np.array([1, -2, 3, -4, 8, 0.5, -0.5]).reshape(1, 7, 1, 1)
    assert by_source(weight, 3, 2).tolist() == [2.0, 6.0, 0.5]
    # Two outputs and 3x3 kernels: a mean, not a sum, so the size of the layer does not matter.
    larger = np.broadcast_to(weight, (2, 7, 3, 3))
    assert by_source(larger, 3, 2).tolist() == pytest.approx([2.0, 6.0, 0.5])
    assert by_source(weight[..., 0, 0], 3, 2).tolist() == [2.0, 6.0, 0.5]  # a linear layer
    assert by_source(weight[:, :3], 3, 2).tolist() == [2.0]


def test_columns_are_scaled_each_for_itself() -> None:
    nan = np.nan
    matrix = np.array([[5.0, 2.0, 7.0, 3.0], [nan, 4.0, 9.0, 3.0], [nan, nan, 8.0, 3.0]])
    expected = [[1.0, 0.0, 0.0, 1.0], [nan, 1.0, 1.0, 1.0], [nan, nan, 0.5, 1.0]]
    np.testing.assert_array_equal(scale_columns(matrix), expected)


@pytest.mark.parametrize(
    "name", [TINY, "densenet-13-3", "densenet-c-10-4", "densenet-b-16-2", "densenet-40-12"]
)
def test_against_a_slow_loop(name: str) -> None:
    spec = spec_of(name)
    weights = random_weights(spec, 1)
    for index, block in enumerate(measure(spec, weights)):
        size = spec.block_layers[index] + 1
        assert block.scaled.shape == block.mean_weights.shape == (size, size)
        expected = np.array(slowly(spec, weights, index), dtype=np.float64)
        np.testing.assert_allclose(block.scaled, expected, rtol=1e-9, atol=1e-12)
        assert block.targets[:-1] == tuple(str(layer) for layer in range(1, size))
    assert [block.targets[-1] for block in measure(spec, weights)] == [
        *("transition", "transition"),
        "classifier",
    ]


def test_the_paper_s_network_has_its_shape() -> None:
    spec = spec_of("densenet-40-12")
    for block in measure(spec, random_weights(spec, 2)):
        matrix = block.to_dict()["scaled"]
        assert len(matrix) == 13 and all(len(row) == 13 for row in matrix)
        assert [row[0] for row in matrix] == [1.0] + [None] * 12
        for column in range(1, 13):
            values = [row[column] for row in matrix]
            assert values[column + 1 :] == [None] * (12 - column)
            shown = values[: column + 1]
            assert min(shown) == 0.0 and max(shown) == 1.0  # type: ignore[type-var]


@st.composite
def networks(draw: st.DrawFn) -> tuple[DenseNetSpec, Weights]:
    spec = DenseNetSpec(
        growth_rate=draw(st.integers(1, 3)),
        block_layers=tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))),
        init_channels=draw(st.integers(2, 5)),
        stem=draw(st.sampled_from(["imagenet", "cifar"])),
        bottleneck=draw(st.booleans()),
        compression=draw(st.sampled_from([0.5, 0.7, 1.0])),
        input_shape=(1, 32, 32),
        classes=3,
    )
    return spec, random_weights(spec, draw(st.integers(0, 1000)))


@settings(max_examples=30)
@given(networks(), st.integers(0, 1000))
def test_properties(network: tuple[DenseNetSpec, Weights], seed: int) -> None:
    spec, weights = network
    blocks = measure(spec, weights)
    for index, block in enumerate(blocks):
        np.testing.assert_allclose(
            block.scaled, np.array(slowly(spec, weights, index), dtype=np.float64), atol=1e-9
        )
        np.testing.assert_array_equal(np.isnan(block.scaled), np.isnan(block.mean_weights))
        below = np.tril(np.ones_like(block.scaled), -1).astype(bool)
        assert np.isnan(block.scaled[below]).all()
        inside = block.scaled[~below]
        assert ((inside >= 0) & (inside <= 1)).all()
        assert (np.nanmax(block.scaled, axis=0) == 1).all()
    # Neither a layer's scale nor signs nor the order of its outputs change the picture.
    generator = np.random.default_rng(seed)
    changed = {
        name: generator.permutation(
            value * generator.uniform(0.5, 2) * generator.choice([-1, 1], value.shape)
        )
        for name, value in weights.items()
    }
    for block, other in zip(blocks, measure(spec, changed), strict=True):
        np.testing.assert_allclose(other.scaled, block.scaled, atol=1e-9)


def info_of(model: DenseNet) -> CheckpointInfo:
    preprocessing = Preprocessing(12, 12, mean=(0.5,), std=(0.25,))
    return CheckpointInfo(model.spec, preprocessing, ("a", "b"), {})


@pytest.fixture
def saved(tmp_path: Path) -> tuple[DenseNet, Path]:
    model = create_model(TINY, (1, 12, 12), 2, seed=0)
    assert isinstance(model, DenseNet)
    folder = tmp_path / "in"
    folder.mkdir()
    checkpoint.save(folder / "model.safetensors", model, info_of(model))
    return model, folder / "model.safetensors"


def test_a_checkpoint(saved: tuple[DenseNet, Path]) -> None:
    model, path = saved
    picture, read = feature_reuse(str(path))
    assert read == path
    said = picture.to_dict()
    assert (said["model"], said["growth_rate"], said["entering"]) == (TINY, 4, [8, 8, 8])
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    for index, block in enumerate(said["blocks"]):
        expected = slowly(model.spec, weights, index)
        for row, wanted in zip(block["scaled"], expected, strict=True):
            assert row == [None if v is None else pytest.approx(v, abs=1e-6) for v in wanted]
    unscaled = said["blocks"][0]["mean_absolute_weight"]
    layer1 = np.abs(weights["features.denseblock1.denselayer1.conv1.weight"])
    assert unscaled[0][0] == pytest.approx(layer1.mean(), rel=1e-6)
    assert unscaled[1][0] is None
    directory, _ = feature_reuse(str(path.parent))
    assert directory.to_dict() == said


def test_the_shipped_model_is_the_default(drawn: Drawn) -> None:
    picture, path = feature_reuse()
    assert path.name == "fashion-mnist.safetensors"
    said = drawn(picture)
    assert [len(block["targets"]) for block in said["blocks"]] == [7, 7, 7]
    assert len(picture.lines) == 21 and len(picture.lines[0]) == len(picture.header)


@pytest.mark.parametrize("layers", [(2,), (1, 1, 1, 1, 1), (26, 3)])
def test_any_number_of_blocks_is_drawn(
    layers: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory, drawn: Drawn
) -> None:
    spec = DenseNetSpec(2, layers, 4, "cifar", False, 0.5, (1, 32, 32), 3)
    model = DenseNet(spec)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    checkpoint.save(path, model, info_of(model))
    assert len(drawn(feature_reuse(str(path))[0])["blocks"]) == len(layers)


def test_weights_that_do_not_say_their_architecture(tmp_path: Path) -> None:
    import torch

    model = create_model(TINY, (1, 12, 12), 2, seed=3)
    path = tmp_path / "net.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match="Name it with --model"):
        read_weights(str(path))
    with pytest.raises(CheckpointError, match="classifier"):
        read_weights(str(path), TINY)
    spec, weights, _ = read_weights(str(path), TINY, classes=2, channels=1)
    assert (spec.classes, spec.input_shape[0]) == (2, 1)
    np.testing.assert_array_equal(
        weights["classifier.weight"], model.state_dict()["classifier.weight"].numpy()
    )
    with pytest.raises(RecipeError, match="unknown model"):
        read_weights(str(path), "nonsense")


def test_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name says the architecture; what is fetched here is a seeded network of it."""
    from densenet_deploy import public_weights

    model = create_model("densenet121", seed=0)
    assert isinstance(model, DenseNet)
    path = tmp_path / "densenet121-a639ec97.safetensors"
    checkpoint.save(path, model, info_of(model))
    monkeypatch.setattr(public_weights, "fetch", lambda weights, track: path)
    spec, weights, read = read_weights("torchvision:DenseNet121_Weights.IMAGENET1K_V1")
    assert (spec.name, read) == ("densenet121", path)
    assert [len(block.targets) for block in measure(spec, weights)] == [7, 13, 25, 17]
    with pytest.raises(CheckpointError, match="torchvision"):
        read_weights("torchvision:DenseNet121_Weights.NONE")


def test_bad_checkpoints(saved: tuple[DenseNet, Path], tmp_path: Path) -> None:
    _, path = saved
    with pytest.raises(CheckpointError, match="does not exist"):
        feature_reuse(str(tmp_path / "none.safetensors"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a valid safetensors"):
        feature_reuse(str(cut))
    with pytest.raises(CheckpointError, match="does not fit"):
        feature_reuse(str(path), "densenet-bc-10-4")
    with pytest.raises(CheckpointError, match=r"expected a DenseNet"):
        feature_reuse(str(path), "resnet50")


def test_weights_that_are_not_finite(saved: tuple[DenseNet, Path]) -> None:
    model, path = saved
    model.classifier.weight.data[0, 0] = float("nan")
    checkpoint.save(path, model, info_of(model))
    with pytest.raises(CheckpointError, match=r"classifier\.weight is not finite"):
        feature_reuse(str(path))


def test_matrix_values_are_plain_json(saved: tuple[DenseNet, Path]) -> None:
    def kinds(value: Any) -> set[type]:
        if isinstance(value, list):
            return set().union(*map(kinds, value))
        return {type(value)}

    picture, _ = feature_reuse(str(saved[1]))
    for block in picture.to_dict()["blocks"]:
        assert kinds(block["scaled"]) <= {float, type(None)}
