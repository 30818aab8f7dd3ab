"""Chooses how to quantize: measured policies, sensitivity, mixed precision, the Pareto front.

Every candidate is compared with the fp32 graph on training images that did not calibrate it; labels
and test images are not looked at. Its cost is what the target pays: latency, interleaved with the
fp32 graph's, on a CPU runtime; for TensorRT, which may have no GPU here, the activation bytes that
the kernels of a TensorRT-RTX engine read and write.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from densenet_deploy.engine.build import compile_layers
from densenet_deploy.errors import CheckFailedError, DataError
from densenet_deploy.export import to_bytes
from densenet_deploy.interleaved import Entrant, interleave
from densenet_deploy.paired import LEAST_PAIRS, Ratio, ratio
from densenet_deploy.progress import Track, silent
from densenet_deploy.quantize import Calibrated, calibrate
from densenet_deploy.recipe import CPU_TARGETS, ConcatPolicy, QuantizeConfig, Target
from densenet_deploy.rewrite import RULES, rewrite
from densenet_deploy.runtime import open_graph
from densenet_deploy.verify import kl_divergence

Images = NDArray[np.float32]

_EQUAL = 1.01  # costs so close together are decided by the divergence
_BATCH = 64
_SENSITIVITY_IMAGES = 500


@dataclass(frozen=True)
class Candidate:
    """One way to quantize, measured.

    Attributes:
        name: For people.
        config: The way.
        agreement: Selection images with the same top-1 class as in fp32, in percent.
        kl: Mean KL divergence from fp32's class probabilities, in nats.
        cost: What the target pays, in the unit of the tuning.
        speedup: fp32's cost divided by this one's, with an interval where it is a latency; it can
            be compared where costs were measured at different times.
    """

    name: str
    config: QuantizeConfig
    agreement: float
    kl: float
    cost: float
    speedup: Ratio

    def beats(self, other: Candidate) -> bool:
        """Whether it is at least as good in agreement and cost, and better in one of them."""
        mine = self.agreement, self.speedup.median
        its = other.agreement, other.speedup.median
        return mine != its and mine[0] >= its[0] and mine[1] >= its[1]


@dataclass(frozen=True)
class Sensitivity:
    """What leaving one part of the net in floating point gives back.

    Attributes:
        part: Module whose convolutions stay in floating point.
        kl: Divergence that is left, in nats.
        gain: How much less that is than with all of them quantized.
    """

    part: str
    kl: float
    gain: float


@dataclass(frozen=True)
class Tuning:
    """What was measured, and what was chosen.

    Attributes:
        target: What the graphs are lowered for.
        unit: Of costs: `ms` at batch 1, or `MB` of activations.
        images: Number of selection images.
        budget: Share of them, in percent, whose top-1 class may change.
        policies: Every policy for the concatenations.
        sensitivities: Of every part, the most sensitive first; for the chosen policy.
        mixed: The chosen policy with ever more parts in floating point.
        chosen: The cheapest of all within the budget.
    """

    target: Target
    unit: str
    images: int
    budget: float
    policies: tuple[Candidate, ...]
    sensitivities: tuple[Sensitivity, ...]
    mixed: tuple[Candidate, ...]
    chosen: Candidate

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Policies and mixed graphs."""
        return (*self.policies, *self.mixed)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front of agreement against cost, the cheapest first."""
        found = [c for c in self.candidates if not any(o.beats(c) for o in self.candidates)]
        return tuple(sorted(found, key=lambda candidate: -candidate.speedup.median))

    def summary(self) -> str:
        """One line for people."""
        c = self.chosen
        return (
            f"int8 for {self.target}: {c.name}, {c.cost:.3g} {self.unit}, "
            f"{c.speedup.median:.2f}x fp32; agreement {c.agreement:.2f} % "
            f"on {self.images} selection images"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        front = [candidate.name for candidate in self.front]
        return dataclasses.asdict(self) | {"front": front}


def choose_policy(
    model: ir.Model,
    config: QuantizeConfig,
    target: Target,
    calibration: Images,
    selection: Images,
    track: Track = silent,
) -> Candidate:
    """The cheapest policy within the budget; with parts in floating point where none is.

    Takes what `tune` takes, and raises the same.
    """
    bench = _Bench(model, config, target, calibration, selection, track)
    within = _within(bench.policies(), config.budget)
    return _cheapest(within) if within else bench.tuning().chosen


def tune(
    model: ir.Model,
    config: QuantizeConfig,
    target: Target,
    calibration: Images,
    selection: Images,
    track: Track = silent,
) -> Tuning:
    """Measures every policy, and the cheapest one within the budget in mixed precision.

    Args:
        model: An fp32 graph.
        config: Calibration, and the budget.
        target: What to quantize for.
        calibration: Normalised training images (N, C, H, W).
        selection: Other training images.
        track: Progress reporter.

    Raises:
        DataError: There are no selection images.
        CheckFailedError: Nothing is within the budget.
        BackendError: The target's runtime is not here.
        MissingDependencyError: It, or TensorRT-RTX, is not installed.
    """
    return _Bench(model, config, target, calibration, selection, track).tuning()


class _Bench:
    """Makes and measures candidates of one model for one target."""

    def __init__(
        self,
        model: ir.Model,
        config: QuantizeConfig,
        target: Target,
        calibration: Images,
        selection: Images,
        track: Track,
    ) -> None:
        if not len(selection):
            raise DataError(
                "no training images are left to choose between ways to quantize",
                expected="more training images than calibrate",
                remedy="use the whole data set (--full), lower quantize.images, or name a policy",
            )
        self.config, self.target, self.track = config, target, track
        self._calibration, self._selection = calibration, selection
        self._model = model
        self._backend = target if target in CPU_TARGETS else "onnxruntime"
        floating = rewrite(model.clone(), RULES[target]).model
        self._floating = to_bytes(floating)
        self._reference = self._logits(self._floating)
        self._calibrated: dict[ConcatPolicy, Calibrated] = {}
        self._policies: list[Candidate] = []

    def policies(self) -> list[Candidate]:
        """Every policy, measured once."""
        if not self._policies:
            names = get_args(ConcatPolicy)
            ways = {name: replace(self.config, policy=name) for name in names}
            self._policies = self._measured(ways, "Measuring policies")
        return self._policies

    def tuning(self) -> Tuning:
        policies = self.policies()
        within = _within(policies, self.config.budget)
        base = _cheapest(within) if within else min(policies, key=lambda c: c.kl)
        sensitivities = self._sensitivities(base)
        parts = [item.part for item in sensitivities]
        counts = [2**power for power in range(10) if 2**power < len(parts)]
        ways = {
            f"{base.name}, {count} of {len(parts)} parts float": replace(
                base.config, keep_float=(*base.config.keep_float, *parts[:count])
            )
            for count in counts
        }
        mixed = self._measured(ways, "Measuring mixed precision")
        allowed = _within([*policies, *mixed], self.config.budget)
        if not allowed:
            best = max([*policies, *mixed], key=lambda c: c.agreement)
            raise CheckFailedError(
                f"int8 for {self.target} agrees with fp32 on {best.agreement:.2f} % at best",
                expected=f"{100 - self.config.budget:g} %",
                remedy="raise quantize.budget, or calibrate on more images",
            )
        unit = "ms" if self.target in CPU_TARGETS else "MB"
        return Tuning(
            self.target,
            unit,
            len(self._selection),
            self.config.budget,
            tuple(policies),
            tuple(sensitivities),
            tuple(mixed),
            _cheapest(allowed),
        )

    def _sensitivities(self, base: Candidate) -> list[Sensitivity]:
        calibrated = self._ready(base.config)
        kept = base.config.keep_float
        parts = _parts(calibrated, kept)
        if len(parts) < 2:
            return []
        ways = [kept, *((*kept, part) for part in parts)]
        whole, *rest = (
            self._divergence(calibrated, keep) for keep in self.track(ways, "Measuring sensitivity")
        )
        found = [Sensitivity(part, kl, whole - kl) for part, kl in zip(parts, rest, strict=True)]
        return sorted(found, key=lambda item: item.kl)

    def _divergence(self, calibrated: Calibrated, keep_float: tuple[str, ...]) -> float:
        graph = to_bytes(calibrated.quantized(keep_float).model)
        logits = self._logits(graph, _SENSITIVITY_IMAGES)
        return kl_divergence(self._reference[:_SENSITIVITY_IMAGES], logits)

    def _measured(self, ways: dict[str, QuantizeConfig], title: str) -> list[Candidate]:
        graphs = {}
        for name in self.track(list(ways), title):
            config = ways[name]
            graphs[name] = to_bytes(self._ready(config).quantized(config.keep_float).model)
        costs = self._costs(list(graphs.values()), title)
        found = []
        for (name, graph), (cost, speedup) in zip(graphs.items(), costs, strict=True):
            logits = self._logits(graph)
            agreement = 100 * float((logits.argmax(1) == self._reference.argmax(1)).mean())
            kl = kl_divergence(self._reference, logits)
            found.append(Candidate(name, ways[name], agreement, kl, cost, speedup))
        return found

    def _ready(self, config: QuantizeConfig) -> Calibrated:
        policy = config.policy
        assert policy != "auto"
        if policy not in self._calibrated:
            whole = replace(config, keep_float=())
            self._calibrated[policy] = calibrate(self._model, whole, self.target, self._calibration)
        return self._calibrated[policy]

    def _costs(self, graphs: Sequence[bytes], title: str) -> list[tuple[float, Ratio]]:
        """Milliseconds or megabytes of each graph, and how many times more fp32 takes."""
        everyone = [self._floating, *graphs]
        if self.target not in CPU_TARGETS:
            first, *sizes = [_megabytes(g) for g in self.track(everyone, f"{title}: compiling")]
            return [(size, Ratio(first / size, first / size, first / size, 1)) for size in sizes]
        with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
            paths = _written(everyone, Path(folder))
            entrants = [Entrant(path.stem, path, self._backend) for path in paths]
            images = self._selection[:16]
            once = LEAST_PAIRS  # rounds of one launch: loading takes longer than timing
            samples = interleave(entrants, images, 1, 0, LEAST_PAIRS, once, self.track, title)
        floating, *seconds = [item.seconds for item in samples]
        return [(1000 * float(np.median(own)), ratio(floating, own)) for own in seconds]

    def _logits(self, graph: bytes, count: int | None = None) -> NDArray[np.float32]:
        images = self._selection[:count]
        with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
            infer = open_graph(_written([graph], Path(folder))[0], self._backend)
            starts = range(0, len(images), _BATCH)
            return np.concatenate([infer(images[start : start + _BATCH]) for start in starts])


def _written(graphs: Iterable[bytes], folder: Path) -> list[Path]:
    paths = []
    for index, graph in enumerate(graphs):
        paths.append(folder / f"{index}.onnx")
        paths[-1].write_bytes(graph)
    return paths


def _megabytes(graph: bytes) -> float:
    """Activations that the kernels of an engine for batch 1 read and write."""
    _, layers = compile_layers(graph)
    assert layers.bytes_in is not None and layers.bytes_out is not None  # the batch is static
    return (layers.bytes_in + layers.bytes_out) / 1e6


def _parts(calibrated: Calibrated, kept: tuple[str, ...]) -> list[str]:
    """Modules to leave in floating point one at a time: dense layers, transitions, the stem."""
    names = calibrated.quantized(kept).quantized
    dense = [name.rpartition(".")[0] if ".denselayer" in name else name for name in names]
    return list(dict.fromkeys(dense))


def _within(candidates: Iterable[Candidate], budget: float) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.agreement >= 100 - budget]


def _cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """The most faithful of those that may be as cheap as the cheapest."""
    best = max(candidates, key=lambda candidate: candidate.speedup.median).speedup
    close = [c for c in candidates if _EQUAL * c.speedup.high >= best.low]
    return min(close, key=lambda candidate: candidate.kl)
