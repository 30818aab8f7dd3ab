"""How what a suite found looks on a terminal: a table, then what it cannot say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from densenet_deploy.cli import show
from densenet_deploy.paired import LEAST_PAIRS
from densenet_deploy.results import milliseconds

if TYPE_CHECKING:
    from densenet_deploy.compete import Competition, Judged, Timed
    from densenet_deploy.embedding import Compared, Embedding, Started
    from densenet_deploy.fidelity import Averaged, Scored
    from densenet_deploy.inference_memory import InferenceMemory, Inferred
    from densenet_deploy.score import Scores
    from densenet_deploy.study import Learned, Study
    from densenet_deploy.weigh import Weighed, Weighing

_LATENCY = (
    *("model", "batch", "candidate", "ms", "over", "ms", "speed-up", "95 % interval"),
    *("floor", "verdict", "goal", "verdict", "cosine"),
)
_ACCURACY = (
    *("target", "backend", "seed", "top-1 %", "drop", "95 % bound", "agreement %"),
    *("KL nats", "SQNR dB", "seconds", "verdict", "goal"),
)
_TRAFFIC = (
    *("model", "graph", "MB in", "MB out", "MB", "kernels", "Int8 convolutions"),
    *("floor", "verdict", "goal", "verdict", "seconds"),
)
_EMBEDDING = (
    *("model", "precision", "part", "C++ ms", "Python ms", "Python / C++", "95 % interval"),
    *("floor", "verdict"),
)
_NETWORKS = ("model", "parameters", "MACs", "graph", "MB")
_STUDY = (
    *("model", "parameters", "MACs", "seeds", "top-1 % on test images", "mean", "std"),
    *("train %", "seconds a run"),
)
_INFERENCE_MEMORY = (
    *("model", "backend", "batch", "batch axis", "live MB", "loaded MB", "peak MB"),
)
_STARTS = (
    *("model", "precision", "C++ start ms", "Python start ms", "C++ peak MiB", "Python peak MiB"),
)


def latency(found: Competition) -> None:
    """Prints a row for each comparison, and what did not settle."""
    title = f"{found.suite.description or found.suite.name}; {found.pairs} pairs, "
    show.table(_LATENCY, map(_compared, found.judged), f"{title}{found.threads} threads")
    if any(side.model for side in found.suite.sides):
        show.table(_NETWORKS, dict.fromkeys(map(_network, found.timed)))
    for side in found.timed:
        if not side.samples.steady:
            typer.echo(f"{side.model}, batch {side.batch}: {side.side.name} did not settle")
    if found.pairs < LEAST_PAIRS:
        typer.echo(f"a trial: fewer than {LEAST_PAIRS} pairs decide nothing")


def _compared(judged: Judged) -> tuple[str, ...]:
    claim, found = judged.claim, judged.speedup
    return (
        judged.candidate.model,
        str(judged.candidate.batch),
        claim.candidate,
        milliseconds(judged.candidate.median_seconds),
        claim.baseline,
        milliseconds(judged.baseline.median_seconds),
        f"{found.median:.2f}",
        f"[{found.low:.2f}, {found.high:.2f}]",
        _limit(claim.floor),
        judged.verdict or "-",
        _limit(claim.goal),
        judged.goal_verdict or "-",
        f"{judged.candidate.cosine:.4f}",
    )


def _network(side: Timed) -> tuple[str, ...]:
    return (
        side.side.model or side.model,
        f"{side.parameters:,}",
        f"{side.macs:,}",
        "-".join(filter(None, (side.side.graph, side.side.lowered_for))),
        f"{side.graph_bytes / 1e6:.2f}",
    )


def accuracy(found: Scores) -> None:
    """Prints a row for each target and seed with a mean for each target, and what fails."""
    images, top1 = found.reference["images"]["images"], found.reference["top1"]
    title = f"{found.suite.description or found.suite.name}; {images} images, fp32 {top1:.2f} %"
    lines = []
    for mean in found.averaged:
        lines += [*map(_scored, mean.scored), _averaged(mean)]
    show.table(_ACCURACY, lines, title)
    for failed in (record.summary() for record in found.records if not record):
        typer.echo(failed)
    if not all(mean.complete for mean in found.averaged):
        typer.echo("a trial: the mean of other seeds than the suite's decides nothing")


def _scored(one: Scored) -> tuple[str, ...]:
    return (
        one.target,
        one.backend,
        str(one.seed),
        f"{one.top1:.2f}",
        f"{one.drop.points:.2f}",
        f"{one.drop.upper:.3f}",
        f"{one.agreement:.2f}",
        f"{one.divergence:.5f}",
        f"{one.sqnr:.1f}",
        f"{one.quantize_seconds + one.predict_seconds:.1f}",
        one.verdict,
        one.goal_verdict or "-",
    )


def _averaged(mean: Averaged) -> tuple[str, ...]:
    return (
        mean.target,
        mean.backend,
        "mean",
        f"{mean.top1:.2f}",
        f"{mean.drop:.3f}",
        "-",
        f"{mean.agreement:.2f}",
        f"{mean.divergence:.5f}",
        f"{mean.sqnr:.1f}",
        "-",
        mean.verdict,
        "-",
    )


def traffic(found: Weighing) -> None:
    """Prints a row for each graph, and what fails."""
    title = f"{found.suite.description or found.suite.name}; {found.builder}"
    show.table(_TRAFFIC, map(_weighed, found.weighed), title)
    for record in found.weighed:
        if not record:
            typer.echo(record.summary())


def _weighed(one: Weighed) -> tuple[str, ...]:
    return (
        one.model,
        one.graph,
        f"{one.bytes_in / 1e6:.2f}",
        f"{one.bytes_out / 1e6:.2f}",
        f"{one.megabytes:.2f}",
        str(len(one.layers.layers)),
        f"{one.int8_convolutions} of {one.convolutions}",
        _limit(one.floor),
        one.verdict or "-",
        _limit(one.goal),
        one.goal_verdict or "-",
        f"{one.make_seconds + one.build_seconds:.1f}",
    )


def embedding(found: Embedding) -> None:
    """Prints a row for each comparison, then the cold starts."""
    title = f"{found.suite.description or found.suite.name}; {found.pairs} pairs, "
    show.table(_EMBEDDING, map(_embedded, found.compared), f"{title}{found.threads} threads")
    typer.echo()
    times = f"cold start for one image, medians of {found.suite.starts}"
    show.table(_STARTS, map(_started, found.started), times)
    if found.pairs < LEAST_PAIRS:
        typer.echo(f"a trial: fewer than {LEAST_PAIRS} pairs decide nothing")


def _embedded(one: Compared) -> tuple[str, ...]:
    record, ratio = one.to_dict(), one.speedup
    return (
        one.claim.model,
        one.claim.precision,
        one.claim.part,
        milliseconds(record["cpp_median_seconds"]),
        milliseconds(record["python_median_seconds"]),
        f"{ratio.median:.2f}",
        f"[{ratio.low:.2f}, {ratio.high:.2f}]",
        _limit(one.claim.floor),
        one.verdict or "-",
    )


def _started(one: Started) -> tuple[str, ...]:
    record = one.to_dict()
    sides = ("cpp", "python")
    return (
        one.model,
        one.precision,
        *(f"{1000 * record[f'{side}_median_seconds']:.0f}" for side in sides),
        *(f"{record[f'{side}_median_peak_bytes'] / 2**20:.0f}" for side in sides),
    )


def study(found: Study) -> None:
    """Prints a row for each recipe."""
    title = found.suite.description or found.suite.name
    show.table(_STUDY, map(_learned, found.learned), f"{title}; last epoch")


def _learned(one: Learned) -> tuple[str, ...]:
    runs = one.runs
    return (
        one.spec.name,
        f"{one.spec.parameters:,}",
        f"{one.spec.macs:,}",
        " ".join(str(run.seed) for run in runs),
        " ".join(f"{run.top1:.2f}" for run in runs),
        f"{one.mean:.2f}",
        "-" if one.std is None else f"{one.std:.2f}",
        " ".join(f"{run.log[-1]['train_top1']:.1f}" for run in runs),
        f"{sum(run.seconds for run in runs) / len(runs):.0f}",
    )


def _limit(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def inference_memory(found: InferenceMemory) -> None:
    """Prints a row for each network, backend, size and kind of batch axis."""
    title = f"{found.suite.description or found.suite.name}; {found.threads} threads"
    show.table(_INFERENCE_MEMORY, map(_inferred, found.inferred), title)


def _inferred(one: Inferred) -> tuple[str, ...]:
    sizes = (one.live_bytes, one.loaded_rss_bytes, one.peak_rss_bytes)
    return (
        one.model,
        one.backend,
        str(one.batch),
        "fixed" if one.fixed else "any",
        *("unknown" if size is None else f"{size / 1e6:.1f}" for size in sizes),
    )
