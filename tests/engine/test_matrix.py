"""TensorRT-RTX compiles every precision for every GPU it knows, or refuses what is documented."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from densenet_deploy.engine.build import build_engine
from densenet_deploy.engine_config import BuildConfig, Profile
from densenet_deploy.errors import BuildError
from densenet_deploy.pipeline import export_bundle
from densenet_deploy.recipe import PRECISIONS, Precision, load_recipe

pytest.importorskip("tensorrt_rtx")
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
PROFILES: tuple[tuple[Profile, ...], ...] = (
    ((1, 2, 4),),
    ((1, 1, 1), (1, 2, 4), (4, 4, 4)),
)
TYPES: dict[Precision, set[str]] = {
    "fp32": {"Float"},
    "fp16": {"Float", "Half"},  # input and output stay Float
    "int8": {"Float", "Half", "Int8"},  # what stays in floating point is fp16
}


@pytest.fixture(scope="module")
def graphs(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny DenseNet in every precision."""
    recipe = dataclasses.replace(load_recipe(str(tiny_recipe)), precisions=PRECISIONS)
    out = tmp_path_factory.mktemp("matrix") / "tiny"
    export_bundle(recipe, out)
    return out


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("profiles", PROFILES, ids=["1 profile", "3 profiles"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_builds_or_refuses_as_documented(
    precision: Precision,
    profiles: tuple[Profile, ...],
    capability: str,
    graphs: Path,
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    config = BuildConfig(profiles=profiles, compute_capabilities=(capability,))
    if capability == "7.5" and precision == "fp32":
        with pytest.raises(BuildError, match=r"Turing \(SM75\): FP32 GE"):
            build_engine(graphs / f"{precision}.onnx", config)
        return
    plan = build_engine(graphs / f"{precision}.onnx", config, log=log)
    assert plan.startswith(b"vtrt")
    text = log.read_text(encoding="utf-8")
    layers, _, bindings = text.partition("\nI/O Tensors:\n")
    images = next(line for line in bindings.splitlines() if line.startswith(" Name: images,"))
    assert batches(images) == [size for profile in profiles for size in profile]
    listed = layers.partition("Layers:\n")[2]
    assert set(re.findall(r"Datatype: (\w+)", listed)) == TYPES[precision]


def batches(binding: str) -> list[int]:
    """Batch sizes of the profiles of the engine itself: min, opt and max of each in turn."""
    return [int(size) for size in re.findall(r"(?:Min|Opt|Max)Shape: \[(\d+),", binding)]
