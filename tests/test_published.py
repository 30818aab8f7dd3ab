"""The published recipes against the papers' numbers, typed here once more, and trained."""

from __future__ import annotations

import itertools
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy import data, preprocess, published, published_results
from densenet_deploy.choose import choose_recipe, find_recipe
from densenet_deploy.errors import RecipeError
from densenet_deploy.published import published_recipes
from densenet_deploy.recipe import DataConfig, Recipe, parse_recipe, recipe_folder
from densenet_deploy.schedule import learning_rate
from densenet_deploy.source import preprocessing_for
from densenet_deploy.spec import variant
from densenet_deploy.train_config import TrainConfig
from tests import stand_ins

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = list(published_recipes())
SMALL_SETS = ("c10", "c10+", "c100", "c100+", "svhn")
# arXiv 1608.06993v5, table 2, and the README of its code for the wide ones: top-1 error in percent
CIFAR_ERRORS: dict[str, tuple[float | None, ...]] = {
    "densenet-40-12": (7.00, 5.24, 27.55, 24.42, 1.79),
    "densenet-100-12": (5.77, 4.10, 23.79, 20.20, 1.67),
    "densenet-100-24": (5.83, 3.74, 23.42, 19.25, 1.59),
    "densenet-bc-100-12": (5.92, 4.51, 24.15, 22.27, 1.76),
    "densenet-bc-250-24": (5.19, 3.62, 19.64, 17.60, 1.74),
    "densenet-bc-190-40": (None, 3.46, None, 17.18, None),
    "densenet-bc-40-36": (None, 4.58, None, 22.30, None),
    "densenet-bc-40-48": (None, 3.99, None, 20.29, None),
    "densenet-bc-40-60": (None, 4.01, None, 19.99, None),
}
# Table 3, CVPR's table 3 for 161, arXiv 1707.06990 for the rest: error, epochs, batch, drops
IMAGENET: dict[str, tuple[float, int, int, list[int]]] = {
    "densenet121/imagenet": (25.02, 90, 256, [30, 60]),
    "densenet169/imagenet": (23.80, 90, 256, [30, 60]),
    "densenet201/imagenet": (22.58, 90, 256, [30, 60]),
    "densenet264/imagenet": (22.15, 90, 256, [30, 60]),
    "densenet161/imagenet": (22.33, 100, 128, [30, 60, 90]),
    "densenet232-k48/imagenet": (21.2, 100, 256, [30, 60, 90]),
    "densenet264/imagenet-cosine": (21.6, 100, 256, []),
    "densenet264-k48/imagenet-cosine": (20.4, 100, 256, []),
}


def drops_of(config: TrainConfig) -> list[int]:
    """First epochs, from 0, with a tenth of the rate of the epoch before."""
    rates = [learning_rate(config, epoch) for epoch in range(config.epochs)]
    pairs = enumerate(itertools.pairwise(rates), 1)
    return [epoch for epoch, (before, after) in pairs if after == pytest.approx(before / 10)]


# --- the numbers


def test_there_are_these_recipes() -> None:
    small = {f"paper/{net}/{setting}" for net in CIFAR_ERRORS for setting in SMALL_SETS}
    assert set(NAMES) == small | {f"paper/{name}" for name in IMAGENET}
    assert all(name == each.recipe.name for name, each in published_recipes().items())


def test_what_a_source_does_not_say_is_no_fact() -> None:
    recipes = (each.recipe for each in published_recipes().values())
    inferred = {each.name: each.description for each in recipes if "inferred" in each.description}
    assert list(inferred) == ["paper/densenet232-k48/imagenet"]
    (description,) = inferred.values()
    assert description.endswith("trained as published, drops and batch inferred")


@pytest.mark.parametrize("net", CIFAR_ERRORS)
def test_small_images(net: str) -> None:
    for setting, error in zip(SMALL_SETS, CIFAR_ERRORS[net], strict=True):
        found = published_recipes()[f"paper/{net}/{setting}"]
        recipe, config = found.recipe, found.recipe.train
        assert found.error == error
        assert ("not published in this setting" in recipe.description) == (error is None)
        assert ("as published" in recipe.description) == (error is not None)
        name, classes = {"c10": ("cifar10", 10), "c100": ("cifar100", 100)}.get(
            setting.rstrip("+"), ("svhn", 10)
        )
        assert (recipe.data.name, recipe.model.classes) == (name, classes)
        assert (recipe.model.variant, recipe.model.input_shape) == (net, (3, 32, 32))
        assert config.batch_size == 64
        svhn, augmented = setting == "svhn", setting.endswith("+")
        assert config.epochs == (40 if svhn else 300)
        assert drops_of(config) == ([20, 30] if svhn else [150, 225])
        assert config.dropout == (0 if augmented else 0.2)
        assert (config.flip, config.shift) == ((True, 4) if augmented else (False, 0))
        assert (config.crop, config.padding) == ("shift", "mean")
        assert (config.colour_jitter, config.lighting) == (0, 0)
        chosen = (6000, "best") if svhn else (0, "last")
        assert (config.validation_images, config.select) == chosen


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet(name: str) -> None:
    found = published_recipes()[f"paper/{name}"]
    recipe, config = found.recipe, found.recipe.train
    error, epochs, batch, drops = IMAGENET[name]
    assert (found.error, config.epochs, config.batch_size) == (error, epochs, batch)
    assert config.schedule == ("step" if drops else "cosine")
    if drops:
        assert drops_of(config) == drops
    assert recipe.model.variant == name.split("/")[0]
    assert (recipe.model.input_shape, recipe.model.classes) == ((3, 224, 224), 1000)
    assert (recipe.data.name, config.dropout) == ("folder", 0)
    assert (config.crop, config.flip) == ("random-resized", True)
    assert (config.colour_jitter, config.lighting) == (0.4, 0.1)
    assert (config.validation_images, config.select) == (0, "last")
    images = preprocessing_for(recipe, recipe.model.input_shape)
    assert (images.resize, images.interpolation) == (256, "bicubic")
    assert images.mean == (0.485, 0.456, 0.406) and images.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", NAMES)
def test_what_all_have_in_common(name: str) -> None:
    config = published_recipes()[name].recipe.train
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.1, 0.9, 1e-4)
    assert (config.warmup_epochs, learning_rate(config, 0)) == (0, 0.1)
    assert (config.initialisation, config.dropout_place) == ("fan-out", "every-convolution")
    assert config.precision == "fp32"


def test_nets_have_the_papers_sizes() -> None:
    """In millions, as printed; an own count, by layers, is in test_spec.py."""
    printed = {
        "densenet-40-12": 1.0,
        "densenet-100-12": 7.0,
        "densenet-100-24": 27.2,
        "densenet-bc-100-12": 0.8,
        "densenet-bc-250-24": 15.3,
        "densenet-bc-190-40": 25.6,
        "densenet-bc-40-36": 1.5,
        "densenet-bc-40-48": 2.7,
        "densenet-bc-40-60": 4.3,
    }
    for net, millions in printed.items():
        assert round(variant(net).parameters / 1e6, 1) == millions, net


def test_errors_are_those_the_figures_show() -> None:
    papers = published_results.load()
    rows: list[Any] = [*papers.table2.rows, *papers.wide.rows]
    printed = {
        f"paper/{row.model}/{setting.lower()}": error
        for row in rows
        if row.model in CIFAR_ERRORS
        for setting, error in row.errors.items()
    }
    printed |= {f"paper/{row.model}/imagenet": row.top1.single_crop for row in papers.table3.rows}
    assert len(printed) == 38
    for name, error in printed.items():
        assert published_recipes()[name].error == error, name


@pytest.mark.parametrize(
    "ours, mean, std",
    [
        (preprocess.CIFAR10, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        (preprocess.CIFAR100, (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
        (preprocess.SVHN, (0, 0, 0), (255, 255, 255)),
    ],
)
def test_pixels_are_normalised_as_published(ours: Any, mean: Any, std: Any) -> None:
    """datasets/cifar10.lua and cifar100.lua of fb.resnet.torch; of SVHN section 4.1."""
    assert ours.mean == pytest.approx([value / 255 for value in mean], abs=5.1e-5)
    assert ours.std == pytest.approx([value / 255 for value in std], abs=5.1e-5)


# --- schedules


@given(st.sampled_from(NAMES), st.integers(1, 400), st.floats(0, 0.999))
def test_a_shorter_run_keeps_the_schedules_shape(name: str, epochs: int, share: float) -> None:
    config = published_recipes()[name].recipe.train
    shorter = replace(config, epochs=epochs)
    if all(abs(share - drop) > 1e-9 for drop in config.drops):
        expected = learning_rate(config, share * config.epochs)
        assert learning_rate(shorter, share * epochs) == pytest.approx(expected, rel=1e-9)


def test_drops_take_effect_with_the_first_step_of_an_epoch() -> None:
    for name, epochs in {"paper/densenet121/imagenet": (30, 60), NAMES[0]: (150, 225)}.items():
        config = published_recipes()[name].recipe.train
        for number, epoch in enumerate(epochs):
            assert learning_rate(config, epoch - 1e-6) == pytest.approx(0.1 ** (number + 1))
            assert learning_rate(config, float(epoch)) == pytest.approx(0.1 ** (number + 2))


def test_the_cosine_is_the_authors_per_step() -> None:
    """train.lua: 0.5 * LR * (1 + cos(pi * T_cur / T_total)), T in steps."""
    config = published_recipes()["paper/densenet264-k48/imagenet-cosine"].recipe.train
    steps = 5004
    for at in (0, 1, 7 * steps + 11, 50 * steps, 100 * steps - 1):
        expected = 0.5 * 0.1 * (1 + math.cos(math.pi * at / (100 * steps)))
        assert learning_rate(config, at / steps) == pytest.approx(expected, rel=1e-9, abs=1e-15)


# --- finding them


def test_a_name_is_understood_wherever_a_recipe_is() -> None:
    name = "paper/densenet-bc-100-12/c10+"
    assert find_recipe(name) == choose_recipe(name) == published_recipes()[name].recipe
    images = DataConfig(name="cifar10", directory="there")
    assert choose_recipe(name, data=images).data == images


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("paper/densenet-bc-10-12/c10+")
    assert "did you mean 'paper/densenet-bc-100-12/c10+'?" in str(caught.value)
    assert "expected paper/NET/SETTING" in str(caught.value)
    assert "densenet-deploy models --recipes" in str(caught.value)


def test_a_file_in_a_folder_called_paper_is_a_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "mine.toml").write_text('name = "mine"\n')
    assert find_recipe("paper/mine.toml").name == "mine"


def test_a_mistake_in_the_data_names_its_place(tmp_path: Path, monkeypatch: Any) -> None:
    shipped = (recipe_folder() / "published" / "densenet.toml").read_text()
    (tmp_path / "published").mkdir()
    copy = tmp_path / "published" / "densenet.toml"
    monkeypatch.setattr(published, "recipe_folder", lambda: tmp_path)
    for old, new, message in (
        ("momentum = 0.9", "momentun = 0.9", "unknown key 'momentun' in train"),
        ("shift = 4", "shift = -4", "train: shift, validation_images"),
        ('data = "svhn"', 'data = "sv"', "settings.svhn data is 'sv'"),
    ):
        assert old in shipped
        copy.write_text(shipped.replace(old, new))
        with pytest.raises(RecipeError, match=message):
            published.published_recipes.__wrapped__()


def test_a_recipe_can_be_written_to_a_file() -> None:
    """What is composed is a recipe like any other: its own values read it back."""
    for each in published_recipes().values():
        assert parse_recipe(each.recipe.to_dict(), "copy") == each.recipe


# --- training


def stand_in(setting: str, root: Path, patch: pytest.MonkeyPatch) -> Path:
    """A small data set in the published one's place."""
    if setting.startswith("imagenet"):
        return stand_ins.imagenet(root)
    if setting == "svhn":
        return stand_ins.svhn(root, patch)
    return stand_ins.cifar(root, "CIFAR100" if "100" in setting else "CIFAR10", patch)


def small(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe with a network, and numbers of images, that take a second."""
    model = replace(recipe.model, variant="densenet-bc-10-4")
    train = replace(recipe.train, epochs=2, batch_size=16)
    if train.validation_images:
        train = replace(train, validation_images=40)
    if recipe.data.name == "folder":
        model, train = replace(model, classes=3), replace(train, batch_size=8)
    images = replace(recipe.data, directory=str(directory))
    return replace(recipe, model=model, train=train, data=images)


SETTINGS = {name.split("/")[2]: name for name in NAMES}


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_trains(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from densenet_deploy.pipeline import train_model

    directory = stand_in(setting, tmp_path / "data", monkeypatch)
    recipe = small(published_recipes()[SETTINGS[setting]].recipe, directory)
    records = train_model(recipe, tmp_path / "out")
    assert [record["epoch"] for record in records] == [1, 2]
    assert all(0 < record["loss"] < 10 for record in records)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    expected = {"svhn": 40, "imagenet": 24, "imagenet-cosine": 24}.get(setting, 50)
    assert {record["evaluation_images"] for record in records} == {expected}


def test_one_recipe_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the number of epochs, on 64 images: one step of its own network."""
    from densenet_deploy.pipeline import train_model

    recipe = published_recipes()["paper/densenet-bc-40-36/c10+"].recipe
    directory = stand_ins.cifar(tmp_path, "CIFAR10", monkeypatch, images=64)
    images = replace(recipe.data, directory=str(directory), test_images=2)
    recipe = replace(recipe, train=replace(recipe.train, epochs=1), data=images)
    (record,) = train_model(recipe, tmp_path / "out")
    assert 2 < record["loss"] < 3.5  # ten classes, weights as they were drawn
    assert record["learning_rate"] == 0.1


def test_what_a_recipe_says_of_its_network_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from densenet_deploy import pipeline

    directory = stand_ins.cifar(tmp_path, "CIFAR10", monkeypatch, images=64)
    recipe = small(published_recipes()["paper/densenet-40-12/c10"].recipe, directory)
    own = {"dropout_place": "dense-layer", "initialisation": "fan-in", "seed": 5}
    recipe = replace(recipe, train=replace(recipe.train, **own))  # type: ignore[arg-type]
    made: list[Any] = []
    monkeypatch.setattr(pipeline, "create_model", lambda *given, **more: made.append((given, more)))
    monkeypatch.setattr(pipeline, "train", lambda *_: [])
    pipeline.train_model(recipe, tmp_path / "out")
    (((_, _, classes, seed), named),) = made
    assert (classes, seed) == (10, 5)
    assert named == {"dropout": 0.2, "dropout_place": "dense-layer", "initialisation": "fan-in"}


# --- the data sets


def test_svhn_trains_on_the_extra_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = stand_ins.svhn(tmp_path / "svhn", monkeypatch)
    config = DataConfig(name="svhn", directory=str(directory))
    pixels, labels = stand_ins.photographs("train", 160)
    images = data.load(config, "train", preprocess.SVHN)
    assert images.source == "SVHN, 160 train and extra images"
    assert (images.pixels == pixels).all() and (images.labels == labels).all()
    assert images.pixels.flags.c_contiguous
    test = data.load(config, "test", preprocess.SVHN)
    assert (len(test), test.source) == (50, "SVHN, 50 test images")
    assert preprocess.SVHN.normalise(images.pixels).max() <= 1


def test_cifar_is_read_as_torchvision_stores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CIFAR10", "CIFAR100"):
        directory = stand_ins.cifar(tmp_path / name, name, monkeypatch)
        config = DataConfig(name=name.lower(), directory=str(directory))  # type: ignore[arg-type]
        pixels, labels = stand_ins.photographs("train", 160)
        images = data.load(config, "train", preprocess.CIFAR10)
        assert images.source == f"{name}, 160 train images"
        assert (images.pixels == pixels).all() and (images.labels == labels).all()
        assert len(images.classes) == (10 if name == "CIFAR10" else 100)


def test_the_shipped_file_is_plain_data() -> None:
    table = tomllib.loads((recipe_folder() / "published" / "densenet.toml").read_text())
    assert set(table) == {"train", "settings", "nets"}
