"""Fills a bundle's directory: graphs, checkpoint, golden tensors, samples, engines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from PIL import Image

from densenet_deploy import __version__, checkpoint
from densenet_deploy.bundle import SCHEMA_VERSION, EngineRecord, Manifest, TensorRecord
from densenet_deploy.data import ImageSet
from densenet_deploy.engine.build import Built, build_widest
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.export import BATCH, INPUT, OUTPUT, export_onnx, to_bytes
from densenet_deploy.progress import Track, once, silent
from densenet_deploy.quantize import check_calibration, quantize, to_int8
from densenet_deploy.quantize.dialect import DIALECTS
from densenet_deploy.quantize.legal import check_legal
from densenet_deploy.recipe import CPU_TARGETS, Precision, QuantizeConfig, Recipe, Target
from densenet_deploy.rewrite import INT8_RULES, RULES, RewriteResult, rewrite
from densenet_deploy.source import Source
from densenet_deploy.tune import choose_policy

_GOLDEN_IMAGES = 4
_SAMPLE_IMAGES = 16


def write_models(
    source: Source, recipe: Recipe, directory: Path, track: Track = silent
) -> tuple[Manifest, str]:
    """Writes the graphs of every precision, checkpoint, golden tensors and samples.

    Returns:
        The manifest so far, and what the rewrites did.

    Raises:
        DataError: int8 without enough calibration images.
        GraphError: A graph cannot be made.
    """
    if "int8" in recipe.precisions:  # known before the export, which takes a while
        check_calibration(recipe.quantize, len(source.calibration))
    plain = once(track, "Exporting to ONNX", lambda: _export(source, recipe))
    exported, files = _lowerings(plain, recipe), _files(recipe)
    jobs: dict[str, tuple[Target, Precision]] = {}
    for target, named in files.items():
        for precision in recipe.precisions:
            if precision in named:
                jobs.setdefault(named[precision], (target, precision))
    quantized: dict[str, dict[str, Any]] = {}
    for file in track(list(jobs), "Quantizing graphs"):
        target, precision = jobs[file]
        graph = exported[target].model
        if precision == "int8":
            graph, quantized[target] = _int8(graph, source, recipe.quantize, target, track)
        else:
            graph = quantize(graph, precision, recipe.quantize)
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_bytes(to_bytes(graph))
    info = checkpoint.CheckpointInfo(
        source.model.spec, source.preprocessing, source.labels, source.training
    )
    checkpoint.save(directory / "model.safetensors", source.model, info)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=recipe.name,
        description=recipe.description,
        model=source.model.spec.name,
        speed_only=source.speed_only,
        target=recipe.export.target,
        batch=recipe.export.batch,
        input=TensorRecord(INPUT, "float32", (BATCH, *source.model.spec.input_shape)),
        output=TensorRecord(OUTPUT, "float32", (BATCH, source.model.spec.classes)),
        preprocessing=source.preprocessing,
        labels=source.labels,
        models=files[recipe.export.target],
        lowered={target: files[target] for target in recipe.export.also},
        weights="model.safetensors",
        golden=_write_golden(source, recipe, directory),
        samples=_write_samples(source.test, directory),
        rewrites=exported[recipe.export.target].counts,
        calibration=_calibration_record(source, recipe, quantized),
        recipe=recipe.to_dict(),
        recipe_digest=recipe.digest,
        created_by=f"densenet-deploy {__version__}",
    )
    return manifest, exported[recipe.export.target].summary()


def _export(source: Source, recipe: Recipe) -> ir.Model:
    metadata = {
        "densenet_deploy.recipe": recipe.digest,
        "densenet_deploy.preprocessing": json.dumps(dataclasses.asdict(source.preprocessing)),
        "densenet_deploy.labels": json.dumps(source.labels),
        "densenet_deploy.speed_only": json.dumps(source.speed_only),
    }
    plain = dataclasses.replace(recipe.export, fuse=False)
    return export_onnx(source.model, source.model.spec.input_shape, plain, metadata).model


def _lowerings(plain: ir.Model, recipe: Recipe) -> dict[Target, RewriteResult]:
    """The fp32 graph for each target."""
    targets = (recipe.export.target, *recipe.export.also)
    fuse = recipe.export.fuse
    lowered = {target: rewrite(plain.clone(), RULES[target] if fuse else ()) for target in targets}
    for target, result in lowered.items():
        result.model.metadata_props["densenet_deploy.target"] = target
    return lowered


def _files(recipe: Recipe) -> dict[Target, dict[str, str]]:
    """The ONNX files of each target, by precision.

    CPUs compute fp16 in fp32 and need no graph of their own for it. Targets that take the same
    form share their files, unless a form is chosen for each by measuring.
    """
    files = {recipe.export.target: {str(name): f"{name}.onnx" for name in recipe.precisions}}
    for target in recipe.export.also:
        twins = [other for other in files if _form(other) == _form(target)]
        if twins and recipe.quantize.policy != "auto":
            files[target] = files[twins[0]]
            continue
        on_cpu = target in CPU_TARGETS
        wanted = [name for name in recipe.precisions if not (on_cpu and name == "fp16")]
        files[target] = {str(name): f"{target}/{name}.onnx" for name in wanted}
    return files


def _form(target: Target) -> tuple[object, ...]:
    """What makes the graphs for a target what they are."""
    return RULES[target], INT8_RULES[target], DIALECTS[target]


def _int8(
    graph: ir.Model, source: Source, config: QuantizeConfig, target: Target, track: Track
) -> tuple[ir.Model, dict[str, Any]]:
    """The quantized graph, and how it was made."""
    images = source.preprocessing.normalise(source.calibration.pixels[: config.images])
    record: dict[str, Any] = {}
    if config.policy == "auto":
        selection = source.preprocessing.normalise(source.selection.pixels)
        choice = choose_policy(graph, config, target, images, selection, track)
        config = choice.config
        record["selection"] = dataclasses.asdict(choice) | {"images": len(selection)}
    made = to_int8(graph, config, target, images, track)
    return made.model, record | made.to_dict()


def _calibration_record(
    source: Source, recipe: Recipe, graphs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    if "int8" not in recipe.precisions:
        return {}
    pixels = source.calibration.pixels[: recipe.quantize.images]
    return {
        "method": recipe.quantize.method,
        "images": len(pixels),
        "seed": recipe.quantize.seed,
        "source": source.calibration.source,
        "rows": list(source.rows[: len(pixels)]),
        "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "graphs": graphs,
    }


def _write_golden(source: Source, recipe: Recipe, directory: Path) -> dict[str, str]:
    low, _, high = recipe.export.batch
    count = max(low, min(high, _GOLDEN_IMAGES))
    rows = np.arange(count) % len(source.test)
    inputs = source.preprocessing.normalise(source.test.pixels[rows])
    with torch.inference_mode():
        logits = source.model(torch.from_numpy(inputs)).numpy()
    names = {"input": "golden/input.npy", "output": "golden/output.npy"}
    (directory / "golden").mkdir()
    np.save(directory / names["input"], inputs)
    np.save(directory / names["output"], logits)
    return names


def _write_samples(images: ImageSet, directory: Path) -> tuple[str, ...]:
    (directory / "samples").mkdir()
    names = []
    for index in range(min(_SAMPLE_IMAGES, len(images))):
        label = images.classes[images.labels[index]] if images.classes else "synthetic"
        slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        names.append(f"samples/{index:02d}-{slug}.png")
        pixels = images.pixels[index]
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
            directory / names[-1]
        )
    return tuple(names)


def write_engines(
    manifest: Manifest,
    recipe: Recipe,
    directory: Path,
    track: Track = silent,
    cache: Path | None = None,
) -> tuple[Manifest, tuple[str, ...]]:
    """Builds an engine of each graph for the recipe's backend, or finds it in the build cache.

    Returns:
        The manifest with the engines, and the files of those that came from the cache.

    Raises:
        BuildError: The builder refuses a graph or an option.
        MissingDependencyError: The backend is not installed.
        BackendError: It cannot build here.
    """
    config = recipe.build
    (directory / "engines").mkdir()
    engines: list[EngineRecord] = []
    cached: list[str] = []
    models = manifest.models | manifest.lowered.get(config.backend, {})
    for precision in track(recipe.precisions, f"Building {config.backend} engines"):
        model = directory / models[precision]
        # 7.5 would take int8 from every other target of the same engine
        built = build_widest(model, settings_for(ir.load(model), config), cache=cache)
        file = f"engines/{config.backend}-{precision}.plan"
        (directory / file).write_bytes(built.plan)
        engines.append(_engine_record(file, precision, config, built))
        cached += [file] * built.cached
    return dataclasses.replace(manifest, engines=tuple(engines)), tuple(cached)


def _engine_record(
    file: str, precision: Precision, config: BuildConfig, built: Built
) -> EngineRecord:
    return EngineRecord(
        file,
        config.backend,
        precision,
        built.version,
        config.profiles,
        built.compute_capabilities,
        config.hardware_compatibility,
        config.version_compatible,
        config.weights,
    )


def settings_for(model: ir.Model, config: BuildConfig) -> BuildConfig:
    """How to build a graph: without the optional compute capabilities where it is INT8.

    TensorRT-RTX with 7.5 among its targets compiles INT8 to half for all of them.

    Raises:
        GraphError: The builder would reject the graph, or accept it and get it wrong.
    """
    check_legal(model, config.backend)
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        return dataclasses.replace(config, optional_compute_capabilities=())
    return config
