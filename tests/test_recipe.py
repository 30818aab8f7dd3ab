from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy import recipe
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import RecipeError
from densenet_deploy.recipe import (
    BenchConfig,
    DataConfig,
    DataName,
    ExportConfig,
    ModelConfig,
    QuantizeConfig,
    Recipe,
    Tolerance,
    VerifyConfig,
    load_recipe,
    parse_recipe,
)
from densenet_deploy.train_config import TrainConfig

texts = st.text(max_size=8)
positive = st.integers(1, 10**6)
natural = st.integers(0, 10**6)
numbers = st.floats(allow_nan=False, allow_infinity=False).map(abs)


def recipes_of(sizes: list[int]) -> st.SearchStrategy[Recipe]:
    """Recipes whose engine stays within the batch sizes that the graph promises."""
    low, least, opt, most, high = sizes
    return st.builds(
        Recipe,
        name=texts,
        description=texts,
        precisions=st.lists(st.sampled_from(recipe.PRECISIONS), min_size=1).map(tuple),
        model=st.builds(
            ModelConfig,
            variant=texts,
            input_shape=st.tuples(positive, positive, positive),
            classes=positive,
            weights=texts,
            seed=st.integers(),
        ),
        data=st.builds(
            DataConfig,
            name=st.sampled_from(get_args(DataName)),
            directory=texts,
            sample=st.booleans(),
            test_images=natural,
        ),
        train=st.builds(
            TrainConfig,
            epochs=positive,
            batch_size=positive,
            learning_rate=numbers.filter(bool),
            schedule=st.sampled_from(["cosine", "step"]),
            warmup_epochs=numbers,
            momentum=st.floats(0, 1, exclude_max=True),
            weight_decay=numbers,
            flip=st.booleans(),
            shift=natural,
            precision=st.sampled_from(["fp32", "bf16", "fp16"]),
            drops=st.lists(st.floats(0.01, 0.99), max_size=3).map(lambda d: tuple(sorted(d))),
            dropout=st.floats(0, 0.9),
            padding=st.sampled_from(["black", "mean"]),
            channels_last=st.booleans(),
            compile=st.booleans(),
            validation_images=natural,
            seed=natural,
        ),
        export=st.builds(
            ExportConfig,
            target=st.sampled_from(recipe.TARGETS),
            batch=st.just((low, opt, high)),
            opset=st.integers(20, 30),
            fuse=st.booleans(),
        ),
        quantize=st.builds(QuantizeConfig, images=natural, batch_size=positive),
        build=st.builds(
            BuildConfig,
            backend=st.sampled_from(["tensorrt-rtx", "tensorrt"]),
            profiles=st.just(((least, opt, most), (least, least, opt))),
            compute_capabilities=st.lists(texts).map(tuple),
            optional_compute_capabilities=st.lists(texts).map(tuple),
        ),
        verify=st.builds(
            VerifyConfig,
            tolerances=st.dictionaries(
                st.sampled_from(recipe.PRECISIONS),
                st.builds(
                    Tolerance, top1_drop=numbers, agreement=numbers, max_abs=numbers, cosine=numbers
                ),
            ),
        ),
        bench=st.builds(
            BenchConfig,
            batch_sizes=st.lists(positive, min_size=1).map(tuple),
            seconds=numbers.filter(bool),
            threads=natural,
        ),
    )


recipes = st.lists(positive, min_size=5, max_size=5).map(sorted).flatmap(recipes_of)
SHIPPED = sorted(recipe.recipe_folder().glob("*.toml"))


@given(recipes)
def test_round_trip(original: Recipe) -> None:
    assert parse_recipe(original.to_dict(), "test") == original
    decoded = json.loads(json.dumps(original.to_dict()))  # as read from a manifest
    assert parse_recipe(decoded, "test") == original
    assert parse_recipe(decoded, "test").digest == original.digest


@given(recipes, recipes)
def test_digests_differ_where_recipes_do(one: Recipe, other: Recipe) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_digest_notices_each_stage_and_ignores_the_order_of_tables() -> None:
    base = Recipe("base")
    changed = [
        replace(base, train=TrainConfig(seed=1)),
        replace(base, export=ExportConfig(fuse=False)),
        replace(base, verify=VerifyConfig({"fp32": Tolerance()})),
    ]
    assert len({r.digest for r in [base, *changed]}) == 4
    tolerances = dict(reversed(base.verify.tolerances.items()))
    assert replace(base, verify=VerifyConfig(tolerances)).digest == base.digest


def leaves(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict)
        flat |= leaves(value, (*prefix, key)) if inner else {(*prefix, key): value}
    return flat


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_loads_with_the_values_in_its_file(path: Path) -> None:
    loaded = load_recipe(path.stem)
    assert loaded == load_recipe(str(path))
    assert loaded.name == path.stem
    ours = leaves(json.loads(json.dumps(loaded.to_dict())))
    for key, value in leaves(tomllib.loads(path.read_text())).items():
        assert ours[key] == value, key


@pytest.mark.parametrize(
    ("name", "variant"),
    [("fashion-mnist", "densenet-bc-40-12"), ("fashion-mnist-100", "densenet-bc-100-12")],
)
def test_trained_models_ship_with_a_recipe(name: str, variant: str) -> None:
    assert load_recipe(name).model == ModelConfig(variant, (1, 28, 28), 10, name)


def test_weights_are_the_shipped_ones_only_where_no_model_is_named() -> None:
    assert parse_recipe({"name": "x"}, "").model.weights == "fashion-mnist"
    assert parse_recipe({"name": "x", "model": {"seed": 1}}, "").model.weights == ""


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'fashon'.*one of: .*fashion-mnist"):
        load_recipe("fashon")


def test_missing_file_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "mine.toml")
    with pytest.raises(RecipeError, match=f"no recipe '{re.escape(missing)}'"):
        load_recipe(missing)


@pytest.mark.parametrize(
    "content",
    [b"name = ", b"name = 'a'\nname = 'b'", b"name = '\xff'", b"seed = " + b"1" * 5000],
    ids=["syntax", "duplicate key", "not UTF-8", "5,000 digits"],
)
def test_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.toml is not valid TOML"):
        load_recipe(str(path))


def test_all_problems_are_reported_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "nam = 'mine'\nprecisions = ['fp32', 'fp64']\n[train]\nepochs = 2.5\n[build]\nfp16 = true\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    lines = str(caught.value).splitlines()
    assert lines[0] == "mine.toml: 5 problems"
    assert {line.split(";")[0] for line in lines[1:]} == {
        "  - unknown key 'nam' in the file (did you mean 'name'?)",
        "  - name is missing",
        "  - precisions[1] is 'fp64', expected one of: fp32, fp16, int8",
        "  - train epochs is 2.5, expected an integer",
        "  - unknown key 'fp16' in build",
    }
    assert "valid keys: backend, profiles, compute_capabilities" in str(caught.value)


@pytest.mark.parametrize(
    "table, message",
    [
        ({"precisions": []}, "precisions must name at least one"),
        ({"data": {"test_images": -1}}, "data: test_images and train_images must not be negative"),
        ({"train": {"epochs": 0}}, "train: epochs, batch_size, accumulate and learning_rate must"),
        ({"train": {"batch_size": 0}}, "train: epochs, batch_size, accumulate and"),
        ({"train": {"learning_rate": 0}}, "train: epochs, batch_size, accumulate and"),
        ({"train": {"accumulate": 3}}, "train: accumulate must divide batch_size 128"),
        ({"train": {"momentum": 1}}, "train: momentum and dropout must be in [0, 1) and seed not"),
        ({"train": {"momentum": -0.1}}, "train: momentum and dropout must be in [0, 1)"),
        ({"train": {"dropout": 1}}, "train: momentum and dropout must be in [0, 1)"),
        ({"train": {"seed": -1}}, "train: momentum and dropout must be in [0, 1) and seed not"),
        ({"train": {"shift": -1}}, "train: shift, validation_images, warmup_epochs, weight_decay,"),
        ({"train": {"warmup_epochs": -0.5}}, "train: shift, validation_images, warmup_epochs"),
        ({"train": {"lighting": -0.1}}, "train: shift, validation_images, warmup_epochs"),
        ({"train": {"drops": [0.75, 0.5]}}, "train: drops must rise, each in (0, 1)"),
        ({"train": {"drops": [1.0]}}, "train: drops must rise, each in (0, 1)"),
        ({"train": {"select": "best"}}, "train: select best needs validation_images"),
        ({"train": {"weight_decay": float("nan")}}, "train weight_decay is nan, expected a number"),
        ({"export": {"batch": [4, 2, 8]}}, "export: batch 4,2,8 must satisfy 1 <= min <= opt"),
        ({"export": {"batch": [0, 2, 8]}}, "export: batch 0,2,8 must satisfy"),
        (
            {"build": {"profiles": [[4, 2, 1]]}},
            "build: batch 4,2,1 must satisfy 1 <= min <= opt <= max",
        ),
        ({"build": {"profiles": [[1, 8, 65]]}}, "build.profiles 1..65 exceed export.batch 1..64"),
        ({"export": {"batch": [2, 8, 64]}}, "build.profiles 1..64 exceed export.batch 2..64"),
        ({"export": {"also": ["tensorrt"]}}, "export: also must name other targets than target"),
        ({"export": {"also": ["openvino"] * 2}}, "export: also must name other targets"),
        ({"quantize": {"percentile": 50}}, "quantize: percentile must be in (50, 100]"),
        ({"quantize": {"budget": -1}}, "quantize: percentile must be in (50, 100] and budget"),
        ({"export": {"opset": 19}}, "export: opset 19 must be 20 or newer"),
        ({"quantize": {"batch_size": 0}}, "quantize: images and seed must not be negative and"),
        ({"verify": {"tolerances": {"fp8": {}}}}, "verify: unknown precision fp8 in tolerances"),
        ({"bench": {"batch_sizes": []}}, "bench: batch_sizes must be positive, and at least one"),
        ({"bench": {"seconds": 0}}, "bench: seconds must be positive and finite"),
        ({"bench": {"threads": -1}}, "bench: threads must not be negative"),
    ],
)
def test_impossible_values_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^mine: {re.escape(message)}"):
        parse_recipe({"name": "x"} | table, "mine")


@pytest.mark.parametrize("batch", [(4, 2, 1), (0, 1, 1), (1, 3, 2), (2, 1, 2)])
def test_unordered_batch(batch: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must satisfy 1 <= min <= opt <= max"):
        ExportConfig(batch=batch)
    with pytest.raises(ValueError, match="must satisfy 1 <= min <= opt <= max"):
        BuildConfig(profiles=((1, 1, 1), batch))


def test_a_precision_without_a_tolerance_keeps_its_default() -> None:
    defaults, loose = VerifyConfig().tolerances, Tolerance(agreement=90.0)
    assert VerifyConfig({"int8": loose}).tolerances == {**defaults, "int8": loose}
    table = {"name": "x", "verify": {"tolerances": {"int8": {"agreement": 90.0}}}}
    assert parse_recipe(table, "test").verify.tolerances == {**defaults, "int8": loose}


def test_defaults_hold_each_precision_to_a_tolerance() -> None:
    tolerances = parse_recipe({"name": "x"}, "test").verify.tolerances
    assert set(tolerances) == set(recipe.PRECISIONS)
    assert tolerances["fp32"].agreement >= tolerances["fp16"].agreement
    assert tolerances["fp16"].agreement >= tolerances["int8"].agreement
