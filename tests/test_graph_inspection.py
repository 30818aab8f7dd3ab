"""Inspecting ONNX files of every precision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.errors import GraphError
from densenet_deploy.export import to_bytes
from densenet_deploy.graph_inspection import GraphInspection, inspect_graph
from densenet_deploy.quantize import quantize
from densenet_deploy.recipe import Precision, QuantizeConfig, Target
from densenet_deploy.rewrite import RULES, rewrite
from tests.graphs import exported, graph, normal


def saved_as(path: Path, precision: Precision, target: Target = "onnxruntime") -> GraphInspection:
    export = exported("densenet-bc-40-12", fuse=False)
    config = QuantizeConfig(images=8, method="minmax")
    model = quantize(export.model, precision, config, export.images[:8], target)
    path.write_bytes(to_bytes(model))
    return inspect_graph(path, target)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


def test_a_plain_export(path: Path) -> None:
    found = saved_as(path, "fp32", "tensorrt")
    assert (found.precision, found.opset, found.source) == ("fp32", 20, str(path))
    assert found.inputs == ("images float (batch, 1, 28, 28)",)
    assert found.outputs == ("logits float (batch, 10)",)
    assert (found.convolutions, len(found.float_convolutions), found.scale_groups) == (39, 39, ())
    assert found.costs.macs == exported("densenet-bc-40-12", fuse=False).net.spec.macs
    assert [(step.rule, len(step.applied)) for step in found.steps] == [
        ("pool_before_conv", 2),
        ("fold_preactivation", 21),
    ]
    text = found.summary()
    assert text.startswith(f"{path}: fp32, opset 20, images float (batch, 1, 28, 28) -> logits")
    last = "rules for tensorrt that still apply: pool_before_conv x2, fold_preactivation x21"
    assert text.splitlines()[-1] == last


def test_one_with_nothing_left_to_do(path: Path) -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    path.write_bytes(to_bytes(rewrite(export.model, RULES["tensorrt"]).model))
    found = inspect_graph(path, "tensorrt")
    assert [step.applied for step in found.steps] == [(), ()]
    assert found.summary().splitlines()[-1] == "rules for tensorrt that still apply: none"


def test_what_is_refused(path: Path) -> None:
    pool = "AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]>"
    path.write_bytes(to_bytes(graph(f"c = Conv(x, w) y = {pool}(c)", {"w": normal(5, 4, 1, 1)})))
    found = inspect_graph(path, "onnxruntime")
    assert "  refused c: the convolution or the pool is padded" in found.summary().splitlines()


def test_half_precision(path: Path) -> None:
    found = saved_as(path, "fp16")
    assert (found.precision, found.steps, len(found.float_convolutions)) == ("fp16", (), 39)
    assert found.inputs == ("images float (batch, 1, 28, 28)",)
    plain = saved_as(path, "fp32").costs
    assert 2 * found.costs.weight_bytes == pytest.approx(plain.weight_bytes, rel=0.01)
    assert found.costs.macs == plain.macs


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_int8(path: Path, target: Target) -> None:
    found = saved_as(path, "int8", target)
    assert (found.precision, found.steps) == ("int8", ())
    assert set(found.float_convolutions) <= {"features.conv0"}  # some targets keep the stem
    shared = [set(group) for group in found.scale_groups if len(group) > 1]
    for number in (1, 2, 3):  # what a block writes shares a scale
        written = {f"features.denseblock{number}.denselayer{n}.conv2" for n in range(1, 7)}
        assert [written <= group for group in shared].count(True) == 1
    count = sum(map(len, found.scale_groups))
    assert count == sum(len(set(group)) for group in found.scale_groups)
    text = found.summary()
    count = found.convolutions - len(found.float_convolutions)
    assert f"{count} of {found.convolutions} convolutions" in text
    assert "features.denseblock1.denselayer1..6.conv2" in text
    assert json.loads(json.dumps(found.to_dict()))["precision"] == "int8"


def test_convolutions_that_stay_in_float(path: Path) -> None:
    body = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) c = Conv(d, w)"
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": normal(4, 4, 1, 1)}
    path.write_bytes(to_bytes(graph(f"{body} y = Conv(c, w)", constants)))  # type: ignore[arg-type]
    found = inspect_graph(path, "tensorrt")
    assert (found.convolutions, found.float_convolutions) == (2, ("y",))
    assert found.scale_groups == (("x",),)
    assert (
        "1 of 2 convolutions, not y; 1 scales of activations, shared by\n  none" in found.summary()
    )


def test_what_is_no_model(path: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="does not exist"):
        inspect_graph(tmp_path / "none.onnx", "tensorrt")
    path.write_bytes(b"no model")
    with pytest.raises(GraphError, match="is not a valid ONNX model"):
        inspect_graph(path, "tensorrt")
