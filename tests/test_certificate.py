"""A certificate holds for an exact rewrite and for nothing else."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.certificate import (
    Certificate,
    as_double,
    logits_in_double,
    logits_in_single,
    relative_difference,
)
from densenet_deploy.errors import GraphError
from densenet_deploy.export import to_bytes
from densenet_deploy.rewrite import fold_preactivation, pool_before_conv, rewrite
from tests.graphs import batchnorm, exported, graph, normal, run_onnxruntime

BODY = "n = BatchNormalization(x, gamma, beta, mean, var) r = Relu(n) y = Conv(r, w)"


def test_in_double_precision_a_rewrite_is_exact() -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    model, images = as_double(export.model), export.images[:2]
    plain = logits_in_double(model, images)
    assert plain.dtype == np.float64 and plain.shape == (2, 10)
    rewrite(model, [pool_before_conv, fold_preactivation])
    assert relative_difference(logits_in_double(model, images), plain) <= 1e-12
    assert relative_difference(export.run_torch(images), plain) <= 1e-5


def test_in_double_precision_rounding_to_single_shows() -> None:
    model = as_double(graph(BODY, batchnorm() | {"w": normal(5, 4, 1, 1)}))
    images = normal(2, 4, 8, 8)
    plain = logits_in_double(model, images)
    weight = next(v for name, v in model.graph.initializers.items() if name == "w")
    assert weight.const_value is not None
    wrong = weight.const_value.numpy() * (1 + 1e-8)
    weight.const_value = ir.tensor(wrong, name="w")
    assert 1e-9 < relative_difference(logits_in_double(model, images), plain) < 1e-7


def test_every_type_becomes_double() -> None:
    body = "k = Constant <value_float = 0.5>() m = Mul(x, k) y = Conv(m, w)"
    model = graph(
        body.replace("value_float = 0.5", "value = float {0.5}"), {"w": normal(4, 4, 1, 1)}
    )
    found = as_double(model)
    values = [*found.graph.inputs, *(output for node in found.graph for output in node.outputs)]
    assert {value.dtype for value in values} == {ir.DataType.DOUBLE}
    assert {value.dtype for value in model.graph.inputs} == {ir.DataType.FLOAT}


def test_a_graph_that_has_no_double_precision() -> None:
    model = graph("y = QuantizeLinear(x, s)", {"s": np.float32(1)}, outputs="uint8[N, 4, 8, 8] y")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="does not run in double precision"):
        as_double(model)


def test_in_single_precision() -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    images = export.images[:3]
    found = logits_in_single(export.content, images)
    assert relative_difference(found, run_onnxruntime(export.content, images)) <= 1e-5
    rewritten = rewrite(export.model, [pool_before_conv, fold_preactivation]).model
    assert relative_difference(logits_in_single(to_bytes(rewritten), images), found) <= 1e-5


def test_relative_difference() -> None:
    reference = np.array([[4.0, -2.0]])
    assert relative_difference(reference, reference) == 0
    assert relative_difference(np.array([[4.0, -1.0]]), reference) == 0.25
    zero = np.zeros((1, 2))
    assert relative_difference(zero, zero) == 0
    assert relative_difference(reference, zero) == math.inf
    for wrong in (np.array([[np.nan, 1]]), np.array([[np.inf, 1]])):
        assert math.isnan(relative_difference(wrong, reference))
        assert math.isnan(relative_difference(reference, wrong))


@pytest.mark.parametrize(
    ("difference", "passed", "text"),
    [
        (1e-13, True, "equal: 1.0e-13 <= 1e-12 in double precision, 1 image"),
        (1e-12, True, "equal: 1.0e-12 <= 1e-12 in double precision, 1 image"),
        (2e-12, False, "NOT EQUAL: 2.0e-12 > 1e-12 in double precision, 1 image"),
        (math.nan, False, "NOT EQUAL: nan > 1e-12 in double precision, 1 image"),
    ],
)
def test_verdict(difference: float, passed: bool, text: str) -> None:
    found = Certificate("double precision", "1 image", difference, 1e-12)
    assert bool(found) is passed and found.summary() == text
    told = found.to_dict()
    assert told["passed"] is passed
    assert told["difference"] == (None if math.isnan(difference) else difference)
