"""Puts weights into an engine that was built stripped or refittable, from the ONNX graph."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from densenet_deploy.errors import BackendError


def refit(trt: ModuleType, engine: Any, graph: Path, logger: Any) -> None:
    """Takes all weights of an engine from a graph with the same names.

    What comes out is to be held against known answers: names alone do not tell one training from
    another.

    Args:
        trt: Loaded bindings.
        engine: An ICudaEngine without execution contexts.
        graph: The ONNX file it was compiled from, or one with other weights of the same network.
        logger: See `_tensorrt.collecting_logger`.

    Raises:
        BackendError: The engine takes no weights, or some are missing; names them.
    """
    if not engine.refittable:
        raise BackendError(
            "the engine takes no other weights", remedy='build it with weights = "refittable"'
        )
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    parsed = parser.refit_from_file(str(graph))
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    missing = [name or "(unnamed)" for name in refitter.get_missing_weights()]
    if missing and not errors:  # a graph that cannot be parsed gives no weight at all
        raise BackendError.collect(f"{graph.name} lacks weights of the engine", missing)
    if not parsed:
        raise BackendError.collect(f"{graph.name} cannot refit the engine", errors or ["refused"])
    if not refitter.refit_cuda_engine():
        raise BackendError.collect("refit_cuda_engine failed", logger.errors or ["no reason given"])
