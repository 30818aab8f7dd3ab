"""How close int8 graphs come to fp32: of one target with one seed, and the mean of the seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.paired import AccuracyDrop, Verdict
from densenet_deploy.recipe import Target
from densenet_deploy.suite import AccuracyContract, SideBackend

Array = NDArray[np.float32]

RUNS_ON: dict[Target, SideBackend] = {
    "tensorrt": "onnxruntime",
    "tensorrt-rtx": "onnxruntime",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}
_SLACK = 1e-9  # of sums that are exact in decimal only


@dataclass(frozen=True)
class Scored:
    """One target's int8 graph, calibrated with one seed; its truth value is that it passes.

    Attributes:
        target: What the graph is made for.
        seed: Drew its calibration images.
        top1: Accuracy in percent.
        drop: Of that, against the reference.
        agreement: Images with the same top-1 class as the reference, in percent.
        divergence: Mean KL(reference || int8) of the class probabilities, in nats.
        sqnr: Signal to quantization noise of all logits, in dB.
        nonfinite: Logits that are NaN or infinite.
        graph_sha256: Of the ONNX file.
        graph_bytes: Its size.
        quantize_seconds: Calibration and rewriting.
        predict_seconds: Answering for all images.
        contract: What it must reach.
    """

    target: Target
    seed: int
    top1: float
    drop: AccuracyDrop
    agreement: float
    divergence: float
    sqnr: float
    nonfinite: int
    graph_sha256: str
    graph_bytes: int
    quantize_seconds: float
    predict_seconds: float
    contract: AccuracyContract

    @property
    def backend(self) -> SideBackend:
        """What ran it."""
        return RUNS_ON[self.target]

    @property
    def failures(self) -> tuple[str, ...]:
        """Every term of the contract that does not hold."""
        contract, failures = self.contract, []
        if self.nonfinite:
            failures.append(f"{self.nonfinite} logits are NaN or infinite")
        if not self.drop.upper <= contract.upper_drop + _SLACK:
            upper = f"{self.drop.upper:.3f} points"
            failures.append(f"the drop may be {upper}, allowed {contract.upper_drop}")
        if not self.agreement >= contract.agreement - _SLACK:
            failures.append(f"agreement {self.agreement:.2f} %, required {contract.agreement} %")
        return tuple(failures)

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def verdict(self) -> Verdict:
        """On the contract's bound and agreement."""
        return "pass" if self else "fail"

    @property
    def goal_verdict(self) -> Verdict | None:
        """On the agreement that should be reached; None where there is none."""
        goal = self.contract.agreement_goal
        if goal is None:
            return None
        return "pass" if self.agreement >= goal - _SLACK else "fail"

    def summary(self) -> str:
        """One line for people."""
        verdict = "pass" if self else "FAIL: " + "; ".join(self.failures)
        return (
            f"{self.target}, seed {self.seed}: top-1 {self.top1:.2f} %, {self.drop.summary()}, "
            f"agreement {self.agreement:.2f} %, SQNR {self.sqnr:.1f} dB: {verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; null for what is not finite."""
        return {
            "target": self.target,
            "backend": self.backend,
            "seed": self.seed,
            "top1": self.top1,
            "drop": self.drop.to_dict(),
            "agreement": self.agreement,
            "kl_divergence": _finite(self.divergence),
            "logit_sqnr_db": _finite(self.sqnr),
            "nonfinite": self.nonfinite,
            "graph_sha256": self.graph_sha256,
            "graph_bytes": self.graph_bytes,
            "quantize_seconds": round(self.quantize_seconds, 3),
            "predict_seconds": round(self.predict_seconds, 3),
            "verdict": self.verdict,
            "failures": list(self.failures),
            "goal_verdict": self.goal_verdict,
        }


@dataclass(frozen=True)
class Averaged:
    """The mean over the seeds of one target; its truth value is that it does not fail.

    Attributes:
        target: What the graphs are made for.
        scored: One for each seed.
        complete: Whether these are the suite's seeds; others decide nothing.
        contract: What the mean must reach.
    """

    target: Target
    scored: tuple[Scored, ...]
    complete: bool
    contract: AccuracyContract

    @property
    def backend(self) -> SideBackend:
        """What ran them."""
        return RUNS_ON[self.target]

    @property
    def drop(self) -> float:
        """In percentage points."""
        return fmean(each.drop.points for each in self.scored)

    @property
    def top1(self) -> float:
        """In percent."""
        return fmean(each.top1 for each in self.scored)

    @property
    def agreement(self) -> float:
        """In percent."""
        return fmean(each.agreement for each in self.scored)

    @property
    def divergence(self) -> float:
        """In nats."""
        return fmean(each.divergence for each in self.scored)

    @property
    def sqnr(self) -> float:
        """In dB."""
        return fmean(each.sqnr for each in self.scored)

    @property
    def verdict(self) -> Verdict:
        """On the contract's mean drop."""
        if not self.complete:
            return "not decided"
        return "pass" if self.drop <= self.contract.mean_drop + _SLACK else "fail"

    def __bool__(self) -> bool:
        return self.verdict != "fail"

    def summary(self) -> str:
        """One line for people."""
        allowed = f"allowed {self.contract.mean_drop}"
        return f"{self.target}, mean: drop {self.drop:.3f} points, {allowed}: {self.verdict}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "target": self.target,
            "seeds": [each.seed for each in self.scored],
            "top1": self.top1,
            "drop_points": self.drop,
            "agreement": self.agreement,
            "kl_divergence": _finite(self.divergence),
            "logit_sqnr_db": _finite(self.sqnr),
            "verdict": self.verdict,
        }


def signal_to_noise(reference: Array, candidate: Array) -> float:
    """10 log10 of the energy of `reference` over that of the difference, in dB."""
    signal = reference.astype(np.float64)
    noise = float(np.square(signal - candidate).sum())
    energy = float(np.square(signal).sum())
    return 10 * math.log10(energy / noise) if noise and energy else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
