"""ResNets as data against torchvision's own counts and the numbers of three papers."""

from __future__ import annotations

from typing import Any

import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy.errors import RecipeError
from densenet_deploy.resnet_spec import RESNETS, ResNetSpec, preact
from densenet_deploy.spec import variant

IMAGENET = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": torchvision.models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V1,
    "resnet152": torchvision.models.ResNet152_Weights.IMAGENET1K_V1,
}
# (parameters in thousands, read off figure 4 of arXiv 1608.06993v5; residual blocks of each stage)
FIGURE_4 = [(126.8, 1), (219.5, 2), (312.2, 3), (405.0, 4), (497.7, 5), (590.4, 6), (683.2, 7)]


@pytest.mark.parametrize("name", IMAGENET)
def test_counts_of_torchvision(name: str) -> None:
    meta: dict[str, Any] = IMAGENET[name].meta
    spec = variant(name)
    assert spec.parameters == meta["num_params"]
    assert spec.macs / 1e9 == pytest.approx(meta["_ops"], abs=1e-3)
    assert spec.depth == int(name.removeprefix("resnet"))


@pytest.mark.parametrize("thousands, blocks", FIGURE_4)
def test_bottlenecks_have_the_parameters_of_figure_4(thousands: float, blocks: int) -> None:
    spec = preact(9 * blocks + 2, "bottleneck")
    assert spec.parameters / 1e3 == pytest.approx(thousands, abs=0.06)


@pytest.mark.parametrize(
    "name, millions",
    [
        ("resnet-preact-110", 1.7),
        ("resnet-preact-b-164", 1.7),
    ],
)
def test_parameters_of_table_2(name: str, millions: float) -> None:
    spec = variant(name)
    assert spec.parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_equal_to_the_densenet_of_the_study() -> None:
    ours = variant("densenet-bc-40-12", (1, 28, 28), 10).parameters
    assert ours == 175_690
    for name, percent in (("resnet-preact-14", -0.52), ("resnet-preact-b-29-12", 0.59)):
        theirs = variant(name, (1, 28, 28), 10).parameters
        assert 100 * (theirs / ours - 1) == pytest.approx(percent, abs=5e-3)


@given(
    blocks=st.integers(1, 40),
    kind=st.sampled_from(["basic", "bottleneck"]),
    width=st.integers(1, 99),
)
def test_a_name_is_understood_again(blocks: int, kind: Any, width: int) -> None:
    spec = preact((6 if kind == "basic" else 9) * blocks + 2, kind, width)
    assert variant(spec.name) == spec


def test_published_names() -> None:
    assert [variant(name).name for name in RESNETS] == list(RESNETS)
    changed = variant("resnet50", (1, 64, 96), 7)
    assert isinstance(changed, ResNetSpec) and changed.name == "resnet50"
    assert (changed.input_shape, changed.classes) == ((1, 64, 96), 7)
    assert variant("resnet50").parameters - changed.parameters == 993 * 2049 + 2 * 49 * 64


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet-preact-164-0", "sizes must be positive"),
        ("resnet-preact-16", "depth 16 .* basic blocks; expected 2 plus a positive multiple of 6"),
        ("resnet-preact-b-14", "bottleneck blocks; expected 2 plus a positive multiple of 9"),
        ("resnet-preact-2", "depth 2 "),
        ("resnet51", "unknown model 'resnet51'; expected one of densenet121.*resnet50"),
    ],
)
def test_what_names_no_network(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        variant(name)


def test_what_torchvision_has_not() -> None:
    with pytest.raises(ValueError, match="4 stages, the first of 64 channels"):
        ResNetSpec("imagenet", "basic", (1, 1, 1), 64, (3, 32, 32), 10)
    with pytest.raises(ValueError, match="4 stages, the first of 64 channels"):
        ResNetSpec("imagenet", "basic", (1, 1, 1, 1), 32, (3, 32, 32), 10)
