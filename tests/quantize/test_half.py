"""FP16 graphs: half inside, float32 outside, and what half cannot hold is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from densenet_deploy.errors import GraphError
from densenet_deploy.export import to_bytes
from densenet_deploy.quantize.half import to_half
from tests.graphs import (
    RANDOM_NETS,
    Arrays,
    RandomNet,
    batchnorm,
    difference,
    exported,
    graph,
    normal,
    operators,
    random_densenet,
    run_onnxruntime,
)

BODY = "c = Conv(x, w) r = Relu(c) y = Conv(r, v)"
WEIGHTS = {"w": normal(3, 4, 1, 1), "v": normal(2, 3, 1, 1)}


def halved(model: ir.Model) -> ir.Model:
    """A copy in half precision that the checker accepts."""
    copy = model.clone()
    to_half(copy)
    to_bytes(copy)
    return copy


def with_weight(value: float) -> ir.Model:
    weight = normal(3, 4, 1, 1)
    weight[1, 2] = value
    return graph("y = Conv(x, w)", {"w": weight})


def initializers(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    values = model.graph.initializers.values()
    return {str(value.name): value.const_value.numpy() for value in values if value.const_value}


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_an_exported_net_is_half_inside(target: Any) -> None:
    export = exported("densenet-bc-16-8", target)
    before, model = initializers(export.model), halved(export.model)
    after = initializers(model)
    assert after.keys() == before.keys()
    for name, array in before.items():
        expected = array.astype(np.float16) if array.dtype == np.float32 else array
        assert after[name].dtype == expected.dtype != np.float32, name
        np.testing.assert_array_equal(after[name], expected)
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    inside = {types[node.output[0]] for node in proto.graph.node[:-1]}
    assert inside == {onnx.TensorProto.FLOAT16}
    found = run_onnxruntime(model, export.images[:8])
    assert found.dtype == np.float32
    assert 1e-6 < difference(found, export.run_torch(export.images[:8])) <= 1e-2


def test_the_interface_stays_float32() -> None:
    export = exported("densenet-bc-16-8")
    model = halved(export.model)
    for before, after in (
        (export.model.graph.inputs, model.graph.inputs),
        (export.model.graph.outputs, model.graph.outputs),
    ):
        assert [(v.name, v.dtype, v.shape) for v in after] == [
            (v.name, v.dtype, v.shape) for v in before
        ]
        assert [value.dtype for value in after] == [ir.DataType.FLOAT]
    assert operators(model) == operators(export.model) | {"Cast": 2}
    first, *_, last = model.graph
    assert (first.op_type, last.op_type) == ("Cast", "Cast")


@settings(max_examples=20, derandomize=True)
@given(RANDOM_NETS)
def test_random_nets_are_close(net: RandomNet) -> None:
    model, images = random_densenet(net), normal(2, net.channels[0], *net.size)
    found = run_onnxruntime(halved(model), images)
    assert difference(found, run_onnxruntime(model, images)) <= 2e-2


@pytest.mark.parametrize("value", [65504.0, -65504.0, 0.0])
def test_the_largest_half_is_kept(value: float) -> None:
    assert initializers(halved(with_weight(value)))["w"][1, 2, 0, 0] == value


@pytest.mark.parametrize("value", [65505.0, -7e4, 1e30, np.inf, -np.inf, np.nan])
def test_what_half_cannot_hold_is_refused(value: float) -> None:
    expected = r"^initializer w reaches .*; expected at most 65504, .* number\. Use fp32"
    with pytest.raises(GraphError, match=expected):
        halved(with_weight(value))


def test_integers_are_left_alone() -> None:
    model = graph("y = Reshape(x, shape)", {"shape": np.array([0, 8, 4, 8])})
    assert initializers(halved(model))["shape"].dtype == np.int64


def test_integer_inputs_are_left_alone() -> None:
    inputs = "float[N, 4, 8, 8] x, int64[2] axes"
    model = halved(graph("y = ReduceMean(x, axes)", {}, inputs))
    assert operators(model) == {"Cast": 2, "ReduceMean": 1}
    found = run_onnxruntime(model, normal(2, 4, 8, 8), np.array([2, 3]))
    assert difference(found, normal(2, 4, 8, 8).mean((2, 3), keepdims=True)) < 1e-2


def test_constant_nodes_become_half_too() -> None:
    body = "k = Constant <value = float[1] {1.5}>() m = Mul(x, k)"
    body += " h = Constant <value_float = 0.25>() y = Add(m, h)"
    model = halved(graph(body, {}))
    assert operators(model) == {"Add": 1, "Cast": 2, "Mul": 1}
    expected = normal(2, 4, 8, 8) * 1.5 + 0.25
    assert difference(run_onnxruntime(model, normal(2, 4, 8, 8)), expected) < 1e-2


def test_an_input_read_by_several_nodes_is_cast_once() -> None:
    model = halved(graph("r = Relu(x) s = Sigmoid(x) y = Add(r, s)", {}))
    assert operators(model) == {"Add": 1, "Cast": 2, "Relu": 1, "Sigmoid": 1}


def test_an_output_read_inside_stays_half_there() -> None:
    outputs = "float[N, K, P, Q] y, float[N, 3, 8, 8] r"
    model = halved(graph(BODY, WEIGHTS, outputs=outputs))
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [
        ("y", ir.DataType.FLOAT),
        ("r", ir.DataType.FLOAT),
    ]
    convolution = [node for node in model.graph if node.op_type == "Conv"][1]
    assert convolution.inputs[0] is not None
    assert convolution.inputs[0].dtype == ir.DataType.FLOAT16
    assert run_onnxruntime(model, normal(2, 4, 8, 8)).shape == (2, 2, 8, 8)


def test_batchnorm_parameters_become_half() -> None:
    used: Arrays = batchnorm()
    model = graph("y = BatchNormalization(x, gamma, beta, mean, var)", used)
    found = run_onnxruntime(halved(model), normal(2, 4, 8, 8))
    assert difference(found, run_onnxruntime(model, normal(2, 4, 8, 8))) < 1e-2
