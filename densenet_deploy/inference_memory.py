"""What networks take in memory to answer: by their graphs, and as runtimes run them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from densenet_deploy.errors import BackendError
from densenet_deploy.export import export_onnx, to_bytes
from densenet_deploy.graph_costs import peak_live_bytes
from densenet_deploy.model import create_model
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import ExportConfig
from densenet_deploy.resident import peak_growth
from densenet_deploy.runtime import open_graph, why_unavailable
from densenet_deploy.spec import VARIANTS, variant
from densenet_deploy.training_step import in_torchvision, torchvision_model
from densenet_deploy.training_suite import InferenceMemory
from densenet_deploy.worker import Worker, serve

_IMAGE = (3, 224, 224)
METHOD = (
    "Live bytes: most bytes of activations that lie in memory at once when the nodes of "
    "torch.onnx's fp32 export run in the graph's order, nothing in place, and each tensor is "
    "freed after its last reader. Loaded and peak memory: by how much loading the backend and the "
    "graph, and then the first request, raises the resident set of a fresh process that has its "
    "images; 224x224, seeded weights."
)


@dataclass(frozen=True)
class Inferred:
    """Memory of one network on one backend.

    Attributes:
        model: As the suite names it.
        backend: What ran it.
        batch: Images of the request.
        live_bytes: Of activations, at least, by the graph alone; None where a size is unknown.
        loaded_rss_bytes: Growth of the resident set while backend and graph are loaded.
        peak_rss_bytes: Its further growth in the first request.
    """

    model: str
    backend: str
    batch: int
    live_bytes: int | None
    loaded_rss_bytes: int
    peak_rss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check(suite: InferenceMemory) -> None:
    """Refuses what could not be measured here.

    Raises:
        BackendError: A backend cannot run here.
        RecipeError: There is no such model.
    """
    for name in suite.models:
        if not _torchvisions(name):
            variant(name, _IMAGE)
    for backend in suite.backends if suite.models else ():
        if reason := why_unavailable(backend):
            raise BackendError(f"{backend} cannot run here: {reason}")


def infer_all(suite: InferenceMemory, threads: int, track: Track = silent) -> tuple[Inferred, ...]:
    """Every model, backend and batch size, each in a fresh process.

    Raises:
        BackendError: A backend cannot run here, or its process died.
        RecipeError: There is no such model.
    """
    found: list[Inferred] = []
    for name in track(suite.models, "Inference memory", len(suite.models)):
        model = export_onnx(_network(name), _IMAGE, ExportConfig(fuse=False)).model
        live = peak_live_bytes(model)
        with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(to_bytes(model))
            found += _on_backends(name, path, live, suite, threads)
    return tuple(found)


def _on_backends(
    name: str, path: Path, live: int | None, suite: InferenceMemory, threads: int
) -> Iterator[Inferred]:
    for backend in suite.backends:
        for batch in suite.batch_sizes:
            with Worker(__name__, f"{name} on {backend}") as worker:
                loaded, peak = worker.ask((path, backend, batch, threads))
            yield Inferred(name, backend, batch, live and batch * live, loaded, peak)


def _network(name: str) -> nn.Module:
    return torchvision_model(name) if _torchvisions(name) else create_model(name, _IMAGE, seed=0)


def _torchvisions(name: str) -> bool:
    """Whether torchvision's model is meant: of every name it has, but a DenseNet's."""
    return name not in VARIANTS and in_torchvision(name)


def _answers(requests: Iterator[Any]) -> Iterator[tuple[int, int]]:
    """The measured process."""
    for path, backend, batch, threads in requests:
        images = np.random.default_rng(0).normal(size=(batch, *_IMAGE)).astype(np.float32)
        infer, loaded = peak_growth(partial(open_graph, path, backend, threads))
        _, peak = peak_growth(partial(infer, images))
        yield loaded, peak


if __name__ == "__main__":
    serve(_answers)
