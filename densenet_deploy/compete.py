"""Runs a suite: makes the graphs, times every side against the others, judges each claim."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densenet_deploy import environment, interleaved
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import BackendError
from densenet_deploy.files import sha256
from densenet_deploy.interleaved import Entrant, Samples, interleave
from densenet_deploy.paired import Ratio, Verdict, block_size, ratio
from densenet_deploy.progress import Track, silent
from densenet_deploy.rivals import Lot, Network, find_recipes, lot_of, make_networks
from densenet_deploy.runtime import why_unavailable
from densenet_deploy.runtime.runner import Array
from densenet_deploy.source import Source
from densenet_deploy.suite import Comparison, LatencySuite, Side
from densenet_deploy.verify import cosine_similarity

SCHEMA_VERSION = 2
_IMAGES = 16


@dataclass(frozen=True)
class Timed:
    """One side at one model and batch size.

    Attributes:
        model: As the suite names it.
        batch: Images per request.
        side: What was timed, of `model` or of a rival.
        parameters: Of the network that was timed.
        macs: Multiply-accumulates of that network for one image.
        graph_sha256: Of the ONNX file.
        graph_bytes: Its size.
        cosine: Similarity of its logits to PyTorch's in fp32, on the images that were timed.
        samples: What it gave.
    """

    model: str
    batch: int
    side: Side
    parameters: int
    macs: int
    graph_sha256: str
    graph_bytes: int
    cosine: float
    samples: Samples

    @property
    def median_seconds(self) -> float:
        """Median of all samples."""
        return float(np.median(self.samples.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, raw samples among them."""
        return {
            "model": self.model,
            "batch": self.batch,
            "side": self.side.name,
            "network": self.side.model or self.model,
            "parameters": self.parameters,
            "macs": self.macs,
            "graph": self.side.graph,
            "target": self.side.lowered_for,
            "backend": self.side.backend,
            "graph_sha256": self.graph_sha256,
            "graph_bytes": self.graph_bytes,
            "cosine": self.cosine,
            "load_seconds": self.samples.load_seconds,
            "steady": self.samples.steady,
            "requests_per_sample": self.samples.requests,
            "median_seconds": self.median_seconds,
            "seconds": [round(value, 7) for value in self.samples.seconds],
        }


@dataclass(frozen=True)
class Judged:
    """One claim at one model and batch size; its truth value is that its floor does not fail.

    Attributes:
        claim: What was to be shown.
        candidate: Its side, as timed.
        baseline: Likewise.
        speedup: What was found.
    """

    claim: Comparison
    candidate: Timed
    baseline: Timed
    speedup: Ratio

    @property
    def verdict(self) -> Verdict | None:
        """On the floor; None where there is none."""
        return None if self.claim.floor is None else self.speedup.verdict(self.claim.floor)

    @property
    def goal_verdict(self) -> Verdict | None:
        """On the goal; None where there is none."""
        return None if self.claim.goal is None else self.speedup.verdict(self.claim.goal)

    def __bool__(self) -> bool:
        return self.verdict != "fail"

    def summary(self) -> str:
        """One line for people."""
        verdict = "" if self.verdict is None else f", floor {self.claim.floor}: {self.verdict}"
        return (
            f"{self.candidate.model}, batch {self.candidate.batch}: {self.claim.candidate} over "
            f"{self.claim.baseline} {self.speedup.summary()}{verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.candidate.model,
            "batch": self.candidate.batch,
            "candidate": self.claim.candidate,
            "baseline": self.claim.baseline,
            "candidate_seconds": self.candidate.median_seconds,
            "baseline_seconds": self.baseline.median_seconds,
            "speedup": self.speedup.to_dict(),
            "floor": self.claim.floor,
            "verdict": self.verdict,
            "goal": self.claim.goal,
            "goal_verdict": self.goal_verdict,
        }


@dataclass(frozen=True)
class Competition:
    """Everything one run of a suite found; its truth value is that no floor fails.

    Attributes:
        suite: What was run.
        threads: CPU threads of each side.
        pairs: Rounds.
        block: Rounds after which all sides are started anew.
        models: Name, description, recipe digest, counts and whether the weights are seeded, of each
            model.
        timed: Every side.
        judged: Every claim.
    """

    suite: LatencySuite
    threads: int
    pairs: int
    block: int
    models: tuple[dict[str, Any], ...]
    timed: tuple[Timed, ...]
    judged: tuple[Judged, ...]

    def __bool__(self) -> bool:
        return all(self.judged)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite.to_dict(),
            "threads": self.threads,
            "pairs": self.pairs,
            "block": self.block,
            "passed": bool(self),
            "method": interleaved.METHOD,
            "environment": environment.describe(),
            "models": list(self.models),
            "comparisons": [record.to_dict() for record in self.judged],
            "sides": [record.to_dict() for record in self.timed],
        }


def compete(
    suite: LatencySuite,
    models: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    pairs: int = 0,
    track: Track = silent,
) -> Competition:
    """Runs a suite, one model and batch size after another.

    Args:
        suite: What to time, and the claims.
        models: Instead of the suite's; for others than its own it claims nothing.
        batch_sizes: Likewise.
        pairs: Rounds instead of the suite's; fewer than 20 decide nothing.
        track: Progress reporter.

    Raises:
        BackendError: A side cannot run here, or dies.
        DeployError: Whatever a stage found wrong.
    """
    for side in suite.sides:
        if reason := why_unavailable(side.backend):
            raise BackendError(f"side {side.name}: {side.backend} cannot run here: {reason}")
    chosen, sizes = models or suite.models, batch_sizes or suite.batch_sizes
    lots = [lot_of(suite, name, batch) for name in chosen for batch in sizes]
    recipes = find_recipes(lots)  # all, before any runs
    threads, rounds = suite.threads or usable_cores(), pairs or suite.pairs
    block = block_size(rounds, suite.block)
    records: dict[str, dict[str, Any]] = {}
    timed: list[Timed] = []
    judged: list[Judged] = []
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
            ours = [lot for lot in lots if lot.model == name]
            networks = make_networks(ours, recipes, Path(folder), track)
            records |= {key: network.record for key, network in networks.items()}
            for lot in ours:
                sides = _time(lot, networks, threads, rounds, block, track)
                timed += sides.values()
                judged += [_judge(claim, sides, block) for claim in lot.claims]
    return Competition(
        suite, threads, rounds, block, (*records.values(),), tuple(timed), tuple(judged)
    )


def _time(
    lot: Lot, networks: dict[str, Network], threads: int, rounds: int, block: int, track: Track
) -> dict[str, Timed]:
    """Every side of a lot as timed, by its name."""
    source = networks[lot.model].source
    images = source.preprocessing.normalise(source.test.pixels[:_IMAGES])
    references = {name: _reference(networks[name].source, images) for name in lot.networks}
    title = f"{lot.model}, batch {lot.batch}"
    of = [networks[lot.network_of(side)] for side in lot.sides]
    graphs = [
        network.graphs[side.graph, side.lowered_for]
        for side, network in zip(lot.sides, of, strict=True)
    ]
    entrants = [
        Entrant(side.name, graph, side.backend)
        for side, graph in zip(lot.sides, graphs, strict=True)
    ]
    samples = interleave(entrants, images, lot.batch, threads, rounds, block, track, title)
    return {
        side.name: Timed(
            model=lot.model,
            batch=lot.batch,
            side=side,
            parameters=network.record["parameters"],
            macs=network.record["macs"],
            graph_sha256=sha256(graph),
            graph_bytes=graph.stat().st_size,
            cosine=cosine_similarity(references[lot.network_of(side)], given.logits),
            samples=given,
        )
        for side, network, graph, given in zip(lot.sides, of, graphs, samples, strict=True)
    }


@torch.inference_mode()
def _reference(source: Source, images: Array) -> Array:
    logits: Array = source.model(torch.from_numpy(images)).numpy()
    return logits


def _judge(claim: Comparison, sides: dict[str, Timed], block: int) -> Judged:
    candidate, baseline = sides[claim.candidate], sides[claim.baseline]
    speedup = ratio(baseline.samples.seconds, candidate.samples.seconds, block)
    return Judged(claim, candidate, baseline, speedup)
