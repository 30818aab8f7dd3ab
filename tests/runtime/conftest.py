"""A simulated GPU, and TensorRT on it behind the real bindings' surface."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from densenet_deploy.bundle import Bundle, EngineRecord
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime import tensorrt
from densenet_deploy.runtime.runner import Array
from densenet_deploy.runtime.tensorrt import EngineRunner
from tests.bindings.surface import Surface
from tests.simulated import bindings, make_plan
from tests.simulated_cuda import Cuda

Open = Callable[..., EngineRunner]


def close(found: Array, expected: Array) -> None:
    """To what fp32 kernels may differ in."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def images() -> Array:
    """More than the largest profile holds."""
    return np.random.default_rng(0).standard_normal((70, 1, 28, 28)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(images: Array, fashion_bundle: Path) -> Array:
    """ONNX Runtime's own answers, row by row, without any of our code."""
    session = onnxruntime.InferenceSession(fashion_bundle / "fp32.onnx")
    rows = [session.run(None, {"images": row[None]})[0] for row in images]
    return np.concatenate(rows)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """The GPU that code under test finds."""
    device = Cuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", device)
    return device


@pytest.fixture
def opened(cuda: Cuda, surface: Surface, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens an engine of the shipped bundle's graph on that GPU."""
    module = bindings(surface, cuda)
    monkeypatch.setitem(sys.modules, surface.backend.replace("-", "_"), module)

    def open_engine(
        profiles: tuple[tuple[int, int, int], ...] = ((1, 8, 64),),
        precision: Precision = "fp32",
        plan: bytes | None = None,
        how: dict[str, Any] | None = None,
        of: Bundle = bundle,
        record: dict[str, Any] | None = None,
        **config: Any,
    ) -> EngineRunner:
        how = how or {}
        graph = of.model(precision, surface.backend).read_bytes()
        plan = make_plan(graph, profiles, **how) if plan is None else plan
        made = EngineRecord(
            "engines/a.plan",
            surface.backend,
            precision,
            surface.version,
            profiles,
            ("8.9",),
            weights=how.get("weights", "embedded"),
        )
        made = replace(made, **(record or {}))
        options = RunConfig(**config)
        return tensorrt.open_plan(of, surface.backend, precision, plan, made, options)

    return open_engine
