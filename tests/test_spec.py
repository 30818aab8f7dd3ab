"""Architectures against counts that were computed outside this project, and the paper's own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from densenet_deploy.errors import RecipeError
from densenet_deploy.spec import (
    CIFAR_VARIANTS,
    IMAGENET_VARIANTS,
    VARIANTS,
    DenseNetSpec,
    cifar,
    imagenet,
    variant,
)


def spec_of(row: dict[str, Any]) -> DenseNetSpec:
    return DenseNetSpec(
        growth_rate=row["growth_rate"],
        block_layers=tuple(row["block_layers"]),
        init_channels=row["init_channels"],
        stem=row["stem"],
        bottleneck=row["bottleneck"],
        compression=row["compression"],
        input_shape=(3, 32, 32) if row["stem"] == "cifar" else (3, 224, 224),
        classes=row["classes"],
    )


def test_counts_of_every_configuration(counts: dict[str, Any]) -> None:
    rows = counts["configurations"]
    found = {row["name"]: (spec_of(row).parameters, spec_of(row).macs) for row in rows}
    assert found == {row["name"]: (row["parameters"], row["macs"]) for row in rows}
    assert len(found) == 51


def test_structure_of_every_configuration(counts: dict[str, Any]) -> None:
    for row in counts["configurations"]:
        if "convolutions" not in row:
            continue
        spec, convolutions = spec_of(row), spec_of(row).convolutions()
        assert len(convolutions) == row["convolutions"], row["name"]
        assert spec.depth == row["convolutions"] + 1, row["name"]
        flow = [channels for pair in spec.block_channels() for channels in pair]
        assert flow == row["channels"], row["name"]


def test_published_names_are_those_configurations(counts: dict[str, Any]) -> None:
    named = [row for row in counts["configurations"] if "variant" in row]
    for row in named:
        assert variant(row["variant"], classes=row["classes"]) == spec_of(row), row["name"]
    assert {row["variant"] for row in named} >= set(VARIANTS)


def test_counts_read_off_the_papers_figure_4(counts: dict[str, Any]) -> None:
    for name, point in counts["figure4"].items():
        assert variant(name).parameters == point["parameters"], name
        assert variant(name).parameters == pytest.approx(point["plotted"], rel=2e-3), name
    assert len(counts["figure4"]) == 31


# Table 2 of arXiv 1608.06993v5: (name, depth, millions of parameters as printed)
TABLE_2 = [
    ("densenet-40-12", 40, 1.0),
    ("densenet-100-12", 100, 7.0),
    ("densenet-100-24", 100, 27.2),
    ("densenet-bc-100-12", 100, 0.8),
    ("densenet-bc-250-24", 250, 15.3),
    ("densenet-bc-190-40", 190, 25.6),
]


@pytest.mark.parametrize("name, depth, millions", TABLE_2)
def test_table_2_of_the_paper(name: str, depth: int, millions: float) -> None:
    assert variant(name).depth == depth
    assert round(variant(name).parameters / 1e6, 1) == millions


@pytest.mark.parametrize(
    "name, depth",
    # the networks called 264 and 232 have one layer more, as their block sizes say
    [(f"densenet{depth}", depth) for depth in (121, 161, 169, 201)]
    + [("densenet264", 265), ("densenet264-k48", 265), ("densenet232-k48", 233)],
)
def test_imagenet_depth(name: str, depth: int) -> None:
    assert variant(name).depth == depth


@pytest.mark.parametrize("name", CIFAR_VARIANTS)
def test_cifar_depth_is_in_its_name(name: str) -> None:
    assert variant(name).depth == int(name.split("-")[-2])


@pytest.mark.parametrize(
    "name, bottleneck, compression, init_channels, layers",
    [
        ("densenet-40-12", False, 1.0, 16, 12),
        ("densenet-b-40-12", True, 1.0, 24, 6),
        ("densenet-c-40-12", False, 0.5, 24, 12),
        ("densenet-bc-40-12", True, 0.5, 24, 6),
        ("densenet-bc-10-4", True, 0.5, 8, 1),
    ],
)
def test_parts_of_a_name(
    name: str, bottleneck: bool, compression: float, init_channels: int, layers: int
) -> None:
    spec = variant(name)
    growth_rate = int(name.split("-")[-1])
    assert spec == DenseNetSpec(
        growth_rate, (layers,) * 3, init_channels, "cifar", bottleneck, compression, (3, 32, 32), 10
    )


def test_input_and_classes_replace_only_themselves() -> None:
    base = variant("densenet121")
    assert variant("densenet121", (1, 64, 96), 7) == replace(
        base, input_shape=(1, 64, 96), classes=7
    )
    # another class count changes the classifier alone
    assert base.parameters - variant("densenet121", classes=10).parameters == 990 * 1025


@pytest.mark.parametrize(
    "name",
    ["densenet", "densenet122", "densenet-bc", "densenet-cb-40-12", "densenet-bc-40-12-1", "", "x"],
)
def test_unknown_name_lists_what_is_known(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        variant(name)
    message = str(caught.value)
    assert f"unknown model {name!r}" in message
    assert all(known in message for known in IMAGENET_VARIANTS)  # the others fit the pattern
    assert "densenet[-b|-c|-bc]-DEPTH-GROWTH" in message


@pytest.mark.parametrize(
    "name, step", [("densenet-bc-41-12", 6), ("densenet-b-37-12", 6), ("densenet-41-12", 3)]
)
def test_impossible_depth_says_which_are_possible(name: str, step: int) -> None:
    depth = name.split("-")[-2]
    with pytest.raises(RecipeError, match=f"depth {depth} .* 4 plus a positive multiple of {step}"):
        variant(name)


@pytest.mark.parametrize("name", ["densenet-bc-4-12", "densenet-0-12"])
def test_depth_without_dense_layers_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="depth"):
        variant(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ("densenet-bc-40-0",),
        ("densenet121", None, 0),
        ("densenet121", None, -3),
        ("densenet121", (0, 224, 224)),
        ("densenet121", (3, -1, 224)),
    ],
)
def test_sizes_that_are_not_positive_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(RecipeError, match=f"model {arguments[0]}: .*positive"):
        variant(*arguments)


@pytest.mark.parametrize("name, smallest", [("densenet121", 29), ("densenet-bc-40-12", 4)])
def test_too_small_an_input_is_refused(name: str, smallest: int) -> None:
    assert variant(name, (3, smallest, smallest)).feature_sizes()[-1] == (1, 1)
    too_small = (3, smallest, smallest - 1)
    with pytest.raises(RecipeError, match=rf"{name}: input_shape {re.escape(str(too_small))} is"):
        variant(name, too_small)


@pytest.mark.parametrize("compression", [0.0, -0.5, 1.1, float("nan"), 0.01])
def test_compression_must_leave_channels(compression: float) -> None:
    with pytest.raises(ValueError, match="compression"):
        DenseNetSpec(12, (2, 2), 16, "cifar", True, compression, (3, 32, 32), 10)


def test_compression_rounds_down() -> None:
    # 9 + 1 * 3 = 12 channels; theta 0.55 leaves floor(6.6)
    spec = DenseNetSpec(3, (1, 1), 9, "cifar", False, 0.55, (3, 8, 8), 10)
    assert spec.block_channels() == [(9, 12), (6, 9)]


def test_helpers_build_the_published_networks() -> None:
    assert imagenet(32, (6, 12, 24, 16)) == variant("densenet121")
    assert cifar(100, 12) == variant("densenet-bc-100-12")
