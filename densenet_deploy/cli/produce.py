"""Commands that make something: run, export, quantize, train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.choose import choose_recipe
from densenet_deploy.cli import show
from densenet_deploy.cli.options import (
    DEFAULT_RECIPE,
    Architecture,
    DataDirectory,
    Full,
    Json,
    NoCache,
    Precisions,
    Quiet,
    RecipeArgument,
    Weights,
    batch_bounds,
    checked,
    data_config,
    default_out,
    precisions,
    tracker,
    whole,
)
from densenet_deploy.recipe import (
    CalibrationMethod,
    DataName,
    Policy,
    Precision,
    QuantizeConfig,
    Recipe,
    Target,
)

PolicyOption = typer.Option(
    "--policy",
    help="Scales of the dense blocks' concatenations; auto measures, and needs spare images.",
)
Out = Annotated[Path | None, typer.Option("--out", help="Output directory (default: work/NAME).")]


def run(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    out: Out = None,
    full: Full = False,
    data_dir: DataDirectory = "",
    engines: Annotated[bool, typer.Option(help="Build engines.")] = True,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a verified, measured bundle: export, quantize, build, verify, bench, report."""
    from densenet_deploy import pipeline
    from densenet_deploy.engine.cache import default_cache

    chosen = choose_recipe(recipe)
    test = whole(chosen.data, full, data_dir) if full or data_dir else None
    cache = None if no_cache else default_cache()
    directory = out or default_out(chosen.name)
    result = pipeline.run(chosen, directory, tracker(quiet), engines, test, cache)
    if json:
        show.as_json({"path": str(result.bundle.path), **result.to_dict()})
        return
    typer.echo(result.rewrites)
    for engine in result.bundle.manifest.engines:
        megabytes = result.bundle.manifest.files[engine.file].bytes / 1e6
        targets = " ".join(engine.compute_capabilities)
        made = "from the build cache" if engine.file in result.cached else "built"
        typer.echo(
            f"engine: {engine.file} ({megabytes:.2f} MB, compute capability {targets}, {made})"
        )
    typer.echo(f"verified on {result.parity[0].source} against {result.parity[0].reference}")
    took = sum(record.seconds for record in result.consistency)
    typer.echo(f"self-consistent: {len(result.consistency)} runners, checked in {took:.1f} s")
    show.results(result.to_dict(), chosen.description)
    typer.echo(f"bundle: {result.bundle.path}")


def export(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    model: Architecture = "",
    weights: Weights = "",
    precision: Precisions = None,
    target: Annotated[
        Target | None, typer.Option("--target", help="What the graphs are lowered for, alone.")
    ] = None,
    policy: Annotated[Policy | None, PolicyOption] = None,
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            metavar="MIN,OPT,MAX",
            help="Batch sizes the graphs take (default: the recipe's).",
        ),
    ] = "",
    data: Annotated[
        DataName | None, typer.Option("--data", help="Images that calibrate int8.")
    ] = None,
    data_dir: DataDirectory = "",
    full: Full = False,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export to fused ONNX graphs, quantized as asked, in a bundle."""
    from densenet_deploy import pipeline

    chosen = choose_recipe(recipe, model, weights, data_config(data, data_dir))
    if precision:
        chosen = replace(chosen, precisions=precisions(precision))
    if full:
        chosen = replace(chosen, data=whole(chosen.data, full, data_dir))
    if target:
        chosen = replace(chosen, export=replace(chosen.export, target=target, also=()))
    if policy:
        chosen = replace(chosen, quantize=replace(chosen.quantize, policy=policy))
    if batch:
        chosen = checked(lambda: _with_batch(chosen, batch_bounds(batch)))
    bundle, rewrites = pipeline.export_bundle(
        chosen, out or default_out(f"{chosen.name}-{chosen.export.target}"), tracker(quiet)
    )
    manifest = bundle.manifest
    if json:
        show.as_json({"bundle": str(bundle.path), "manifest": manifest, "rewrites": rewrites})
        return
    typer.echo(rewrites)
    for name, file in manifest.models.items():
        typer.echo(f"{name}: {bundle.file(file)} ({manifest.files[file].bytes / 1e6:.2f} MB)")
    if manifest.speed_only:
        typer.echo("speed only: the weights are seeded noise; time it, do not trust its answers")
    typer.echo(f"bundle: {bundle.path}")


def _with_batch(recipe: Recipe, batch: tuple[int, int, int]) -> Recipe:
    """The recipe with other bounds, of its graphs and so of its engines."""
    exporting = replace(recipe.export, batch=batch)
    building = replace(recipe.build, profiles=(batch,))
    return replace(recipe, export=exporting, build=building)


def quantize(
    onnx: Annotated[Path, typer.Argument(help="fp32 ONNX file.")],
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")],
    precision: Annotated[Precision, typer.Option("--precision", help="What to make.")] = "int8",
    target: Annotated[
        Target | None,
        typer.Option("--target", help="What int8 is lowered for (default: what the file was)."),
    ] = None,
    data: Annotated[
        DataName | None, typer.Option("--data", help="Training images that calibrate int8.")
    ] = None,
    data_dir: DataDirectory = "",
    full: Full = False,
    images: Annotated[int, typer.Option("--images", help="How many of them.")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Draws them.")] = 0,
    method: Annotated[
        CalibrationMethod, typer.Option("--method", help="What range of values int8 covers.")
    ] = "mse",
    policy: Annotated[Policy, PolicyOption] = "equalized",
    budget: Annotated[
        float, typer.Option("--budget", help="For auto: classes that may change, in percent.")
    ] = 0.5,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-float", metavar="NAME", help="Convolution or module to leave alone; repeatable."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rewrite an fp32 ONNX graph to fp16, or to int8 for a target."""
    from densenet_deploy import pipeline

    config = checked(
        lambda: QuantizeConfig(
            images=images,
            seed=seed,
            method=method,
            policy=policy,
            budget=budget,
            keep_float=tuple(keep_float or ()),
        )
    )
    source = data_config(data, data_dir)
    source = source and whole(source, full, data_dir)
    track = tracker(quiet)
    written = pipeline.quantize_file(onnx, precision, config, source, out, target, track)
    if json:
        show.as_json({"onnx": out, "precision": precision, "bytes": written})
        return
    typer.echo(f"{precision}: {out} ({written / 1e6:.2f} MB)")
