"""How a graph is built, and which files its targets get."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from densenet_deploy.assemble import settings_for
from densenet_deploy.bundle import Bundle
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import GraphError


def test_an_int8_engine_is_built_without_what_takes_its_int8(bundle: Bundle) -> None:
    config = BuildConfig()
    assert config.optional_compute_capabilities == ("7.5",)
    half = settings_for(ir.load(bundle.model("fp16")), config)
    assert half == config
    int8 = settings_for(ir.load(bundle.model("int8")), config)
    assert int8.optional_compute_capabilities == ()
    assert int8.compute_capabilities == config.compute_capabilities


def test_a_graph_for_a_cpu_is_refused(bundle: Bundle) -> None:
    graph = ir.load(bundle.model("int8", "onnxruntime"))
    with pytest.raises(GraphError, match="not legal for tensorrt-rtx"):
        settings_for(graph, BuildConfig())
