"""Commands that use a bundle: verify, bench, report, predict."""

from __future__ import annotations

import dataclasses
import json as jsonlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer

from densenet_deploy import environment
from densenet_deploy import report as reporting
from densenet_deploy import verify as verifying
from densenet_deploy.bundle import MANIFEST, Bundle, open_bundle
from densenet_deploy.cli import show
from densenet_deploy.cli.backends import Gpu, Pythons, Rebuild, select
from densenet_deploy.cli.options import (
    DataDirectory,
    Full,
    Json,
    Precisions,
    Quiet,
    checked,
    integers,
    precisions,
    tracker,
    whole,
)
from densenet_deploy.consistency import check_bundle
from densenet_deploy.data import ASSETS
from densenet_deploy.errors import BackendError, DataError
from densenet_deploy.files import replacing_file
from densenet_deploy.recipe import Precision, parse_recipe
from densenet_deploy.results import Skipped
from densenet_deploy.runtime import DEPLOYED, runs
from densenet_deploy.runtime.fallback import check_fallback, open_with_fallback

SHIPPED = ASSETS / "bundle"
BundleArgument = Annotated[
    Path | None, typer.Argument(help="Bundle directory (default: the one that is shipped).")
]
Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Only this one, see `doctor`; repeatable (default: every one that can run here).",
    ),
]
Fallback = Annotated[
    str,
    typer.Option(
        "--fallback",
        metavar="WAY,...",
        help="Where --backend cannot run: `rebuild` (compile its engine here) or other backends, "
        "tried in this order.",
    ),
]


def verify(
    bundle: BundleArgument = None,
    backend: Backends = None,
    precision: Precisions = None,
    fallback: Fallback = "",
    full: Full = False,
    data_dir: DataDirectory = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare every precision and backend with PyTorch fp32, and with itself; exit 1 on failure."""
    from densenet_deploy import data

    opened = open_bundle(bundle or SHIPPED)
    recipe = parse_recipe(opened.manifest.recipe, MANIFEST)
    images = data.load(whole(recipe.data, full, data_dir), "test", opened.manifest.preprocessing)
    wanted, ways, track = _precisions(opened, precision), _fallback(fallback), tracker(quiet)
    if backend and ways:  # one that cannot run makes way, and says so
        chosen, skipped = list(dict.fromkeys(backend)), []
    else:
        selection = select(opened, backend or (), wanted, (), gpu=False, rebuild=False)
        chosen = [name for name in selection.backends if backend or name in DEPLOYED]
        skipped = selection.skipped
    opener = partial(open_with_fallback, fallback=ways, say=cache(_say), track=track)
    parity = verifying.verify(opened, images, recipe.verify, chosen, wanted, track, opener)
    consistency = check_bundle(opened, images, chosen, wanted, track, opener)
    if json:
        show.as_json(
            {
                "parity": [record.to_dict() for record in parity],
                "consistency": [record.to_dict() for record in consistency],
                "skipped": skipped,
            }
        )
    else:
        typer.echo(f"{images.source}, compared with {parity[0].reference if parity else '-'}")
        for line in [*(p.summary() for p in parity), *(c.summary() for c in consistency)]:
            typer.echo(line)
        for names, reason in reporting.by_reason(dataclasses.asdict(item) for item in skipped):
            typer.echo(f"skipped {names}: {reason}")
    if not (all(parity) and all(consistency)):
        raise typer.Exit(1)


def bench(
    bundle: BundleArgument = None,
    backend: Backends = None,
    gpu: Gpu = False,
    python: Pythons = None,
    rebuild: Rebuild = False,
    precision: Precisions = None,
    batch: Annotated[
        str, typer.Option("--batch", metavar="N,...", help="Batch sizes, such as 1,8.")
    ] = "",
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Timed seconds of each row.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads; 0 for all cores.")] = 0,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the records, raw latencies included; {device} in it is this machine's.",
        ),
    ] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure latency and throughput of a bundle on every backend available here."""
    from densenet_deploy import bench as benching

    opened = open_bundle(bundle or SHIPPED)
    config = parse_recipe(opened.manifest.recipe, MANIFEST).bench
    changes: dict[str, Any] = {"threads": threads}
    if batch:
        changes["batch_sizes"] = integers(batch, "--batch")
    if seconds is not None:
        changes["seconds"] = seconds
    config = checked(lambda: dataclasses.replace(config, **changes))
    wanted = _precisions(opened, precision)
    selection = select(opened, backend or (), wanted, python or (), gpu, rebuild)
    skipped = [*selection.skipped, *_without(selection.backends, wanted)]
    refused: list[Skipped] = []
    with _records_file(out) as write:
        measured = benching.bench(
            opened,
            selection.backends,
            wanted,
            config,
            tracker(quiet),
            selection.pythons,
            None if backend else refused.append,
            rebuild,
        )
        if refused and not measured:
            raise BackendError.collect("nothing could be measured", [str(item) for item in refused])
        records = {
            "bundle": opened.identity() | {"manifest_sha256": opened.digest},
            "parity": _recorded(opened).get("parity", []),
            "measurements": [item.to_dict() for item in measured],
            "skipped": [dataclasses.asdict(item) for item in (*skipped, *refused)],
            "environment": environment.describe(),
            "environments": selection.to_dict(),
        }
        write(records)
    if json:
        show.as_json(records)
        return
    show.results(records, opened.manifest.description)
    if records["parity"]:
        first = records["parity"][0]
        typer.echo(f"accuracy as recorded in the bundle: {first['source']}")


@contextmanager
def _records_file(out: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes records; opened before they are measured, so that no measurement is lost to a name."""
    if not out:
        yield lambda records: None
        return
    with replacing_file(Path(out.replace("{device}", environment.device_slug()))) as temporary:
        temporary.touch()
        yield lambda records: _write(records, temporary)


def _write(records: dict[str, Any], path: Path) -> None:
    path.write_text(jsonlib.dumps(records) + "\n", encoding="utf-8")


def _without(backends: list[str], wanted: Sequence[Precision]) -> list[Skipped]:
    """Backends that have none of the precisions."""
    return [
        Skipped(name, "it is the fp32 reference" if name == "pytorch" else "it runs no int8")
        for name in backends
        if not any(runs(name, item) for item in wanted)
    ]


def report(
    source: Annotated[Path, typer.Argument(help="Bundle directory, or records from bench --out.")],
    out: Annotated[Path, typer.Option("--out", help="Directory for report.md, report.png.")] = (
        Path("work/report")
    ),
    marker: Annotated[
        str, typer.Option("--marker", help="Which <!-- MARKER:begin/end --> of --into to fill.")
    ] = "results",
    into: Annotated[
        Path | None,
        typer.Option("--into", help="Markdown file to put the table into."),
    ] = None,
) -> None:
    """Render Markdown and a picture, latency against accuracy, from a bundle or records."""
    records, title = _records(source)
    if into:
        if not into.is_file():
            raise DataError(f"{into} does not exist", expected="a Markdown file")
        body = reporting.markdown(records)
        text = reporting.insert(into.read_text(encoding="utf-8"), marker, body)
        with replacing_file(into) as temporary:
            temporary.write_text(text, encoding="utf-8")
        typer.echo(f"table: {into}")
        return
    written = reporting.write(records, title, out)
    typer.echo(f"report: {', '.join(map(str, written))}")


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, or `shipped`.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="What runs it, see `doctor`.")
    ] = "onnxruntime",
    precision: Annotated[
        Precision, typer.Option("--precision", help="Of the bundle's graphs, which.")
    ] = "fp32",
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Classes to print.")] = 3,
    fallback: Fallback = "",
    json: Json = False,
) -> None:
    """Classify image files: labels and probabilities."""
    from densenet_deploy.classifier import classify

    opened = open_bundle(SHIPPED if str(bundle) == "shipped" else bundle)
    found = classify(opened, images, backend, precision, top, _fallback(fallback), _say)
    if json:
        predictions = [
            {"image": str(path), "classes": classes}
            for path, classes in zip(images, found, strict=True)
        ]
        show.as_json({"predictions": predictions, "speed_only": opened.manifest.speed_only})
        return
    for path, classes in zip(images, found, strict=True):
        listed = ", ".join(f"{c.label} {100 * c.probability:.1f} %" for c in classes)
        typer.echo(f"{path}: {listed}")
    if opened.manifest.speed_only:
        typer.echo("speed only: the weights are seeded noise, so these answers mean nothing")


def _fallback(text: str) -> tuple[str, ...]:
    """`rebuild,onnxruntime` as ways that exist."""
    ways = tuple(filter(None, text.split(",")))
    check_fallback(ways)
    return ways


def _say(message: str) -> None:
    typer.echo(message.rstrip(), err=True)


def _precisions(bundle: Bundle, asked: list[str] | None) -> tuple[Precision, ...]:
    chosen = precisions(asked) or bundle.precisions
    for precision in chosen:
        bundle.model(precision)
    return chosen


def _recorded(bundle: Bundle) -> dict[str, Any]:
    name = bundle.manifest.records.get("run")
    return {} if name is None else reporting.read_records(bundle.file(name))


def _records(source: Path) -> tuple[dict[str, Any], str]:
    if not source.is_dir():
        records = reporting.read_records(source)
        return records, records.get("bundle", {}).get("description") or source.stem
    bundle = open_bundle(source)
    if not (records := _recorded(bundle)):
        raise DataError(
            f"{source} has no records", remedy="make the bundle with: densenet-deploy run"
        )
    return records, bundle.manifest.description
