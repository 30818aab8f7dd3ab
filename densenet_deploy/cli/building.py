"""The command that compiles an engine: build."""

from __future__ import annotations

import dataclasses
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densenet_deploy.cli import show
from densenet_deploy.cli.options import Json, NoCache, Quiet, batch_bounds, checked, tracker
from densenet_deploy.engine_config import (
    BuildConfig,
    EngineBackend,
    EngineWeights,
    HardwareCompatibility,
    ProfilingVerbosity,
)

if TYPE_CHECKING:
    from densenet_deploy.engine.build import Built

_DEFAULT = BuildConfig()


def build(
    onnx: Annotated[Path, typer.Argument(help="ONNX file.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", dir_okay=False, help="Engine file to write."),
    ],
    backend: Annotated[
        EngineBackend,
        typer.Option("--backend", help="Who compiles and runs it; tensorrt needs its GPU."),
    ] = _DEFAULT.backend,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            "--batch",
            metavar="MIN,OPT,MAX",
            help="Batch sizes of an optimization profile; repeatable (default: 1,8,64).",
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="X.Y",
            help="GPUs a TensorRT-RTX engine runs on; repeatable (default: "
            f"{', '.join(_DEFAULT.compute_capabilities)}, and 7.5 where the graph allows it).",
        ),
    ] = None,
    workspace: Annotated[
        int,
        typer.Option(
            "--workspace", metavar="MIB", min=0, help="Most scratch memory of a layer; 0 for all."
        ),
    ] = _DEFAULT.workspace_mib,
    optimization_level: Annotated[
        int,
        typer.Option(
            "--optimization-level",
            metavar="LEVEL",
            min=0,
            max=5,
            help="0 (fast build) to 5 (fast engine).",
        ),
    ] = _DEFAULT.optimization_level,
    hardware_compatibility: Annotated[
        HardwareCompatibility,
        typer.Option("--hardware-compatibility", help="Other GPUs a TensorRT engine runs on."),
    ] = _DEFAULT.hardware_compatibility,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Later TensorRT versions run it too.")
    ] = False,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="fp32 products with ten bits of mantissa.")
    ] = False,
    weights: Annotated[
        EngineWeights, typer.Option("--weights", help="Fixed in it, replaceable, or left out.")
    ] = _DEFAULT.weights,
    verbosity: Annotated[
        ProfilingVerbosity, typer.Option("--verbosity", help="What engine and log tell of layers.")
    ] = _DEFAULT.profiling_verbosity,
    no_timing_cache: Annotated[
        bool, typer.Option("--no-timing-cache", help="Let TensorRT measure every kernel again.")
    ] = False,
    no_cache: NoCache = False,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", metavar="FILE", dir_okay=False, help="Where the build log goes, for `inspect`."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile an engine from an ONNX graph; its precision is the graph's."""
    from densenet_deploy.engine.build import build_widest
    from densenet_deploy.engine.cache import default_cache
    from densenet_deploy.files import replacing_file

    config: BuildConfig = checked(
        lambda: BuildConfig(
            backend=backend,
            profiles=tuple(map(batch_bounds, batch or ())) or _DEFAULT.profiles,
            compute_capabilities=tuple(compute_capability or _DEFAULT.compute_capabilities),
            optional_compute_capabilities=()
            if compute_capability
            else _DEFAULT.optional_compute_capabilities,
            workspace_mib=workspace,
            optimization_level=optimization_level,
            timing_cache=not no_timing_cache,
            hardware_compatibility=hardware_compatibility,
            version_compatible=version_compatible,
            tf32=tf32,
            profiling_verbosity=verbosity,
            weights=weights,
        )
    )
    config = _settings_for(onnx, config)
    cache = None if no_cache else default_cache()
    with replacing_file(out) as temporary:  # first: a place that cannot be written costs no build
        started = time.perf_counter()
        built = build_widest(onnx, config, tracker(quiet), log, cache)
        seconds = time.perf_counter() - started
        temporary.write_bytes(built.plan)
    if json:
        show.as_json(_record(out, config, built, seconds))
    else:
        typer.echo(_summary(out, config, built, seconds))


def _settings_for(onnx: Path, config: BuildConfig) -> BuildConfig:
    """Looks at the graph first; a host without onnx leaves that to the builder."""
    if not onnx.is_file() or not find_spec("onnx_ir"):
        return config
    from densenet_deploy import pipeline

    return pipeline.build_settings(onnx, config)


def _record(out: Path, config: BuildConfig, built: Built, seconds: float) -> dict[str, object]:
    return {
        "engine": out,
        "bytes": len(built.plan),
        "version": built.version,
        "compute_capabilities": built.compute_capabilities,
        "config": config,
        "cached": built.cached,
        "timing_cache": built.timing_cache,
        "seconds": seconds,
    }


def _summary(out: Path, config: BuildConfig, built: Built, seconds: float) -> str:
    """What was made and for what, the options that are not default, and where it came from."""
    from densenet_deploy.engine.options import changed

    targets = " ".join(built.compute_capabilities)
    facts = f"{len(built.plan) / 1e6:.2f} MB, {config.backend} {built.version}"
    lines = [f"engine: {out} ({facts}, compute capability {targets})"]
    lines.append("batch: " + show.profiles(config.profiles))
    if options := changed(dataclasses.asdict(config)):
        lines.append("options: " + ", ".join(options))
    origin = "from the build cache" if built.cached else "built"
    timing = f", timing cache {built.timing_cache}" if built.timing_cache else ""
    return "\n".join([*lines, f"{origin} in {seconds:.2f} s{timing}"])
