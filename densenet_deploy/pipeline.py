"""From a recipe to a bundle: a page of calls, each from value to value."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from densenet_deploy import data, environment, report, schema
from densenet_deploy.assemble import settings_for, write_engines, write_models
from densenet_deploy.batches import open_images
from densenet_deploy.bench import bench
from densenet_deploy.bundle import (
    Bundle,
    is_bundle,
    open_bundle,
    write_manifest,
)
from densenet_deploy.consistency import Consistency, check_bundle
from densenet_deploy.distributed import ALONE, Processes
from densenet_deploy.engine.build import engine_version
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import (
    CheckFailedError,
    GraphError,
    MissingDependencyError,
)
from densenet_deploy.evaluate import test_images
from densenet_deploy.export import (
    export_onnx,
    from_bytes,
    to_bytes,
)
from densenet_deploy.files import replacing_directory, replacing_file
from densenet_deploy.model import create_model
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.progress import Track, silent
from densenet_deploy.quantize import check_calibration, quantize
from densenet_deploy.recipe import TARGETS, DataConfig, Precision, QuantizeConfig, Recipe, Target
from densenet_deploy.results import Measurement, Parity, Skipped
from densenet_deploy.runtime import DEPLOYED
from densenet_deploy.runtime.select import why_cannot_run
from densenet_deploy.source import draw, prepare, preprocessing_for
from densenet_deploy.train import train
from densenet_deploy.training_state import STATE
from densenet_deploy.tune import Tuning, choose_policy, tune
from densenet_deploy.verify import verify

_SPARE_IMAGES = 16  # synthetic ones, for `auto` to choose by


@dataclass(frozen=True)
class RunResult:
    """What a run produced and measured; `cached` names engines that came from the build cache."""

    bundle: Bundle
    parity: tuple[Parity, ...]
    consistency: tuple[Consistency, ...]
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]
    rewrites: str
    cached: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "bundle": self.bundle.identity(),
            "rewrites": self.bundle.manifest.rewrites,
            "parity": [record.to_dict() for record in self.parity],
            "consistency": [record.to_dict() for record in self.consistency],
            "measurements": [record.to_dict() for record in self.measurements],
            "skipped": [dataclasses.asdict(record) for record in self.skipped],
            "environment": environment.describe(),
        }


def run(
    recipe: Recipe,
    out: Path,
    track: Track = silent,
    engines: bool = True,
    test: DataConfig | None = None,
    cache: Path | None = None,
) -> RunResult:
    """Export, quantize, build, verify, check, bench, report: a bundle, published only if it passes.

    Args:
        recipe: What to make.
        out: The bundle's directory; replaced as a whole at the end.
        track: Progress reporter.
        engines: Whether to build engines.
        test: Test images to verify on, instead of the recipe's.
        cache: Folder of the build cache; by default every engine is built anew.

    Raises:
        BackendError: The recipe asks for engines this machine cannot build.
        CheckFailedError: A graph misses its acceptance contract, or a runner contradicts itself;
            `out` stays as it was.
        DeployError: Whatever a stage found wrong.
    """
    missing = _missing_builder(recipe) if engines else None
    source = prepare(recipe, track)
    with replacing_directory(out, is_bundle) as staging:
        manifest, rewrites = write_models(source, recipe, staging, track)
        cached: tuple[str, ...] = ()
        if engines and not missing:
            manifest, cached = write_engines(manifest, recipe, staging, track, cache)
        bundle = write_manifest(staging, manifest)
        available, skipped = _backends(bundle)
        skipped += [missing] if missing else []
        images = source.test
        if test is not None:
            images = data.load(test, "test", source.preprocessing)
        parity = verify(bundle, images, recipe.verify, available, track=track)
        if failed := [record.summary() for record in parity if not record]:
            raise CheckFailedError.collect(f"{recipe.name} misses its contract", failed)
        consistency = check_bundle(bundle, images, available, track=track)
        if failed := [record.summary() for record in consistency if not record]:
            raise CheckFailedError.collect(f"{recipe.name} contradicts itself", failed)
        measured = bench(bundle, available, bundle.precisions, recipe.bench, track)
        result = RunResult(
            bundle,
            tuple(parity),
            tuple(consistency),
            tuple(measured),
            tuple(skipped),
            rewrites,
            cached,
        )
        try:
            report.write(result.to_dict(), manifest.description, staging)
        except MissingDependencyError as error:
            result = dataclasses.replace(result, skipped=(*skipped, Skipped("report", str(error))))
        records = staging / "records.json"
        records.write_text(json.dumps(result.to_dict()) + "\n", encoding="utf-8")
        write_manifest(staging, dataclasses.replace(manifest, records={"run": records.name}))
    return dataclasses.replace(result, bundle=open_bundle(out))


def _backends(bundle: Bundle) -> tuple[list[str], list[Skipped]]:
    """(those that run this bundle here, those that do not and why)."""
    reasons = {name: why_cannot_run(bundle, name, bundle.precisions) for name in DEPLOYED}
    available = [name for name, reason in reasons.items() if not reason]
    return available, [Skipped(name, reason) for name, reason in reasons.items() if reason]


def _missing_builder(recipe: Recipe) -> Skipped | None:
    """Why engines are left out: only for a backend that could be installed, but is not."""
    try:
        engine_version(recipe.build.backend)
    except MissingDependencyError as error:
        return Skipped(f"{recipe.build.backend} engines", str(error))
    return None


def export_bundle(recipe: Recipe, out: Path, track: Track = silent) -> tuple[Bundle, str]:
    """Exports and quantizes only: a bundle without engines and records.

    Returns:
        The bundle, and what the rewrites did.

    Raises:
        DeployError: Whatever a stage found wrong; `out` stays as it was.
    """
    source = prepare(recipe, track)
    with replacing_directory(out, is_bundle) as staging:
        manifest, rewrites = write_models(source, recipe, staging, track)
        write_manifest(staging, manifest)
    return open_bundle(out), rewrites


def tune_recipe(recipe: Recipe, target: Target, track: Track = silent) -> Tuning:
    """Measures ways to quantize a recipe's model for a target; test images are not read for it.

    Raises:
        CheckFailedError: Nothing is within the recipe's budget.
        DeployError: Whatever a stage found wrong.
    """
    source = prepare(recipe, track)
    check_calibration(recipe.quantize, len(source.calibration))
    plain = dataclasses.replace(recipe.export, fuse=False)
    model = export_onnx(source.model, source.model.spec.input_shape, plain).model
    calibration = source.preprocessing.normalise(source.calibration.pixels)
    selection = source.preprocessing.normalise(source.selection.pixels)
    return tune(model, recipe.quantize, target, calibration, selection, track)


def quantize_file(
    onnx_file: Path,
    precision: Precision,
    config: QuantizeConfig,
    images: DataConfig | None,
    out: Path,
    target: Target | None = None,
    track: Track = silent,
) -> int:
    """Quantizes an fp32 ONNX file; preprocessing comes from the file's own metadata.

    Args:
        onnx_file: As `export` wrote it.
        precision: To convert to.
        config: Calibration settings.
        images: Data set whose training images calibrate int8; without one, synthetic images do
            for a file that is speed only, and nothing does for trained weights.
        out: File to write.
        target: What int8 is lowered for; by default what the file was.
        track: Progress reporter.

    Returns:
        Bytes written.

    Raises:
        GraphError: Not an fp32 ONNX model.
        DataError: No calibration images for trained weights.
    """
    if not onnx_file.is_file():
        raise GraphError(f"{onnx_file} does not exist", expected="an ONNX file")
    model = from_bytes(onnx_file.read_bytes(), str(onnx_file))
    _require_fp32(model, onnx_file)
    target = target or _embedded_target(model)
    calibration = None
    if precision == "int8":
        preprocessing = _embedded_preprocessing(model, onnx_file)
        if images is not None:
            pool = data.load(images, "train", preprocessing)
        elif model.metadata_props.get("densenet_deploy.speed_only") == "true":
            pool = data.synthetic(config.images + _SPARE_IMAGES, preprocessing)
        else:
            pool = data.none(preprocessing)
        drawn, _, selection = draw(pool, config)
        check_calibration(config, len(drawn))
        calibration = preprocessing.normalise(drawn.pixels)
        if config.policy == "auto":
            others = preprocessing.normalise(selection.pixels)
            config = choose_policy(model, config, target, calibration, others, track).config
    model.metadata_props["densenet_deploy.target"] = target
    written = to_bytes(quantize(model, precision, config, calibration, target, track))
    with replacing_file(out) as temporary:
        temporary.write_bytes(written)
    return len(written)


def build_settings(onnx_file: Path, config: BuildConfig) -> BuildConfig:
    """How to build an ONNX file, see `assemble.settings_for`.

    Raises:
        GraphError: Every problem, with the node it is at; or the file is no ONNX model.
    """
    try:
        model = ir.load(onnx_file)
        model.graph.outputs[0]  # an empty file is a valid protobuf
    except Exception as error:  # protobuf's and others
        reason = type(error).__name__
        raise GraphError(f"{onnx_file} is not a valid ONNX model ({reason})") from None
    return settings_for(model, config)


def _require_fp32(model: ir.Model, onnx_file: Path) -> None:
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph)
    half = any(v.dtype == ir.DataType.FLOAT16 for v in model.graph.initializers.values())
    if quantized or half:
        raise GraphError(
            f"{onnx_file} is an {'int8' if quantized else 'fp16'} graph",
            expected="an fp32 one, such as fp32.onnx of the same bundle",
        )


def _embedded_target(model: ir.Model) -> Target:
    named = model.metadata_props.get("densenet_deploy.target", "")
    return next((target for target in TARGETS if target == named), "tensorrt")


def _embedded_preprocessing(model: ir.Model, onnx_file: Path) -> Preprocessing:
    problems: list[str] = []
    try:
        table = json.loads(model.metadata_props.get("densenet_deploy.preprocessing", "null"))
    except json.JSONDecodeError:
        table = None
    preprocessing = schema.read(Preprocessing, table, "preprocessing", problems)
    if preprocessing is None:
        raise GraphError(
            f"{onnx_file} does not say how its images are preprocessed",
            expected="a file written by densenet-deploy export",
        )
    return preprocessing


def train_model(
    recipe: Recipe, out: Path, track: Track = silent, processes: Processes = ALONE
) -> list[dict[str, Any]]:
    """Trains a recipe's model from its seed, or resumes.

    Args:
        recipe: What to train, how, and on which images.
        out: Directory of state, log and weights.
        track: Progress reporter.
        processes: This process among those that train together.

    Returns:
        One record for each epoch.

    Raises:
        DataError: The data set is not there.
        CheckpointError: `out` holds another run.
        TrainingError: See `train`.
    """
    config, network = recipe.train, recipe.model
    preprocessing = preprocessing_for(recipe, network.input_shape)
    with processes.one_by_machine_first(out / STATE):
        images, held_out = open_images(
            recipe.data, preprocessing, config.validation_images, config.seed
        )
        evaluation = held_out or test_images(recipe.data, preprocessing)
    model = create_model(
        network.variant,
        network.input_shape,
        network.classes,
        config.seed,
        dropout=config.dropout,
        dropout_place=config.dropout_place,
        initialisation=config.initialisation,
    )
    return train(model, config, images, evaluation, preprocessing, out, track, processes)
