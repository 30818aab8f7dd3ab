"""Accuracy parity: every precision and backend against PyTorch fp32 on the same real images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.bundle import Bundle
from densenet_deploy.data import ImageSet
from densenet_deploy.errors import BackendError
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import Precision, Tolerance, VerifyConfig
from densenet_deploy.results import Parity
from densenet_deploy.runtime import DEFAULT_RUN, open_runner, runs, why_unavailable
from densenet_deploy.runtime.fallback import Opener
from densenet_deploy.runtime.runner import Array, Runner


def verify(
    bundle: Bundle,
    images: ImageSet,
    config: VerifyConfig,
    backends: Sequence[str],
    precisions: Sequence[Precision] = (),
    track: Track = silent,
    opener: Opener = open_runner,
) -> list[Parity]:
    """Compares what `backends` answer with the reference's answers.

    The reference is PyTorch fp32; where torch is not installed, the fp32 graph on the first
    backend, and the records say so.

    Args:
        bundle: What to verify.
        images: Test images.
        config: The acceptance contract.
        backends: Available backends.
        precisions: Some of the bundle's; all by default.
        track: Progress reporter.
        opener: Opens the backends' runners, as `open_runner` does; the records name what ran.

    Raises:
        BackendError: No backend but the reference was given.
    """
    reference_backend = "pytorch" if not why_unavailable("pytorch") else backends[0]
    pairs = [
        (backend, precision)
        for backend in backends
        for precision in precisions or bundle.precisions
        if runs(backend, precision) and (backend, precision) != (reference_backend, "fp32")
    ]
    if not pairs:
        raise BackendError(
            f"nothing to compare on {', '.join(backends)}",
            expected="a backend besides the reference",
        )
    with open_runner(bundle, reference_backend, "fp32") as runner:
        reference = predict(runner, images.pixels, track)
    results = []
    for backend, precision in pairs:
        with opener(bundle, backend, precision, 0, DEFAULT_RUN) as runner:
            candidate = predict(runner, images.pixels, track)
            ran = runner.backend
        results.append(
            compare(
                reference,
                candidate,
                images,
                config.tolerances[precision],
                precision,
                ran,
                f"{reference_backend} fp32",
            )
        )
    return results


def predict(runner: Runner, pixels: NDArray[np.uint8], track: Track = silent) -> Array:
    """Logits (N, classes) of pixels (N, H, W, C), in batches the bundle allows."""
    low, _, high = runner.manifest.batch
    size = max(low, min(high, 64))
    starts = range(0, len(pixels), size)
    title = f"Running {runner.backend} {runner.precision}"
    parts = []
    for start in track(starts, title, len(starts)):
        batch = pixels[start : start + size]
        count = len(batch)
        if count < low:  # a last batch below the least allowed size is padded and cut
            batch = np.concatenate([batch, np.repeat(batch[-1:], low - count, axis=0)])
        parts.append(runner.logits(runner.manifest.preprocessing.normalise(batch))[:count])
    return np.concatenate(parts)


def compare(
    reference: Array,
    candidate: Array,
    images: ImageSet,
    tolerance: Tolerance,
    precision: Precision,
    backend: str,
    reference_name: str,
) -> Parity:
    """Parity of two sets of logits (N, classes) of the same images."""
    labelled = len(images.labels) > 0 and int(images.labels.min()) >= 0
    top1 = accuracy(candidate, images.labels, 1) if labelled else None
    reference_top1 = accuracy(reference, images.labels, 1) if labelled else None
    agreement = 100 * float((candidate.argmax(1) == reference.argmax(1)).mean())
    max_abs = float(np.abs(candidate - reference).max())
    cosine = cosine_similarity(reference, candidate)
    nonfinite = int((~np.isfinite(candidate)).sum())

    failures = []
    if nonfinite:
        failures.append(f"{nonfinite} logits are NaN or infinite")
    if top1 is not None and reference_top1 is not None:
        drop = reference_top1 - top1
        if not drop <= tolerance.top1_drop + 1e-9:
            failures.append(f"top-1 drops {drop:.2f} points, allowed {tolerance.top1_drop}")
    if not agreement >= tolerance.agreement - 1e-9:
        failures.append(f"agreement {agreement:.2f} %, required {tolerance.agreement} %")
    if tolerance.max_abs and not max_abs <= tolerance.max_abs:
        failures.append(f"max |d logit| {max_abs:.3g}, allowed {tolerance.max_abs}")
    if not cosine >= tolerance.cosine:
        failures.append(f"cosine {cosine:.6f}, required {tolerance.cosine}")
    return Parity(
        precision=precision,
        backend=backend,
        reference=reference_name,
        source=images.source,
        images=len(reference),
        top1=top1,
        top5=accuracy(candidate, images.labels, 5) if labelled else None,
        reference_top1=reference_top1,
        agreement=agreement,
        max_abs=max_abs,
        cosine=cosine,
        nonfinite=nonfinite,
        tolerance=tolerance,
        failures=tuple(failures),
    )


def accuracy(logits: Array, labels: NDArray[np.int64], k: int) -> float:
    """Share of images whose label is among the k largest logits, in percent."""
    k = min(k, logits.shape[1])
    best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    return 100 * float((best == labels[:, None]).any(axis=1).mean())


def cosine_similarity(a: Array, b: Array) -> float:
    """Of all values together, between -1 and 1."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm else float(np.array_equal(x, y))


def kl_divergence(reference: Array, candidate: Array) -> float:
    """Mean over images of KL(softmax(reference) || softmax(candidate)), in nats."""
    p, q = _log_softmax(reference), _log_softmax(candidate)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
