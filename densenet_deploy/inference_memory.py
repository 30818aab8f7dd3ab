"""Runs an inference-memory suite: what networks take to answer, by their graphs and in runtimes."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed
from torch import nn

from densenet_deploy import environment
from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import BackendError
from densenet_deploy.export import BATCH, export_onnx, to_bytes
from densenet_deploy.graph_costs import peak_live_bytes
from densenet_deploy.inference_suite import InferenceMemorySuite
from densenet_deploy.model import create_model
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import ExportConfig
from densenet_deploy.resident import peak_growth, resident
from densenet_deploy.runtime import open_graph, why_unavailable
from densenet_deploy.spec import VARIANTS, variant
from densenet_deploy.torchvision_models import in_torchvision, torchvision_model
from densenet_deploy.worker import Worker, serve

SCHEMA_VERSION = 1
_PROCESSES = 3
METHOD = (
    "Live bytes: most bytes of activations that lie in memory at once when the nodes of "
    "torch.onnx's fp32 export run in the graph's order, nothing in place, and each tensor is "
    "freed after its last reader. Loaded: by how much the resident set of a fresh process, which "
    "has its images, has grown when backend and graph are loaded; peak: by how much at most until "
    "the first request is answered; medians of three processes. fixed: the graph's batch axis has "
    "the request's size, else it takes any. 224x224, seeded weights."
)
_IMAGE = (3, 224, 224)


@dataclass(frozen=True)
class Inferred:
    """Memory of one network on one backend.

    Attributes:
        model: As the suite names it.
        backend: What ran it.
        batch: Images of the request.
        fixed: Whether the graph takes batches of this size alone.
        live_bytes: Of activations, at least, by the graph alone; None where a size is unknown.
        loaded_rss_bytes: Growth of the resident set when backend and graph are loaded.
        peak_rss_bytes: Its largest growth until the first request is answered.
    """

    model: str
    backend: str
    batch: int
    fixed: bool
    live_bytes: int | None
    loaded_rss_bytes: int
    peak_rss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class InferenceMemory:
    """Everything one run of a suite found; it claims nothing, so its truth value is True.

    Attributes:
        suite: What was run.
        threads: CPU threads.
        inferred: One for each network, backend, size and kind of batch axis.
    """

    suite: InferenceMemorySuite
    threads: int
    inferred: tuple[Inferred, ...]

    def __bool__(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.suite.to_dict(),
            "threads": self.threads,
            "method": METHOD,
            "environment": environment.describe(),
            "inferred": [one.to_dict() for one in self.inferred],
        }


def measure_inference(
    suite: InferenceMemorySuite,
    models: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    track: Track = silent,
) -> InferenceMemory:
    """Runs a suite, each measurement in a fresh process.

    Args:
        suite: What to measure.
        models: Instead of the suite's.
        batch_sizes: Likewise.
        track: Progress reporter.

    Raises:
        BackendError: A backend cannot run here, or its process died.
        RecipeError: There is no such model.
    """
    names, sizes = models or suite.models, batch_sizes or suite.batch_sizes
    _refuse(suite, names)
    threads = suite.threads or usable_cores()
    exported = {name: _exported(name) for name in names}
    tasks = list(product(names, suite.backends, sizes, (False, True)))
    found: list[Inferred] = []
    for name, backend, batch, fixed in track(tasks, "Inference memory (requests)", len(tasks)):
        graph, live = exported[name]
        data = _of_batch(graph, batch) if fixed else graph
        grown = _measured(data, backend, batch, threads)
        found.append(Inferred(name, backend, batch, fixed, live and batch * live, *grown))
    return InferenceMemory(suite, threads, tuple(found))


def _refuse(suite: InferenceMemorySuite, models: Sequence[str]) -> None:
    """Raises for what cannot be measured, before anything is."""
    for name in models:
        if not _torchvisions(name):
            variant(name, _IMAGE)
    for backend in suite.backends:
        if reason := why_unavailable(backend):
            raise BackendError(f"{backend} cannot run here: {reason}")


def _exported(name: str) -> tuple[bytes, int | None]:
    """torch.onnx's graph, and its live bytes for one image."""
    model = export_onnx(_network(name), _IMAGE, ExportConfig(fuse=False)).model
    return to_bytes(model), peak_live_bytes(model)


def _of_batch(graph: bytes, batch: int) -> bytes:
    """The same graph for batches of one size."""
    model = onnx.load_from_string(graph)
    make_dim_param_fixed(model.graph, BATCH, batch)
    data: bytes = model.SerializeToString()
    return data


def _measured(graph: bytes, backend: str, batch: int, threads: int) -> tuple[int, int]:
    """Bytes by which fresh processes grow: when the graph is loaded, and at most."""
    found: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(graph)
        for _ in range(_PROCESSES):
            with Worker(__name__, f"inference on {backend}") as worker:
                found.append(worker.ask((path, backend, batch, threads)))
    loaded, peak = map(statistics.median, zip(*found, strict=True))
    return loaded, peak


def _network(name: str) -> nn.Module:
    return torchvision_model(name) if _torchvisions(name) else create_model(name, _IMAGE, seed=0)


def _torchvisions(name: str) -> bool:
    """Whether torchvision's model is meant: of every name it has, but a DenseNet's."""
    return name not in VARIANTS and in_torchvision(name)


def _answers(requests: Iterator[Any]) -> Iterator[tuple[int, int]]:
    """The measured process."""
    for path, backend, batch, threads in requests:
        images = np.random.default_rng(0).normal(size=(batch, *_IMAGE)).astype(np.float32)
        before = resident()
        loaded, peak = peak_growth(partial(_load_and_answer, path, backend, threads, images))
        yield loaded - before, peak


def _load_and_answer(path: Path, backend: str, threads: int, images: NDArray[np.float32]) -> int:
    """Bytes of the process between loading and answering."""
    infer = open_graph(path, backend, threads)
    loaded = resident()
    infer(images)
    return loaded


if __name__ == "__main__":
    serve(_answers)
