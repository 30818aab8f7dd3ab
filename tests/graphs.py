"""Graphs for the tests of rewriting, quantizing and exporting, and independent ways to run them.

Most graphs are written down as ONNX text or drawn at random; what has to come out of torch is
exported once per process.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from densenet_deploy import data, preprocess
from densenet_deploy.export import export_onnx, to_bytes
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.recipe import DataConfig, ExportConfig, Target
from densenet_deploy.rewrite import Equalization, RewriteResult, Rule, rewrite
from densenet_deploy.source import calibrate_batchnorm

Arrays = dict[str, NDArray[Any]]
POOL = "AveragePool <kernel_shape = [2, 2], strides = [2, 2]>"


def graph(
    body: str,
    constants: Arrays,
    inputs: str = "float[N, 4, 8, 8] x",
    outputs: str = "float[N, K, P, Q] y",
) -> ir.Model:
    """A model from the text of its nodes; each node is named after its output."""
    header = '<ir_version: 10, opset_import: ["" : 20]>'
    proto = onnx.parser.parse_model(f"{header} tiny ({inputs}) => ({outputs}) {{ {body} }}")
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return ir.from_proto(infer(proto))


def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the shape of every tensor."""
    return onnx.shape_inference.infer_shapes(
        proto, check_type=True, strict_mode=True, data_prop=True
    )


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Seeded normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def batchnorm(channels: int = 4, seed: int = 0) -> Arrays:
    """Parameters `gamma`, `beta`, `mean`, `var`; gamma has positive, negative and zero scales."""
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0.5, 2, channels) * rng.permutation(np.resize([1, -1, 0], channels))
    values = {"gamma": gamma, "beta": rng.normal(0, 1, channels)}
    values |= {"mean": rng.normal(0, 1, channels), "var": rng.uniform(0.2, 3, channels)}
    return {name: value.astype(np.float32) for name, value in values.items()}


def serialized(model: ir.Model) -> bytes:
    """Bytes of a model, also of one that no checker would accept."""
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def as_double(model: ir.Model) -> ir.Model:
    """A copy in double precision: initializers, constants, inputs, outputs and what is between.

    Operators in these graphs take their type from their inputs, so nothing else has to change.
    """
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        _widen(tensor)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        wide = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def run_reference(model: ir.Model, *inputs: NDArray[Any]) -> NDArray[Any]:
    """First output by ONNX's own numpy implementation, in the model's precision."""
    names = [value.name for value in model.graph.inputs]
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    return np.asarray(evaluator.run(None, dict(zip(names, inputs, strict=True)))[0])


def run_onnxruntime(
    model: ir.Model | bytes, *inputs: NDArray[Any], optimized: bool = False
) -> NDArray[Any]:
    """First output by ONNX Runtime, with or without its own graph rewrites."""
    return _run_onnxruntime(model, None, inputs, optimized)[0]


def tensors(model: ir.Model, names: Sequence[str], *inputs: NDArray[Any]) -> Arrays:
    """What nodes of a graph write, by name, as ONNX Runtime computes it."""
    proto = ir.to_proto(model)
    known = {value.name for value in proto.graph.output}
    extra = [helper.make_empty_tensor_value_info(name) for name in names if name not in known]
    proto.graph.output.extend(extra)
    values = _run_onnxruntime(proto.SerializeToString(), names, inputs, False)
    return dict(zip(names, values, strict=True))


def _run_onnxruntime(
    model: ir.Model | bytes,
    outputs: Sequence[str] | None,
    inputs: Sequence[NDArray[Any]],
    optimized: bool,
) -> list[NDArray[Any]]:
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else serialized(model),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],  # as runtime/onnxruntime.py has it
    )
    names = [value.name for value in session.get_inputs()]
    found = session.run(outputs, dict(zip(names, inputs, strict=True)))
    return [np.asarray(value) for value in found]


def run_openvino(model: ir.Model, *inputs: NDArray[Any]) -> NDArray[Any]:
    """First output by OpenVINO's CPU plugin, computing in float32."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(serialized(model)), "CPU", options)
    return np.asarray(compiled(list(inputs))[0])


def difference(found: NDArray[Any], reference: NDArray[Any]) -> float:
    """Largest difference, relative to the largest magnitude of the reference."""
    assert found.shape == reference.shape and found.dtype == reference.dtype
    return float(np.abs(found - reference).max() / np.abs(reference).max())


def rewrite_exactly(
    model: ir.Model, rules: Sequence[Rule], *images: NDArray[Any] | int
) -> RewriteResult:
    """Rewrites a copy, and holds it to 1e-12 of the original in double and 1e-5 in float32.

    Args:
        model: Stays as it is.
        rules: Any that can be applied again.
        images: What to run it on, or the shape of random numbers.
    """
    single = np.asarray(images[0]) if len(images) == 1 else normal(*images, seed=1)  # type: ignore[arg-type]
    double = single.astype(np.float64)
    wide = as_double(model)
    expected = run_reference(wide, double)
    assert expected.dtype == np.float64
    assert difference(run_reference(rewrite(wide, rules).model, double), expected) <= 1e-12
    result = rewrite(model.clone(), rules)
    found = run_onnxruntime(to_bytes(result.model), single)
    assert difference(found, run_onnxruntime(model, single)) <= 1e-5
    return result


def refusals(model: ir.Model, rule: Rule) -> list[str]:
    """`node: reason` of a rule that does nothing; not a bit of the graph changes."""
    before = serialized(model)
    outcome = rule(model.graph)
    assert outcome.count == 0 and serialized(model) == before
    assert {refusal.rule for refusal in outcome.refusals} <= {outcome.rule}
    return [f"{refusal.node}: {refusal.reason}" for refusal in outcome.refusals]


def equalizations(model: ir.Model, seed: int = 0) -> dict[str, Equalization]:
    """Random factors and shifts for whatever is written into a dense block."""
    rng, found = np.random.default_rng(seed), {}
    for value in (output for node in model.graph for output in node.outputs):
        readers = {node.op_type for node, _ in value.uses()}
        writer = value.producer()
        if writer is None or writer.op_type == "Concat" or value.shape is None:
            continue
        if readers and readers <= {"Concat", "BatchNormalization"}:
            channels = int(value.shape[1])  # type: ignore[arg-type]
            shift = rng.normal(0, 0.5, channels) * (writer.op_type != "MaxPool")
            found[str(value.name)] = Equalization(np.exp(rng.normal(0, 0.7, channels)), shift)
    return found


def arrays(model: ir.Model) -> Arrays:
    """The initializers, by name."""
    values = model.graph.initializers.values()
    return {str(value.name): value.const_value.numpy() for value in values if value.const_value}


def nodes_of(model: ir.Model, operator: str) -> list[ir.Node]:
    """The nodes of one operator, in order."""
    return [node for node in model.graph if node.op_type == operator]


def operators(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator there are."""
    types = [node.op_type for node in model.graph]
    return {name: types.count(name) for name in sorted(set(types))}


@dataclass(frozen=True)
class RandomNet:
    """What a random DenseNet-like graph is drawn from.

    Attributes:
        seed: Of the weights.
        channels: Of input and stem.
        size: (height, width) of the input.
        blocks: Dense layers in each block.
        growth_rate: k.
        stem: A ReLU and a max pool follow the first convolution.
        rebuilt: Each concat reads all that was written to the block, as torch exports it; else
            what the layer adds and the concat before.
        bottleneck: Dense layers are BN-ReLU-Conv1x1-ReLU-Conv3x3 instead of BN-ReLU-Conv3x3; the
            inner BN is in the first convolution, as torch's exporter leaves it.
        transition: `after`: a pool after the transition's convolution, as published; `before`: a
            padded pool before it; `none`: no pool.
        global_mean: How pixels are averaged at the end.
        scales: Signs from which the BN scales are drawn.
        transposed: Whether the classifier's weight is (classes, features).
    """

    seed: int
    channels: tuple[int, int]
    size: tuple[int, int]
    blocks: tuple[int, ...]
    growth_rate: int
    stem: bool
    rebuilt: bool
    bottleneck: bool
    transition: str
    global_mean: str
    scales: tuple[int, ...]
    transposed: bool

    @property
    def layers(self) -> int:
        """Dense layers."""
        return sum(self.blocks)

    @property
    def transitions(self) -> int:
        """Transitions between blocks."""
        return len(self.blocks) - 1


RANDOM_NETS = st.builds(
    RandomNet,
    seed=st.integers(0, 2**32 - 1),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    blocks=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    growth_rate=st.integers(1, 3),
    stem=st.booleans(),
    rebuilt=st.booleans(),
    bottleneck=st.booleans(),
    transition=st.sampled_from(["after", "before", "none"]),
    global_mean=st.sampled_from(["ReduceMean", "ReduceMean flat", "GlobalAveragePool"]),
    scales=st.sampled_from([(1,), (-1,), (0,), (1, -1), (1, 0), (1, -1, 0)]),
    transposed=st.booleans(),
)


class _Writer:
    """Collects nodes and random weights."""

    def __init__(self, net: RandomNet) -> None:
        self.net, self.rng = net, np.random.default_rng(net.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, array: NDArray[Any]) -> str:
        dtype = np.int64 if array.dtype.kind == "i" else np.float32
        self.constants.append(numpy_helper.from_array(array.astype(dtype), name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def conv(self, source: str, channels: int, out: int, kernel: int, bias: bool = False) -> str:
        name = f"weight{len(self.nodes)}"
        shape = (out, channels, kernel, kernel)
        weight = self.rng.normal(0, (channels * kernel**2) ** -0.5, shape)
        inputs = [source, self.constant(name, weight)]
        if bias:
            inputs.append(self.constant(f"{name}.bias", self.rng.normal(0, 0.5, out)))
        return self.node("Conv", inputs, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    def norm_relu(self, source: str, channels: int) -> str:
        rng, name = self.rng, f"norm{len(self.nodes)}"
        scale = rng.uniform(0.1, 2, channels) * rng.choice(self.net.scales, channels)
        values = (scale, rng.normal(0, 0.7, channels), rng.normal(0, 1, channels))
        parameters = (*values, rng.uniform(0.2, 2, channels))
        inputs = [self.constant(f"{name}.{i}", value) for i, value in enumerate(parameters)]
        epsilon = float(rng.choice([1e-5, 1e-3]))
        return self.relu(self.node("BatchNormalization", [source, *inputs], epsilon=epsilon))

    def relu(self, source: str) -> str:
        return self.node("Relu", [source])

    def dense_layer(self, features: str, channels: int) -> str:
        k = self.net.growth_rate
        active = self.norm_relu(features, channels)
        if not self.net.bottleneck:
            return self.conv(active, channels, k, 3)
        inner = self.conv(active, channels, 4 * k, 1, bias=True)
        return self.conv(self.relu(inner), 4 * k, k, 3)

    def transition(self, features: str, channels: int, out: int) -> str:
        active, pooling = self.norm_relu(features, channels), self.net.transition
        if pooling == "before":
            count = int(self.rng.integers(2))
            window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
            active = self.node("AveragePool", [active], **window, count_include_pad=count)
        conv = self.conv(active, channels, out, 1, bias=bool(self.rng.integers(2)))
        if pooling != "after":
            return conv
        return self.node("AveragePool", [conv], kernel_shape=[2, 2], strides=[2, 2])

    def classifier(self, features: str, channels: int) -> None:
        active, kind = self.norm_relu(features, channels), self.net.global_mean
        if kind == "GlobalAveragePool":
            flat = self.node("Flatten", [self.node(kind, [active])])
        elif kind == "ReduceMean":
            axes = self.constant("axes", np.array([2, 3]))
            mean = self.node("ReduceMean", [active, axes])
            flat = self.node("Reshape", [mean, self.constant("shape", np.array([-1, channels]))])
        else:
            axes = self.constant("axes", np.array([-1, -2]))
            flat = self.node("ReduceMean", [active, axes], keepdims=0)
        weight = self.rng.normal(0, channels**-0.5, (channels, 5))
        matrix = self.constant("matrix", weight.T if self.net.transposed else weight)
        inputs = [flat, matrix, self.constant("bias", self.rng.normal(0, 1, 5))]
        node = helper.make_node("Gemm", inputs, ["logits"], "gemm", transB=self.net.transposed)
        self.nodes.append(node)


def random_densenet(net: RandomNet) -> ir.Model:
    """A DenseNet-like graph from `images` (N, C, H, W) to `logits` (N, 5)."""
    writer = _Writer(net)
    inputs, channels = net.channels
    features = writer.conv("images", inputs, channels, 3)
    if net.stem:
        window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        features = writer.node("MaxPool", [writer.relu(features)], **window)
    for index, layers in enumerate(net.blocks):
        written = [features]
        for _ in range(layers):
            written.append(writer.dense_layer(features, channels))
            joined = written if net.rebuilt else [features, written[-1]]
            features = writer.node("Concat", joined, axis=1)
            channels += net.growth_rate
        if index < net.transitions:
            reduced = max(channels // 2, 1)
            features, channels = writer.transition(features, channels, reduced), reduced
    writer.classifier(features, channels)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", inputs, *net.size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])
    body = helper.make_graph(writer.nodes, "random", [images], [logits], writer.constants)
    opset = [helper.make_opsetid("", 20)]
    return ir.from_proto(infer(helper.make_model(body, opset_imports=opset, ir_version=10)))


def randomise_batchnorm(model: nn.Module, seed: int = 0) -> None:
    """BatchNorm scales of both signs and shifts, as training leaves them."""
    rng = np.random.default_rng(seed)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            scale = rng.uniform(0.5, 1.5, norm.num_features) * rng.choice(
                [-1, 1], norm.num_features
            )
            shift = rng.normal(0, 0.3, norm.num_features)
            norm.weight.data = torch.from_numpy(scale.astype(np.float32))
            norm.bias.data = torch.from_numpy(shift.astype(np.float32))


@dataclass(frozen=True)
class Exported:
    """A net and its export.

    Attributes:
        net: The torch module, in evaluation mode.
        content: What `export_onnx` made of it, serialized.
        result: What `export_onnx` returned; do not change its model.
        images: Normalised images (N, C, H, W).
    """

    net: DenseNet
    content: bytes
    result: RewriteResult
    images: NDArray[np.float32]

    @property
    def model(self) -> ir.Model:
        """A model of its own for each caller."""
        return ir.from_proto(onnx.load_from_string(self.content))

    def run_torch(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of the torch module."""
        with torch.inference_mode():
            return np.asarray(self.net(torch.from_numpy(images)))


@functools.cache
def trained_like(name: str) -> tuple[DenseNet, NDArray[np.float32]]:
    """A net with BatchNorms as after training, and images that it can be run on.

    Args:
        name: `densenet121`, at 64x64 pixels, or `densenet-bc-40-12`, on Fashion-MNIST.
    """
    if name == "densenet121":
        preprocessing = replace(preprocess.IMAGENET, height=64, width=64)
        images = data.synthetic(16, preprocessing)
    else:
        preprocessing = preprocess.FASHION_MNIST
        images = data.load(DataConfig(), "train", preprocessing).take(64)
    net = create_model(name, preprocessing.input_shape, classes=10, seed=0).eval()
    randomise_batchnorm(net)
    calibrate_batchnorm(net, images, preprocessing)
    return net, preprocessing.normalise(images.pixels)


def exported(name: str, target: Target = "tensorrt", fuse: bool = True) -> Exported:
    """The export of a `trained_like` net, made once per process."""
    return _exported(name, target, fuse)


@functools.cache
def _exported(name: str, target: Target, fuse: bool) -> Exported:
    net, images = trained_like(name)
    metadata = {"zeta": "last", "alpha": "first"}
    config = ExportConfig(target=target, fuse=fuse)
    result = export_onnx(net, net.spec.input_shape, config, metadata)
    return Exported(net, to_bytes(result.model), result, images)
