"""The layer list of real TensorRT-RTX engines, held against the graphs they were built from."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from densenet_deploy.engine.build import build_engine
from densenet_deploy.engine.layers import EngineLayers, Layer, Tensor, parse_build_log, tie
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import BuildError

pytest.importorskip("tensorrt_rtx")
CHANNELS, GROWTH, SIZE, LAYERS = 32, 32, 8, 2
BLOCK = "features.denseblock1"
MODULES = [f"{BLOCK}.denselayer{n}.conv{m}" for n in (1, 2) for m in (1, 2)]


class Block:
    """Writes a dense block in half precision as the exporter names it.

    Args:
        weights: `tensor` or `channel`: int8 convolutions with such weight scales; empty: half.
        batch: Size of dimension 0.
    """

    def __init__(self, weights: str, batch: int | str = 1) -> None:
        self.weights, self.rng = weights, np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [numpy_helper.from_array(np.array(0, np.int8), "zero")]
        features = [self.node("Cast", ["images"], "images.half", to=TensorProto.FLOAT16)]
        for number in range(1, LAYERS + 1):
            features.append(self.layer(features, f"{BLOCK}.denselayer{number}"))
        joined = self.node("Concat", features, f"{BLOCK}.concat", axis=1)
        last = self.node("Relu", [joined], "features.norm5.relu")
        self.node("Cast", [last], "logits", to=TensorProto.FLOAT)
        shape = (batch, CHANNELS, SIZE, SIZE)
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
        body = helper.make_graph(self.nodes, "block", [images], [logits], self.constants)
        opset = [helper.make_opsetid("", 20)]
        self.model = helper.make_model(body, opset_imports=opset, ir_version=10)

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, array: Any, dtype: Any = np.float16) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def layer(self, features: list[str], name: str) -> str:
        channels = CHANNELS + (len(features) - 1) * GROWTH
        joined = self.node("Concat", features, f"{name}.concat", axis=1)
        shift = self.constant(f"{name}.shift", self.rng.normal(0, 1, (channels, 1, 1)))
        active = self.node("Relu", [self.node("Add", [joined, shift], f"{name}.add")], f"{name}.r")
        inner = self.convolution(active, channels, 4 * GROWTH, 1, f"{name}.conv1")
        inner = self.node("Relu", [inner], f"{name}.r2")
        return self.convolution(inner, 4 * GROWTH, GROWTH, 3, f"{name}.conv2")

    def convolution(self, data: str, channels: int, out: int, kernel: int, name: str) -> str:
        shape = (out, channels, kernel, kernel)
        weight = self.constant(f"{name}.weight", self.rng.integers(-127, 128, shape) / 1000)
        if self.weights:
            self.constants.pop()
            levels = self.constant(f"{name}.int8", self.rng.integers(-127, 128, shape), np.int8)
            count = [out] if self.weights == "channel" else []
            scale = self.constant(f"{name}.scale", np.full(count, 0.001))
            zero = self.constant(f"{name}.zero", np.zeros(count), np.int8)
            axis = {"axis": 0} if count else {}
            weight = self.node("DequantizeLinear", [levels, scale, zero], f"{weight}.dq", **axis)
            step = self.constant(f"{data}.scale", 0.02)
            data = self.node("QuantizeLinear", [data, step, "zero"], f"{data}.q")
            data = self.node("DequantizeLinear", [data, step, "zero"], f"{data}.dq")
        pads = [kernel // 2] * 4
        return self.node("Conv", [data, weight], name, kernel_shape=[kernel] * 2, pads=pads)


@functools.cache
def build_log(
    weights: str = "tensor",
    batch: int | str = 1,
    bounds: tuple[int, int, int] = (1, 1, 1),
    targets: tuple[str, ...] = ("8.9",),
    more: tuple[tuple[int, int, int], ...] = (),
) -> str:
    """The log of a real build; `more` are further optimization profiles."""
    model = Block(weights, batch).model.SerializeToString()
    config = BuildConfig(profiles=(bounds, *more), compute_capabilities=targets)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        build_engine(model, config, log=path)
        return path.read_text(encoding="utf-8")


def engine(*arguments: Any, **options: Any) -> EngineLayers:
    return parse_build_log(build_log(*arguments, **options))


def shapes(batch: int = 1) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the graph, by ONNX."""
    inferred = onnx.shape_inference.infer_shapes(Block("tensor", batch).model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    dims = {value.name: value.type.tensor_type.shape.dim for value in values}
    return {name: tuple(size.dim_value for size in found) for name, found in dims.items()}


def sizes(layers: EngineLayers) -> tuple[int, int]:
    """Bytes in and out, both known."""
    assert layers.bytes_in is not None and layers.bytes_out is not None
    return layers.bytes_in, layers.bytes_out


def convolutions(layers: EngineLayers) -> tuple[Layer, ...]:
    return layers.of("convolution").layers


@pytest.mark.parametrize(
    ("weights", "read", "written"),
    [("tensor", "Int8", "Half"), ("channel", "Int8", "Float"), ("", "Half", "Half")],
)
def test_convolutions_are_those_of_the_graph(weights: str, read: str, written: str) -> None:
    found, expected = convolutions(engine(weights)), shapes()
    assert [layer.module for layer in found] == MODULES
    assert [layer.part for layer in found] == [module.rsplit(".", 1)[0] for module in MODULES]
    inputs = {node.name: node.input[0].removesuffix(".dq") for node in Block("").model.graph.node}
    for layer in found:
        assert layer.module in layer.nodes and layer.kind == "correlation" and layer.kernel
        ((source,), (target,)) = layer.inputs, layer.outputs
        assert (source.dtype, target.dtype) == (read, written)
        assert source.shape == expected[inputs[layer.module]]
        assert target.shape == expected[layer.module]
        assert layer.reads_int8 is bool(weights)
        size = {"Int8": 1, "Half": 2, "Float": 4}
        assert source.bytes == size[read] * np.prod(source.shape)
        assert target.bytes == size[written] * np.prod(target.shape)
    assert engine(weights).without_int8() == (() if weights else tuple(MODULES))


def test_traffic_is_that_of_every_tensor() -> None:
    """The block by hand: what each of its kernels has to read and write, in bytes."""
    found = engine("tensor")
    pixels, inner = SIZE * SIZE, 4 * GROWTH
    assert found.layers[0].inputs == (Tensor("images", "Float", (1, CHANNELS, SIZE, SIZE)),)
    assert found.layers[0].inputs[0].bytes == 4 * CHANNELS * pixels
    assert found.layers[-1].outputs[-1].bytes == 4 * (CHANNELS + LAYERS * GROWTH) * pixels
    conv1, conv2 = convolutions(found)[:2]
    alone = EngineLayers((conv1,)), EngineLayers((conv2,))
    assert alone[0].bytes_in == CHANNELS * pixels and alone[0].bytes_out == 2 * inner * pixels
    assert alone[1].bytes_in == inner * pixels and alone[1].bytes_out == 2 * GROWTH * pixels
    quantizers = found.of("quantize")
    assert [layer.part for layer in quantizers.layers] == [f"{BLOCK}.denselayer{n}" for n in (1, 2)]
    assert quantizers.bytes_in == LAYERS * 2 * inner * pixels
    assert quantizers.bytes_out == LAYERS * inner * pixels
    groups = [sizes(group) for group in found.parts().values()]
    assert sizes(found) == tuple(map(sum, zip(*groups, strict=True)))


def test_kernels_that_serve_no_convolution() -> None:
    found = engine("tensor")
    assert not engine("").of("quantize").layers
    assert engine("").of("float").layers, "add and ReLU in half"
    assert [layer.part for layer in found.of("float").layers] == ["logits"], "the last ReLU"
    roles = [layer.role for layer in found.layers]
    assert roles.count("convolution") == 4 and roles.count("quantize") == 2
    assert sum(len(group.layers) for group in found.parts().values()) == len(found.layers)


def test_a_kernel_between_two_layers_belongs_to_the_later() -> None:
    parts = engine("tensor").parts()
    between = parts[f"{BLOCK}.denselayer2"].layers[0]
    assert between.kind == "kgen" and f"{BLOCK}.denselayer2.concat" in between.nodes
    assert [tensor.shape[1] for tensor in between.outputs][:1] == [CHANNELS + GROWTH]


def test_per_tensor_weight_scales_cost_less_traffic() -> None:
    read, written = sizes(engine("tensor"))
    assert sizes(engine("channel")) > (read, written) and sizes(engine("channel"))[1] > written


def test_a_target_without_int8_takes_it_from_all() -> None:
    assert engine(targets=("8.0", "8.9", "12.0")) == engine()
    assert engine(targets=("7.5", "8.9")).without_int8() == tuple(MODULES)


def test_a_dynamic_batch_has_no_sizes() -> None:
    found = engine(batch="n", bounds=(1, 2, 4))
    assert found.bytes_in is None and found.bytes_out is None
    assert found.without_int8() == ()
    assert "unknown: sizes depend on the batch. Build with a static batch" in found.summary()
    assert found.to_dict()["bytes_in"] is None
    fixed = engine(batch="n", bounds=(2, 2, 2))
    assert sizes(fixed) == tuple(2 * size for size in sizes(engine()))


def test_sizes_at_a_batch_are_those_of_an_engine_built_for_it() -> None:
    dynamic = engine(batch="n", bounds=(1, 2, 4))
    for count in (1, 3):
        assert sizes(dynamic.at_batch(count)) == tuple(count * size for size in sizes(engine()))
    assert engine().at_batch(3) == engine(), "nothing depends on it"


def test_each_profile_has_kernels_of_its_own() -> None:
    log = build_log(batch="n", more=((2, 4, 8),))
    first, second = (parse_build_log(log, profile) for profile in (0, 1))
    assert sizes(first) == sizes(engine()) and second.bytes_in is None
    assert sizes(second.at_batch(1)) == sizes(engine())
    for found in (first, second):
        assert [layer.module for layer in convolutions(found)] == MODULES
        assert list(found.parts()) == list(engine().parts())
    with pytest.raises(BuildError, match="no optimization profile 2; expected 0 to 1"):
        parse_build_log(log, 2)
    with pytest.raises(BuildError, match="no optimization profile 1; expected 0"):
        parse_build_log(build_log(), 1)


def test_a_kernel_without_a_mark_is_of_its_graphs_profile() -> None:
    def row(name: str, source: str, target: str) -> Layer:
        sides = ((Tensor(name, "Half", (1, 8)),) for name in (source, target))
        return Layer(name, "kgen", "", *sides, ("conv",))

    rows = [
        row("conv_U1_myl0_0", "images", "a"),
        row("conv [profile 1]_U1_myl1_0", "images [profile 1]", "b"),
        row("__myl_Mul_myl1_1", "b", "c"),
    ]
    assert [layer.name for layer in tie(rows, 0).layers] == ["conv_U1_myl0_0"]
    assert [layer.name for layer in tie(rows, 1).layers] == [rows[1].name, "__myl_Mul_myl1_1"]


def test_a_layer_is_named_after_the_longest_node_its_name_begins_with() -> None:
    sides = ((Tensor(name, "Half", (1, 8)),) for name in "ab")
    row = Layer("conv10_U1_myl0_0", "correlation", "", *sides, ("conv1", "conv10", "conv100"))
    (found,) = tie([row], 0).layers
    assert found.module == "conv10"


def test_half_bytes_are_rounded_up() -> None:
    assert [Tensor("x", "Int4", (size,)).bytes for size in (0, 1, 2, 3)] == [0, 1, 1, 2]


def test_kernels_name_what_they_fuse() -> None:
    found = engine("tensor")
    told = json.loads(json.dumps(found.kernels()))
    assert sum(one["bytes"] for kernel in told for one in kernel["inputs"]) == found.bytes_in
    joined = next(kernel for kernel in told if kernel["part"].endswith("denselayer2"))
    assert {f"{BLOCK}.denselayer2.{node}" for node in ("concat", "add", "r", "r.q")} == set(
        joined["nodes"]
    )


def test_summary_and_record() -> None:
    found = engine("tensor")
    lines = found.summary().splitlines()
    row = next(line for line in lines if line.startswith(f"{BLOCK}.denselayer2 "))
    assert row.endswith("conv1 Int8>Half, conv2 Int8>Half")
    assert lines[-1] == "Int8 input: 4 of 4 convolutions"
    total = next(line for line in lines if line.startswith("total"))
    assert total.split()[1:] == [str(len(found.layers)), *(f"{n / 1e6:.3f}" for n in sizes(found))]
    record = json.loads(json.dumps(found.to_dict()))
    assert record["kernels"] == len(found.layers) and record["bytes_out"] == found.bytes_out
    assert sum(part["bytes_in"] for part in record["parts"].values()) == found.bytes_in
    assert sum(role["kernels"] for role in record["roles"].values()) == len(found.layers)
    mixed = EngineLayers((*convolutions(found), *convolutions(engine(""))[:1]))
    assert mixed.summary().endswith(f"4 of 5 convolutions, not {MODULES[0]}")


def test_layers_that_only_synchronize_are_left_out() -> None:
    wait = (
        "Name: __mye1_myl0_9, LayerType: wait, Inputs: [], Constants: [], Outputs: [], "
        "TacticName: , StreamId: 1, EventId: 1, Metadata: \n"
    )
    text = build_log().replace("Layers:\n", f"Layers:\n{wait}")
    assert parse_build_log(text) == engine()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Layers:\n", "Sheets:\n", "the build log has 0 layer lists; expected exactly one"),
        ("Layers:\n", "Layers:\nverbose: Layers:\n", "has 2 layer lists"),
        ("I/O Tensors:", "", "has no end"),
        ("Layers:\n", "Layers:\n\nI/O Tensors:", "the layer list of the build log is empty"),
        ("LayerType: correlation", "LayerType=correlation", r"line \d+ of the build log is 'Name"),
        ("Datatype: Int8", "Datatype: Int9", r"line \d+ .*Int9.*expected dimensions and a type of"),
        ("Dimensions: [1,", "Dimensions: [one,", r"line \d+ of the build log has the tensor"),
    ],
)
def test_a_malformed_log(old: str, new: str, message: str) -> None:
    text = build_log()
    assert old in text
    with pytest.raises(BuildError, match=message) as caught:
        parse_build_log(text.replace(old, new))
    assert "read the whole of that log" in caught.value.remedy


def test_the_line_in_the_message_is_that_of_the_file() -> None:
    lines = build_log().splitlines()
    number = next(i for i, line in enumerate(lines) if "correlation" in line)
    lines[number] = "Name: torn"
    with pytest.raises(BuildError, match=f"line {number + 1} of the build log is 'Name: torn'"):
        parse_build_log("\n".join(lines))


@given(st.data())
@settings(max_examples=60)
def test_a_torn_log_is_refused(data: st.DataObject) -> None:
    text = build_log()
    end = text.index("I/O Tensors:")
    cut = data.draw(st.integers(0, end))
    with pytest.raises(BuildError):
        parse_build_log(text[:cut])


@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    for whole in (text, f"verbose: Layers:\n{text}\n\nI/O Tensors:"):
        with pytest.raises(BuildError):
            parse_build_log(whole)
