"""Result types: the numbers, a verdict, a line for people and a table for machines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from densenet_deploy.recipe import Precision, Tolerance

# A percentile is printed only where this many samples lie beyond it.
_TAIL_SAMPLES = 5


@dataclass(frozen=True)
class Parity:
    """One precision on one backend against the reference, on the same images.

    Attributes:
        precision: Of the graph.
        backend: That ran it.
        reference: What it is compared with.
        source: The images.
        images: Their number.
        top1: Accuracy in percent; None where the images have no labels.
        top5: Likewise.
        reference_top1: Accuracy of the reference in percent.
        agreement: Images with the same top-1 class as the reference, in percent.
        max_abs: Largest absolute difference of a logit.
        cosine: Cosine similarity of all logits together.
        nonfinite: Logits that are NaN or infinite.
        tolerance: The contract.
        failures: Every term of the contract that does not hold.
    """

    precision: Precision
    backend: str
    reference: str
    source: str
    images: int
    top1: float | None
    top5: float | None
    reference_top1: float | None
    agreement: float
    max_abs: float
    cosine: float
    nonfinite: int
    tolerance: Tolerance
    failures: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.failures

    def summary(self) -> str:
        """One line for people."""
        labelled = self.top1 is not None and self.top5 is not None
        accuracy = f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %, " if labelled else ""
        verdict = "pass" if self else "FAIL: " + "; ".join(self.failures)
        return (
            f"{self.precision} on {self.backend}: {accuracy}agreement {self.agreement:.2f} %, "
            f"max |d logit| {self.max_abs:.3g}, cosine {self.cosine:.6f}: {verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"passed": bool(self)}


@dataclass(frozen=True)
class Measurement:
    """Latency of one precision on one backend at one batch size.

    Attributes:
        precision: Of the graph.
        backend: That ran it.
        batch: Images per request.
        threads: CPU threads the backend was given.
        load_seconds: From loading the graph to the first answer.
        warmup_seconds: Untimed running before the first sample.
        steady: Whether the median latency had settled when timing began.
        latencies: Every request's host wall time in seconds, in order; nothing is removed.
    """

    precision: Precision
    backend: str
    batch: int
    threads: int
    load_seconds: float
    warmup_seconds: float
    steady: bool
    latencies: tuple[float, ...]

    def percentile(self, percent: float) -> float | None:
        """Nearest-rank latency in seconds; None where the sample is too small to show it."""
        if len(self.latencies) * (100 - percent) / 100 < _TAIL_SAMPLES:
            return None
        return float(np.percentile(self.latencies, percent, method="inverted_cdf"))

    @property
    def mean(self) -> float:
        """Mean latency in seconds."""
        return float(np.mean(self.latencies))

    @property
    def images_per_second(self) -> float:
        """Throughput of back-to-back requests."""
        return self.batch / self.mean

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.precision} on {self.backend}, batch {self.batch}: "
            f"p50 {milliseconds(self.percentile(50))}, p90 {milliseconds(self.percentile(90))}, "
            f"p99 {milliseconds(self.percentile(99))} ms, {self.images_per_second:.0f} images/s "
            f"({len(self.latencies)} requests)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, raw latencies among them."""
        derived = {
            "requests": len(self.latencies),
            "mean_seconds": self.mean,
            "images_per_second": self.images_per_second,
            **{f"p{p}_seconds": self.percentile(p) for p in (50, 90, 99)},
        }
        rounded = [round(latency, 7) for latency in self.latencies]
        return dataclasses.asdict(self) | derived | {"latencies": rounded}


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with three digits, all before the point; `-` if not measured."""
    if seconds is None:
        return "-"
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


@dataclass(frozen=True)
class Skipped:
    """A backend that was not run, and why."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"
