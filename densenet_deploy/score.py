"""Runs an accuracy suite: int8 graphs of each target and calibration seed against fp32.

Every graph is asked about all test images, which choose nothing: what it was calibrated on are
training images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densenet_deploy import environment
from densenet_deploy.choose import find_recipe
from densenet_deploy.data import ImageSet, check_labels
from densenet_deploy.errors import BackendError
from densenet_deploy.fidelity import RUNS_ON, Averaged, Scored, signal_to_noise
from densenet_deploy.paired import accuracy_drop
from densenet_deploy.progress import Track, once, silent
from densenet_deploy.recipe import Recipe, Target
from densenet_deploy.runtime import open_graph, why_unavailable
from densenet_deploy.runtime.runner import Array
from densenet_deploy.sides import describe, export_plain, make_graph
from densenet_deploy.source import Source, prepare
from densenet_deploy.suite import AccuracySuite, SideBackend
from densenet_deploy.verify import accuracy, kl_divergence

SCHEMA_VERSION = 1
METHOD = (
    "Each seed draws its calibration images from the training images; the rest of the recipe's "
    "quantization is the same for all. The reference is the plain fp32 export on ONNX Runtime. "
    "Graphs for TensorRT and TensorRT-RTX run on ONNX Runtime's CPU, which computes their Q/DQ and "
    "half precision as the graph says. A drop is that of top-1 accuracy in percentage points; its "
    "bound is the one-sided 95 % one of Tango's paired score interval. Agreement is of top-1 "
    "classes; the divergence is the mean of KL(reference || int8) in nats; the SQNR is that of all "
    "logits together."
)
_REFERENCE: SideBackend = "onnxruntime"
_BATCH = 100


@dataclass(frozen=True)
class Scores:
    """Everything one run of a suite found; its truth value is that nothing fails.

    Attributes:
        suite: What was run.
        model: What the records say of it.
        reference: Graph hash, backend and top-1 accuracy of the fp32 graph, and the test images.
        calibrations: The images of each seed.
        scored: Every target and seed.
        averaged: Every target.
    """

    suite: AccuracySuite
    model: dict[str, Any]
    reference: dict[str, Any]
    calibrations: tuple[dict[str, Any], ...]
    scored: tuple[Scored, ...]
    averaged: tuple[Averaged, ...]

    @property
    def records(self) -> tuple[Scored | Averaged, ...]:
        """Every seed of a target, then its mean, target by target."""
        records: list[Scored | Averaged] = []
        for mean in self.averaged:
            records += [*mean.scored, mean]
        return tuple(records)

    def __bool__(self) -> bool:
        return all(self.records)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite.to_dict(),
            "passed": bool(self),
            "method": METHOD,
            "environment": environment.describe(),
            "model": self.model,
            "reference": self.reference,
            "calibrations": list(self.calibrations),
            "results": [record.to_dict() for record in self.scored],
            "means": [record.to_dict() for record in self.averaged],
        }


def score(
    suite: AccuracySuite,
    targets: Sequence[Target] = (),
    seeds: Sequence[int] = (),
    track: Track = silent,
) -> Scores:
    """Runs a suite: one fp32 reference, then every target with every seed.

    Args:
        suite: What to ask, and the contract.
        targets: Instead of the suite's.
        seeds: Likewise; their mean decides something only if they are the suite's.
        track: Progress reporter.

    Raises:
        BackendError: A target's graphs cannot run here.
        DataError: The images are missing or have no labels, or are too few to calibrate.
        DeployError: Whatever another stage found wrong.
    """
    targets = tuple(dict.fromkeys(targets)) or suite.targets
    seeds, threads = tuple(dict.fromkeys(seeds)) or suite.seeds, suite.threads
    for backend in dict.fromkeys([_REFERENCE, *(RUNS_ON[target] for target in targets)]):
        if reason := why_unavailable(backend):
            raise BackendError(f"{suite.name}: {backend} cannot run here: {reason}")
    recipe = replace(find_recipe(suite.recipe), data=suite.data)
    recipes = {seed: _with_seed(recipe, seed) for seed in seeds}
    sources = {seed: prepare(recipes[seed]) for seed in seeds}
    source = sources[seeds[0]]  # but for the calibration images they are alike
    check_labels(source.test, source.model.spec.classes)
    plain = once(track, f"Exporting {recipe.name}", lambda: export_plain(source))
    logits = once(
        track, f"Asking fp32 {recipe.name}", lambda: _ask(plain, _REFERENCE, source, threads)
    )
    jobs = [(target, seed) for target in targets for seed in seeds]
    scored = tuple(
        _score(suite, target, recipes[seed], sources[seed], plain, logits)
        for target, seed in track(jobs, f"Quantizing and asking {recipe.name}")
    )
    complete = set(seeds) == set(suite.seeds)
    groups = {target: tuple(each for each in scored if each.target == target) for target in targets}
    return Scores(
        suite=suite,
        model={
            **describe(suite.recipe, recipe, source),
            "quantize": dataclasses.asdict(recipe.quantize),
        },
        reference={
            "graph": "plain",
            "backend": _REFERENCE,
            "graph_sha256": hashlib.sha256(plain).hexdigest(),
            "top1": accuracy(logits, source.test.labels, 1),
            "images": _images_record(source.test),
        },
        calibrations=tuple(
            {"seed": seed, **_images_record(each.calibration), "rows": list(each.rows)}
            for seed, each in sources.items()
        ),
        scored=scored,
        averaged=tuple(Averaged(t, group, complete, suite.contract) for t, group in groups.items()),
    )


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return replace(recipe, quantize=replace(recipe.quantize, seed=seed))


def _images_record(images: ImageSet) -> dict[str, Any]:
    digest = hashlib.sha256(images.pixels.tobytes()).hexdigest()
    return {"source": images.source, "images": len(images), "pixels_sha256": digest}


def _ask(graph: bytes, backend: SideBackend, source: Source, threads: int) -> Array:
    """Logits (N, classes) of all test images."""
    pixels, normalise = source.test.pixels, source.preprocessing.normalise
    with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(graph)
        infer = open_graph(path, backend, threads)
        starts = range(0, len(pixels), _BATCH)
        parts = [infer(normalise(pixels[start : start + _BATCH])) for start in starts]
    return np.concatenate(parts).astype(np.float32)


def _score(
    suite: AccuracySuite,
    target: Target,
    recipe: Recipe,
    source: Source,
    plain: bytes,
    reference: Array,
) -> Scored:
    began = time.perf_counter()
    calibration = source.preprocessing.normalise(source.calibration.pixels)
    graph = make_graph("int8", target, plain, calibration, recipe.quantize)
    quantized = time.perf_counter()
    logits = _ask(graph, RUNS_ON[target], source, suite.threads)
    answered = time.perf_counter()
    labels, classes, expected = source.test.labels, logits.argmax(1), reference.argmax(1)
    return Scored(
        target=target,
        seed=recipe.quantize.seed,
        top1=accuracy(logits, labels, 1),
        drop=accuracy_drop(expected == labels, classes == labels),
        agreement=100 * float((classes == expected).mean()),
        divergence=kl_divergence(reference, logits),
        sqnr=signal_to_noise(reference, logits),
        nonfinite=int((~np.isfinite(logits)).sum()),
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        graph_bytes=len(graph),
        quantize_seconds=quantized - began,
        predict_seconds=answered - quantized,
        contract=suite.contract,
    )
