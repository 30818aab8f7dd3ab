"""Costs by hand, and those of DenseNets against the counts of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from densenet_deploy.graph_costs import Costs, costs_of, peak_live_bytes
from densenet_deploy.recipe import QuantizeConfig
from densenet_deploy.rewrite import pool_before_conv, rewrite
from densenet_deploy.spec import VARIANTS, DenseNetSpec, variant
from tests.graphs import exported, graph, normal

KERNEL = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"


def test_a_graph_by_hand() -> None:
    body = f"c = Conv {KERNEL}(x, w) r = Relu(c) m = ReduceMean <keepdims = 0>(r, axes)"
    constants = {"w": normal(6, 4, 3, 3), "axes": np.array([2, 3]), "g": normal(5, 6)}
    model = graph(f"{body} y = Gemm <transB = 1>(m, g)", constants, outputs="float[N, 5] y")
    found = costs_of(model)
    pixels = 8 * 8
    assert found.macs == 6 * pixels * 4 * 9 + 6 * 5
    # x and c, c and r, r and m, m and y
    assert found.activation_bytes == 4 * pixels * (4 + 6 + 6 + 6 + 6) + 4 * (6 + 6 + 5)
    assert found.weight_bytes == 4 * 6 * 4 * 9 + 8 * 2 + 4 * 5 * 6
    assert found.nodes == {"Conv": 1, "Gemm": 1, "ReduceMean": 1, "Relu": 1}
    assert found.cells() == ("0.01", "0.01", "0.00", "4")
    assert found.to_dict()["macs"] == found.macs


@pytest.mark.parametrize(
    ("body", "weight", "macs"),
    [
        ("y = Conv <group = 4>(x, w)", (8, 1, 1, 1), 8 * 64),
        ("y = Conv <group = 2, strides = [2, 2]>(x, w)", (6, 2, 2, 2), 6 * 16 * 2 * 4),
        ("y = Conv <dilations = [2, 2]>(x, w)", (1, 4, 3, 3), 16 * 4 * 9),
    ],
)
def test_convolutions(body: str, weight: tuple[int, ...], macs: int) -> None:
    assert costs_of(graph(body, {"w": normal(*weight)})).macs == macs


def test_a_gemm_whose_weight_is_not_transposed() -> None:
    model = graph("y = Gemm(x, w)", {"w": normal(4, 7)}, "float[N, 4] x", "float[N, 7] y")
    assert costs_of(model).macs == 28


def test_what_depends_on_constants_alone_moves_nothing() -> None:
    quantized = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
    body = f"{quantized} k = DequantizeLinear(w, s, z) o = Constant <value_float = 1.0>() "
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 4, 1, 1), np.int8)}
    model = graph(f"{body} c = Conv(d, k) y = Add(c, o)", constants)  # type: ignore[arg-type]
    found, size = costs_of(model), 4 * 64
    # x and q, q and d, d and c, c and y: q is one byte for each element
    assert found.activation_bytes == size * (4 + 1 + 1 + 4 + 4 + 4 + 4 + 4)
    assert found.weight_bytes == 16 + 4 + 1 + 4
    assert found.macs == 4 * size


def test_sizes_that_are_not_known() -> None:
    model = graph("y = Conv(x, w)", {"w": normal(4, 4, 1, 1)}, "float[N, 4, H, 8] x")
    found = costs_of(model)
    assert (found.macs, found.activation_bytes, found.weight_bytes) == (None, None, 64)
    assert found.cells() == ("unknown", "unknown", "0.00", "1")


def test_a_fixed_batch_stays() -> None:
    model = graph("y = Relu(x)", {}, "float[3, 4, 8, 8] x")
    assert costs_of(model).activation_bytes == 2 * 4 * 3 * 256


def test_live_bytes_by_hand() -> None:
    """A tensor lives from its making to its last reader; both ends share a node's time."""
    constants = {"w": normal(6, 4, 1, 1), "v": normal(2, 6, 1, 1), "u": normal(9, 6, 1, 1)}
    body = "a = Conv(x, w) b = Relu(a) c = Conv(b, v) y = Concat <axis = 1>(c, a)"
    model = graph(body, constants)
    # While b is made: a and b; while c is made: a, b and c, which is most; then a, c and y.
    assert peak_live_bytes(model) == 4 * 64 * max(4 + 6, 6 + 6, 6 + 6 + 2, 6 + 2 + 8)
    model = graph(f"{body} z = Conv(b, u)", constants, outputs="float[N, 9, 8, 8] z")
    # With b read again at the end: a, b, c and y, then b and z; y is read by nobody.
    assert peak_live_bytes(model) == 4 * 64 * (6 + 6 + 2 + 8)


def test_live_bytes_of_a_densenet_are_those_of_a_run() -> None:
    """Reference: every tensor that a run makes, dropped when nobody reads it any more."""
    export = exported("densenet-bc-40-12", fuse=False)
    model, images = export.model, export.images[:1]
    graph_proto = ir.to_proto(model).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph_proto.initializer}
    values = ran(ir.to_proto(model), images)
    here, most = {"images"}, 0
    for index, node in enumerate(graph_proto.node):
        here |= set(node.output) & values.keys() - constants.keys()
        most = max(most, sum(values[name].nbytes for name in here))
        later = {name for other in graph_proto.node[index + 1 :] for name in other.input}
        here &= later | {"logits"}
    assert peak_live_bytes(model) == most


def ran(proto: onnx.ModelProto, images: Any) -> dict[str, Any]:
    """Every value of a run on ONNX Runtime, without its optimisations."""
    made = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return {"images": images, **dict(zip(made, session.run(made, {"images": images}), strict=True))}


def test_sizes_of_live_tensors_that_are_not_known() -> None:
    model = graph("y = Conv(x, w)", {"w": normal(4, 4, 1, 1)}, "float[N, 4, H, 8] x")
    assert peak_live_bytes(model) is None


def test_the_graph_stays() -> None:
    model = exported("densenet-bc-40-12", fuse=False).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    costs_of(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_an_export_costs_what_its_architecture_says() -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    spec = export.net.spec
    found, plain = costs_of(export.model), export.model
    assert found.macs == spec.macs
    assert found.nodes["Conv"] == len(spec.convolutions())
    after = rewrite(plain, [pool_before_conv])
    assert after.counts == {"pool_before_conv": len(spec.block_layers) - 1}
    assert found.macs - costs_of(after.model).macs == saved(spec)  # type: ignore[operator]


def saved(spec: DenseNetSpec) -> int:
    """Multiply-accumulates of the transitions on the pixels that the pools drop."""
    sizes = spec.feature_sizes()
    flows = spec.block_channels()
    pairs = zip(flows[:-1], flows[1:], sizes[:-1], sizes[1:], strict=True)
    return sum(
        grown * into * (before[0] * before[1] - after[0] * after[1])
        for (_, grown), (into, _), before, after in pairs
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_published_architectures(name: str, counts: dict[str, Any]) -> None:
    """Held against counts from outside this project, of the same architecture."""
    spec = variant(name)
    entries = [item for item in counts["configurations"] if item.get("variant") == name]
    published = {item["macs"] for item in entries if item["classes"] == spec.classes}
    model = skeleton(spec)
    found = costs_of(model)
    assert {found.macs} == {spec.macs} and published <= {found.macs}
    rewritten = costs_of(rewrite(model, [pool_before_conv]).model)
    assert found.macs is not None and rewritten.macs == found.macs - saved(spec)


class _Skeleton:
    """Writes the convolutions, pools and concats of an architecture, as the paper draws it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def conv(self, data: str, into: int, out: int, kernel: int, stride: int = 1) -> str:
        name = f"weight{len(self.nodes)}"
        shape = (out, into, kernel, kernel)
        self.weights.append(TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT))
        self.weights[-1].raw_data = bytes(4 * int(np.prod(shape)))
        window = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", [data, name], strides=[stride] * 2, **window)


def skeleton(spec: DenseNetSpec) -> ir.Model:
    """An architecture without weights, norms and ReLUs."""
    writer, k, channels = _Skeleton(), spec.growth_rate, spec.init_channels
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    if spec.stem == "imagenet":
        data = writer.conv("images", spec.input_shape[0], channels, 7, 2)
        window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        data = writer.node("MaxPool", [data], **window)
    else:
        data = writer.conv("images", spec.input_shape[0], channels, 3)
    for index, layers in enumerate(spec.block_layers):
        if index:
            reduced = int(channels * spec.compression)
            data, channels = writer.conv(data, channels, reduced, 1), reduced
            data = writer.node("AveragePool", [data], **pool)
        for _ in range(layers):
            inner = writer.conv(data, channels, 4 * k, 1) if spec.bottleneck else data
            new = writer.conv(inner, 4 * k if spec.bottleneck else channels, k, 3)
            data, channels = writer.node("Concat", [data, new], axis=1), channels + k
    data = writer.node("Flatten", [writer.node("GlobalAveragePool", [data])])
    matrix = TensorProto(name="matrix", dims=(channels, spec.classes), data_type=TensorProto.FLOAT)
    matrix.raw_data = bytes(4 * channels * spec.classes)
    writer.nodes.append(helper.make_node("Gemm", [data, "matrix"], ["logits"], "gemm"))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *spec.input_shape])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", spec.classes])
    body = helper.make_graph(writer.nodes, "net", [images], [logits], [*writer.weights, matrix])
    opset = [helper.make_opsetid("", 20)]
    return ir.from_proto(helper.make_model(body, opset_imports=opset, ir_version=10))


def test_int8_costs_less_traffic_on_integer_targets() -> None:
    from densenet_deploy.quantize import quantize

    export = exported("densenet-bc-40-12", fuse=False)
    config = QuantizeConfig(images=8, method="minmax")
    model = quantize(export.model, "int8", config, export.images[:8], "onnxruntime")
    plain, found = costs_of(export.model), costs_of(model)
    assert found.weight_bytes < plain.weight_bytes / 3
    assert isinstance(found, Costs) and found.nodes["QuantizeLinear"] > 39
