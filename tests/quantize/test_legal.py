"""What the checker refuses, and what TensorRT-RTX makes of it without the checker.

Each refusal is held against the real builder: it fails, or convolves in float, or takes the graph
for another one. Each legal graph is built too, and convolves in Int8.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

from densenet_deploy.engine.build import build_engine
from densenet_deploy.engine.layers import EngineLayers, parse_build_log
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import BuildError, GraphError
from densenet_deploy.quantize import quantize
from densenet_deploy.quantize.int8 import to_int8
from densenet_deploy.quantize.legal import check_legal
from densenet_deploy.recipe import ConcatPolicy, QuantizeConfig, Target, WeightScales
from tests.graphs import (
    Arrays,
    RandomNet,
    normal,
    operators,
    random_densenet,
    run_onnxruntime,
    serialized,
)

TENSORRT: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx")
CPU: tuple[Target, ...] = ("onnxruntime", "openvino")
MS = "com.microsoft"
FLAT = {"inputs": "float[1, 64] x", "outputs": "float[N, K] y"}
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)

# The legal convolution that the cases vary.
DATA = "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)"
WEIGHT = "w = DequantizeLinear <axis = 0>(levels, steps, zeros)"
CONV = "y = Conv <pads = [1, 1, 1, 1]>(a, w)"


def levels(*shape: int, dtype: type[np.integer[Any]] = np.int8) -> NDArray[np.integer[Any]]:
    """Seeded weights."""
    return np.random.default_rng(0).integers(0, 128, shape).astype(dtype)


def steps(count: int) -> NDArray[np.float32]:
    """Scales of a weight's channels."""
    return np.full(count, 0.01, np.float32)


def zeros(count: int) -> NDArray[np.int8]:
    """Zero-points of a weight's channels."""
    return np.zeros(count, np.int8)


def raw(kind: int, *shape: int, value: int = 0) -> TensorProto:
    """A tensor of a type that numpy does not have."""
    return helper.make_tensor("", kind, shape, [value] * int(np.prod(shape)))


CONSTANTS: dict[str, Any] = {
    "s": np.float32(0.05),
    "z": np.int8(0),
    "levels": levels(16, 16, 3, 3),
    "steps": steps(16),
    "zeros": zeros(16),
}


@dataclass(frozen=True)
class Case:
    """A graph, what is wrong with it, and what TensorRT-RTX makes of it.

    Attributes:
        body: Its nodes, in ONNX text; each is named after its output.
        changed: Its constants, in addition to `CONSTANTS` or instead of them.
        wrong: `node: problem` of the refusal.
        seen: `float`: it is built, and convolves or multiplies in float; `Int8`: it is built, and
            computes in Int8; else what the builder says or dies of.
    """

    body: str
    changed: dict[str, Any]
    wrong: str
    seen: str
    inputs: str = "float[1, 16, 8, 8] x"
    outputs: str = "float[N, K, P, Q] y"

    @property
    def model(self) -> ir.Model:
        """The graph; no shape but those of inputs and constants is known."""
        header = f'<ir_version: 10, opset_import: ["" : 21, "{MS}" : 1]>'
        text = f"{header} tiny ({self.inputs}) => ({self.outputs}) {{ {self.body} }}"
        proto = onnx.parser.parse_model(text)
        given = {value.name for value in proto.graph.input} - set(self.changed)
        for name, array in (CONSTANTS | self.changed).items():
            if name in self.body and name not in given:
                tensor = array
                if not isinstance(array, TensorProto):
                    tensor = numpy_helper.from_array(np.asarray(array))
                tensor.name = name
                proto.graph.initializer.append(tensor)
        for node in proto.graph.node:
            node.name = node.output[0]
        model: ir.Model = ir.from_proto(proto)
        return model


def conv(wrong: str, seen: str, **changed: Any) -> Case:
    """The legal convolution with other constants."""
    return Case(f"{DATA} {WEIGHT} {CONV}", changed, wrong, seen)


def data(body: str, wrong: str, seen: str, inputs: str = Case.inputs, **changed: Any) -> Case:
    """The legal weight, and data that come another way."""
    return Case(f"{body} {WEIGHT} {CONV}", changed, wrong, seen, inputs)


def weight(body: str, wrong: str, seen: str, **changed: Any) -> Case:
    """The legal data, and a weight that comes another way."""
    return Case(f"{DATA} {body} {CONV}", changed, wrong, seen)


def linear(body: str, shape: tuple[int, int], axis: int, wrong: str, seen: str) -> Case:
    """A matrix product with one scale for each index of an axis of its matrix."""
    matrix = {"levels": levels(*shape), "steps": steps(shape[axis]), "zeros": zeros(shape[axis])}
    scaled = f"w = DequantizeLinear <axis = {axis}>(levels, steps, zeros)"
    return Case(f"{DATA} {scaled} y = {body}", matrix, wrong, seen, **FLAT)


def between(nodes: str, wrong: str, seen: str, **changed: Any) -> Case:
    """Nodes from i to o between the data's DequantizeLinear and the convolution."""
    return data(
        f"{DATA.replace('a = ', 'i = ')} {nodes.replace('o = ', 'a = ')}", wrong, seen, **changed
    )


def integers(nodes: str, wrong: str, seen: str, **changed: Any) -> Case:
    """Nodes from q to i between QuantizeLinear and DequantizeLinear."""
    return data(
        f"{DATA.split(' a =')[0]} {nodes} a = DequantizeLinear(i, s, z)", wrong, seen, **changed
    )


UINT8, CLIPPED = "uint8", "clips it above 127"
NO_SCALE = "Scale coefficients must all be positive"
NO_ZERO_POINT = "Non-zero zero point is not supported"
NO_TYPE = "Failed to import initializer"
BAD_SCALE = "a scale that is zero, negative or not finite; expected positive numbers"
AXIS = "weight scales along another axis"
HALF_QUANTIZED = "only its weight is quantized"
SHAPED = r"shape \[1\]; expected a scalar"
NO_OPERATOR = "not an operator of TensorRT"
STRAY = "an int8 constant, which TensorRT takes at DequantizeLinear only"
NO_STRAY = "is only allowed before DQ"
POOL = "MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1]>"
QLINEAR = {"o": np.float32(0.1), "p": np.float32(0.01)}
WIDE: dict[str, Any] = {"levels": levels(16, 32, 3, 3)}
ONE: dict[str, Any] = {"s": np.full(1, 0.05, np.float32), "z": zeros(1)}


def with_step(value: float) -> NDArray[np.float32]:
    """Scales of a weight, one of them changed."""
    changed = steps(16)
    changed[5] = value
    return changed


# fmt: off
REFUSED = {
    # 1, 2: types and zero-points
    "uint8": conv(f"q: {UINT8}.*{CLIPPED}", "Int8", z=np.uint8(0)),
    "uint8 by default": data(
        "q = QuantizeLinear(x, s) a = DequantizeLinear(q, s)", f"q: {UINT8}", "Int8"
    ),
    "uint8 of com.microsoft": data(
        DATA.replace("= ", f"= {MS}."), f"q: {UINT8}", "Int8", z=np.uint8(0)
    ),
    "uint8 pooled and concatenated": integers(
        f"m = {POOL}(q) i = Concat <axis = 1>(m, m)", "q, a: uint8", "Int8", z=np.uint8(0), **WIDE
    ),
    "uint8 input": data(
        "a = DequantizeLinear(x, s, z)", f"a: {UINT8}", "unsupported input type of UINT8",
        "uint8[1, 16, 8, 8] x", z=np.uint8(0)
    ),
    "uint8 weight": conv(
        f"w: {UINT8}", "unsupported input type of UINT8",
        levels=levels(16, 16, 3, 3, dtype=np.uint8), zeros=np.zeros(16, np.uint8)
    ),
    "uint8 asymmetric": conv("q: a zero-point other than 0", NO_ZERO_POINT, z=np.uint8(128)),
    "int8 asymmetric": conv("q: a zero-point other than 0", NO_ZERO_POINT, z=np.int8(3)),
    "weight asymmetric": conv(
        "w: a zero-point other than 0", NO_ZERO_POINT, zeros=np.full(16, 3, np.int8)
    ),
    "float8e5m2": conv(
        "q: integers of a type", NO_TYPE, z=raw(TensorProto.FLOAT8E5M2)
    ),
    "float8 data, int8 weight": conv(
        "y: types TensorRT cannot convolve", "cannot build", z=raw(TensorProto.FLOAT8E4M3FN)
    ),
    "int4 weight": conv(
        "y: types TensorRT cannot convolve", "cannot build",
        levels=raw(TensorProto.INT4, 16, 16, 3, 3, value=1), zeros=raw(TensorProto.INT4, 16)
    ),
    # 3: scales of activations
    "activation scales": data(
        DATA.replace("Linear", "Linear <axis = 1>"), "q: .*an activation with several scales",
        "float", s=steps(16), z=zeros(16)
    ),
    "activation scales of a matrix product": Case(
        f"{DATA.replace('Linear', 'Linear <axis = 1>')} {WEIGHT} y = Gemm <transB = 1>(a, w)",
        {"s": steps(64), "z": zeros(64), "levels": levels(16, 64)},
        "q: .*an activation with several scales", "float", **FLAT
    ),
    "activation scale with a dimension": conv(f"y: .*{SHAPED}", "float", **ONE),
    "two scales in a Concat": data(
        f"{DATA.replace('a =', 'i =')} r = QuantizeLinear(x, t, z) j = DequantizeLinear(r, t, z)"
        " a = Concat <axis = 1>(i, j)", "y: .*joined from several scales", "float",
        t=np.float32(0.03), **WIDE
    ),
    # 4: axis of weights
    "weight axis 1": weight(WEIGHT.replace("0", "1"), f"y: .*{AXIS}", "float"),
    "weight axis by default": weight(WEIGHT.replace("<axis = 0>", ""), f"y: .*{AXIS}", "float"),
    "weight in blocks": weight(
        "w = DequantizeLinear <axis = 3, block_size = 3>(levels, steps)", f"y: .*{AXIS}", "float",
        steps=np.full((16, 16, 3, 1), 0.01, np.float32)
    ),
    "float weight, axis 1": weight(
        "v = QuantizeLinear <axis = 1>(f, steps, zeros)"
        " w = DequantizeLinear <axis = 1>(v, steps, zeros)", f"y: .*{AXIS}", "float",
        f=normal(16, 16, 3, 3)
    ),
    "Gemm axis 0": linear("Gemm(a, w)", (64, 32), 0, f"y: .*{AXIS}", "float"),
    "Gemm transB axis 1": linear("Gemm <transB = 1>(a, w)", (32, 64), 1, f"y: .*{AXIS}", "float"),
    "MatMul axis 0": linear("MatMul(a, w)", (64, 32), 0, f"y: .*{AXIS}", "float"),
    # 5: scales and zero-points that are not constants
    "scale as input": data(
        DATA, "q: a scale or zero-point that depends on inputs", "SIGSEGV",
        "float[1, 16, 8, 8] x, float s"
    ),
    "scale from data": data(
        f"m = ReduceMax <keepdims = 0>(x) t = Mul(m, k) {DATA.replace('s,', 't,')}",
        "q: a scale or zero-point that depends on inputs", "SIGSEGV", k=np.float32(0.01)
    ),
    "zero-point as input": data(
        DATA, "q: a scale or zero-point that depends on inputs", "which is not an initializer",
        "float[1, 16, 8, 8] x, int8 z"
    ),
    # 6: biases
    "int32 bias": Case(
        f"{DATA} {WEIGHT} b = DequantizeLinear <axis = 0>(c, steps, d) y = Conv(a, w, b)",
        {"c": np.arange(16, dtype=np.int32), "d": np.zeros(16, np.int32)},
        "b: int32, which TensorRT rejects", "Int32 but must have type"
    ),
    # 7: values of scales
    "scale 0": conv(f"q: {BAD_SCALE}", NO_SCALE, s=np.float32(0)),
    "scale negative": conv(f"q: {BAD_SCALE}", NO_SCALE, s=np.float32(-0.1)),
    "scale NaN": conv(f"q: {BAD_SCALE}", NO_SCALE, s=np.float32(np.nan)),
    "scale infinite": conv(f"q: {BAD_SCALE}", "Int8", s=np.float32(np.inf)),
    "one weight scale infinite": conv(f"w: {BAD_SCALE}", "Int8", steps=with_step(np.inf)),
    # 8: integer operators
    "QLinearConv": Case(
        "q = QuantizeLinear(x, s, z) r = QLinearConv(q, s, z, levels, p, z, o, z)"
        " y = DequantizeLinear(r, o, z)", QLINEAR, f"r: {NO_OPERATOR}", "cannot parse"
    ),
    "ConvInteger": Case(
        "q = QuantizeLinear(x, s, z) r = ConvInteger(q, levels) y = Cast <to = 1>(r)", {},
        f"r: {NO_OPERATOR}", "cannot parse"
    ),
    "DynamicQuantizeLinear": Case(
        "q, t, p = DynamicQuantizeLinear(x) y = DequantizeLinear(q, t, p)", {}, f"q: {NO_OPERATOR}",
        "cannot parse"
    ),
    "QGemm": Case(
        f"q = QuantizeLinear(x, s, z) y = {MS}.QGemm(q, s, z, levels, p, z)",
        {"levels": levels(64, 32), "p": np.float32(0.01)}, f"y: {NO_OPERATOR}", "Plugin not found",
        **FLAT
    ),
    # 9: integers between QuantizeLinear and DequantizeLinear
    "Max with an int8 constant": integers("i = Max(q, k)", f"i: {STRAY}", NO_STRAY, k=np.int8(0)),
    "Min with a Constant": integers(
        "k = Constant <value = int8[1] {5}>() i = Min(q, k)", f"i: {STRAY}", NO_STRAY
    ),
    "Max with a uint8 constant": integers(
        "i = Max(q, k)", "q, a: uint8", "must have same input types", k=np.uint8(5), z=np.uint8(0)
    ),
    "int8 weight reshaped": weight(
        "v = Reshape(levels, k) w = DequantizeLinear <axis = 0>(v, steps, zeros)", f"v: {STRAY}",
        NO_STRAY, levels=levels(16, 144), k=np.array([16, 16, 3, 3])
    ),
    # 10: data that do not arrive as integers
    "float data": data("a = Identity(x)", f"y: .*{HALF_QUANTIZED}", "float"),
    "Relu between": between("o = Relu(i)", f"y: .*{HALF_QUANTIZED}", "float"),
    "AveragePool between": between(
        f"o = {POOL.replace('Max', 'Average')}(i)", f"y: .*{HALF_QUANTIZED}", "float"
    ),
    "float in a Concat": between(
        "o = Concat <axis = 1>(i, x)", f"y: .*{HALF_QUANTIZED}", "float", **WIDE
    ),
}

LEGAL = {
    "as is": conv("", "Int8"),
    "half": Case(
        f"h = Cast <to = 10>(x) {DATA.replace('(x', '(h')} {WEIGHT} {CONV}",
        {"s": np.float16(0.05), "steps": steps(16).astype(np.float16)}, "", "Int8",
        outputs="float16[N, K, P, Q] y"
    ),
    "float8": Case(
        f"{DATA} v = QuantizeLinear(f, s, z) w = DequantizeLinear(v, s) {CONV}",
        {"z": raw(TensorProto.FLOAT8E4M3FN), "f": normal(16, 16, 3, 3)}, "", "FP8"
    ),
    "one weight scale": weight("w = DequantizeLinear(levels, s, z)", "", "Int8"),
    "one weight scale with a dimension": conv("", "Int8", steps=steps(1), zeros=zeros(1)),
    "weight axis -4": weight(WEIGHT.replace("0", "-4"), "", "Int8"),
    "float weight": weight(
        "v = QuantizeLinear <axis = 0>(f, steps, zeros)"
        " w = DequantizeLinear <axis = 0>(v, steps, zeros)", "", "Int8", f=normal(16, 16, 3, 3)
    ),
    "grouped": Case(
        f"{DATA} {WEIGHT} y = Conv <group = 4>(a, w)", {"levels": levels(16, 4, 3, 3)}, "", "Int8"
    ),
    "without zero-points": data(
        "q = QuantizeLinear <output_dtype = 3>(x, s) a = DequantizeLinear(q, s)", "", "Int8"
    ),
    "scale of a Constant": data(
        f"t = Constant <value_float = 0.05>() {DATA.replace('s,', 't,')}", "", "Int8"
    ),
    "scale computed from constants": data(f"t = Mul(s, s) {DATA.replace('s,', 't,')}", "", "Int8"),
    "scale that an input may replace": data(
        DATA, "", "Int8", "float[1, 16, 8, 8] x, float s", s=np.float32(0.05)
    ),
    "int8 input": data("a = DequantizeLinear(x, s, z)", "", "Int8", "int8[1, 16, 8, 8] x"),
    "int8 bias": Case(
        f"{DATA} {WEIGHT} b = DequantizeLinear <axis = 0>(c, steps, zeros) y = Conv(a, w, b)",
        {"c": levels(16)}, "", "Int8"
    ),
    "MaxPool and Concat between": between(
        f"p = {POOL}(i) o = Concat <axis = 1>(i, p)", "", "Int8", **WIDE
    ),
    "Slice and Pad between": between(
        "p = Slice(i, k, n) o = Pad(p, e)", "", "Int8", k=np.zeros(4, np.int64),
        n=np.array([1, 16, 7, 7]), e=np.array([0, 0, 1, 1, 0, 0, 0, 0])
    ),
    "Transpose and Reshape between": between(
        "p = Transpose <perm = [0, 1, 3, 2]>(i) o = Reshape(p, k)", "", "Int8",
        k=np.array([1, 16, 4, 16])
    ),
    "int8 pooled, concatenated and rectified": integers(
        f"m = {POOL}(q) k = Concat <axis = 1>(m, q) i = Relu(k)", "", "Int8", **WIDE
    ),
    "int8 clipped": integers("i = Clip(q, k, n)", "", "Int8", k=np.int8(0), n=np.int8(9)),
    "Gemm": linear("Gemm(a, w)", (64, 32), 1, "", "Int8"),
    "Gemm transB": linear("Gemm <transB = 1>(a, w)", (32, 64), 0, "", "Int8"),
    "MatMul": linear("MatMul(a, w)", (64, 32), 1, "", "Int8"),
    "a float layer reads dequantized data": Case(
        f"{DATA} {CONV}", {"w": normal(16, 16, 3, 3)}, "", "float"
    ),
    "no quantization": Case("y = Conv(x, w)", {"w": normal(16, 16, 3, 3)}, "", "float"),
}
# fmt: on


def compiled(model: ir.Model | bytes, folder: Path) -> tuple[EngineLayers, str]:
    """Layers of the engine TensorRT-RTX builds, and its log."""
    log = folder / "log"
    config = BuildConfig(
        profiles=((1, 1, 1),), compute_capabilities=("8.9",), optional_compute_capabilities=()
    )
    build_engine(model if isinstance(model, bytes) else serialized(model), config, log=log)
    text = log.read_text(encoding="utf-8")
    return parse_build_log(text), text


def computes_in(layers: EngineLayers) -> str:
    """Type of what convolutions and matrix products read; kernels without a name read floats."""
    found = {
        "float" if layer.inputs[0].dtype in ("Float", "Half") else layer.inputs[0].dtype
        for layer in layers.layers
        if layer.kind in ("correlation", "gemm")
    }
    return found.pop() if found else "float"


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("target", TENSORRT)
def test_refused(name: str, target: Target) -> None:
    with pytest.raises(GraphError, match=f"(?s)^the graph is not legal for {target}:.*") as caught:
        check_legal(REFUSED[name].model, target)
    caught.match(REFUSED[name].wrong)


@needs_rtx
@pytest.mark.parametrize("name", REFUSED)
def test_what_tensorrt_rtx_makes_of_the_refused(name: str, tmp_path: Path) -> None:
    case = REFUSED[name]
    if case.seen not in ("float", "Int8"):
        with pytest.raises(BuildError, match=case.seen):
            compiled(case.model, tmp_path)
        return
    layers, log = compiled(case.model, tmp_path)
    assert computes_in(layers) == case.seen
    warned = "Defaulting to INT8 instead" in log
    assert warned == ("uint8" in name and "default" not in name)


@needs_rtx
@pytest.mark.parametrize("name", LEGAL)
def test_legal(name: str, tmp_path: Path) -> None:
    for target in get_args(Target):
        check_legal(LEGAL[name].model, target)
    assert computes_in(compiled(LEGAL[name].model, tmp_path)[0]) == LEGAL[name].seen


def test_uint8_read_as_int8_gives_other_numbers() -> None:
    """What a kernel of TensorRT-RTX computes that keeps Int8 where the graph says uint8."""
    unsigned = Case(DATA.replace("a =", "y ="), {"z": np.uint8(0)}, "", "").model
    signed = Case(DATA.replace("a =", "y ="), {}, "", "").model
    images = np.full((1, 16, 8, 8), 10, np.float32)
    assert run_onnxruntime(unsigned, images).max() == pytest.approx(10)
    assert run_onnxruntime(signed, images).max() == pytest.approx(127 * 0.05)


@needs_rtx
@pytest.mark.parametrize("zero", [", z", ""])
def test_the_engine_gives_int8_where_the_graph_says_uint8(zero: str, tmp_path: Path) -> None:
    body, outputs = f"y = QuantizeLinear(x, s{zero})", "uint8[N, K, P, Q] y"
    model = Case(body, {"z": np.uint8(0)}, "", "", outputs=outputs).model
    assert compiled(model, tmp_path)[0].layers[-1].outputs[0].dtype == "Int8"
    with pytest.raises(GraphError, match="y: uint8"):
        check_legal(model, "tensorrt")


@pytest.mark.parametrize("name", [name for name in REFUSED if "scale" in name])
@pytest.mark.parametrize("target", CPU)
def test_cpu_targets_refuse_only_values_of_scales(name: str, target: Target) -> None:
    case = REFUSED[name]
    if BAD_SCALE not in case.wrong:
        check_legal(case.model, target)
        return
    with pytest.raises(GraphError, match=case.wrong):
        check_legal(case.model, target)


def test_nodes_of_subgraphs() -> None:
    branch = "() => (float[1, 16, 8, 8] {0}1) {{ {0}2 = QuantizeLinear(x, s, z) "
    branch += "{0}1 = DequantizeLinear({0}2, s, z) }}"
    body = (
        f"y = If (c) <then_branch = g {branch.format('t')}, else_branch = h {branch.format('e')}>"
    )
    inputs = "float[1, 16, 8, 8] x, bool[1] c"
    model = Case(body, {"z": np.uint8(0)}, "", "", inputs).model
    with pytest.raises(
        GraphError, match="QuantizeLinear before t2, QuantizeLinear before e2: uint8"
    ):
        check_legal(model, "tensorrt")


def test_a_scale_behind_a_thousand_nodes() -> None:
    chain = " ".join(f"n{i + 1} = Identity(n{i})" for i in range(1500))
    body = f"n0 = ReduceMax <keepdims = 0>(x) {chain} {DATA.replace('s,', 'n1500,')}"
    with pytest.raises(GraphError, match="depends on inputs"):
        check_legal(Case(body, {}, "", "", outputs="float[N, K, P, Q] a").model, "tensorrt")


NET = RandomNet(
    seed=1, channels=(3, 4), size=(8, 8), blocks=(2, 2), growth_rate=3, stem=True, rebuilt=True,
    bottleneck=True, transition="before", global_mean="GlobalAveragePool", scales=(1, -1),
    transposed=True,
)  # fmt: skip


def images(count: int = 8) -> NDArray[np.float32]:
    """Images for `NET`."""
    return normal(count, 3, 8, 8)


@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("policy", ["equalized", "shared", "after-bn-relu"])
@pytest.mark.parametrize("weights", get_args(WeightScales))
def test_ours(target: Target, policy: ConcatPolicy, weights: WeightScales) -> None:
    config = QuantizeConfig(images=8, method="minmax", policy=policy, weights=weights)
    result = to_int8(random_densenet(NET), config, target, images())
    assert operators(result.model)["QuantizeLinear"] > 3
    check_legal(result.model, target)


@needs_rtx
@pytest.mark.parametrize("target", TENSORRT)
def test_ours_convolve_in_int8(target: Target, tmp_path: Path) -> None:
    config = QuantizeConfig(images=8, method="minmax")
    result = to_int8(random_densenet(NET), config, target, images())
    layers, _ = compiled(one_batch(result.model), tmp_path)
    found = {layer.module for layer in layers.of("convolution").layers if layer.reads_int8}
    assert found == set(result.quantized)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_without_integers(precision: Any) -> None:
    model = quantize(random_densenet(NET), precision, QuantizeConfig())
    for target in get_args(Target):
        check_legal(model, target)


def test_a_layer_kept_in_float() -> None:
    conv_names = [node.name for node in random_densenet(NET).graph if node.op_type == "Conv"]
    config = QuantizeConfig(images=8, method="minmax", keep_float=(str(conv_names[2]),))
    check_legal(to_int8(random_densenet(NET), config, "tensorrt", images()).model, "tensorrt")


def test_a_graph_made_for_a_cpu() -> None:
    """All kinds of problems together, each with a few of its nodes."""
    config = QuantizeConfig(images=8, method="minmax")
    model = to_int8(random_densenet(NET), config, "onnxruntime", images()).model
    with pytest.raises(GraphError) as caught:
        check_legal(model, "tensorrt")
    message = str(caught.value)
    assert message.startswith("the graph is not legal for tensorrt: ")
    for problem in ("uint8, or no zero-point", "int32, which", "a zero-point other than 0"):
        assert message.count(problem) == 1
    assert " more: int32" in message and len(message.splitlines()) <= 6


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Images for ONNX Runtime's own quantizer."""

    def __init__(self) -> None:
        self.batches: Iterator[Arrays] = iter([{"images": images()}])

    def get_next(self) -> Arrays | None:
        return next(self.batches, None)


def quantized_by_onnxruntime(folder: Path, **changed: Any) -> ir.Model:
    """The recipe of ONNX Runtime that TensorRT accepts, but for what is changed."""
    (folder / "fp32.onnx").write_bytes(one_batch(random_densenet(NET), 8))
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
        "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
        "ForceQuantizeNoInputCheck": True,
        "QDQDisableWeightAdjustForInt32Bias": True,
        "QDQOpTypePerChannelSupportToAxis": {"Conv": 0, "ConvTranspose": 1},
    }
    quantization.quantize_static(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=changed.pop("quant_format", quantization.QuantFormat.QDQ),
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv"],
        extra_options=options | changed,
    )
    return ir.load(folder / "int8.onnx")


@needs_rtx
def test_onnxruntimes_own_quantizer(tmp_path: Path) -> None:
    model = quantized_by_onnxruntime(tmp_path)
    check_legal(model, "tensorrt")
    layers, _ = compiled(one_batch(model), tmp_path)
    assert layers.of("convolution").layers and layers.without_int8() == ()


@pytest.mark.parametrize(
    "changed, wrong",
    [
        ({"QuantizeBias": True}, "int32, which TensorRT rejects"),
        ({"ActivationSymmetric": False}, "a zero-point other than 0"),
        ({"quant_format": quantization.QuantFormat.QOperator}, NO_OPERATOR),
    ],
)
def test_its_other_settings(changed: dict[str, Any], wrong: str, tmp_path: Path) -> None:
    model = quantized_by_onnxruntime(tmp_path, **changed)
    check_legal(model, "onnxruntime")
    with pytest.raises(GraphError, match=wrong):
        check_legal(model, "tensorrt")


def one_batch(model: ir.Model, size: int = 1) -> bytes:
    """The model with a static batch."""
    copy = model.clone()
    for value in copy.graph.inputs:
        assert value.shape is not None
        value.shape = ir.Shape([size, *list(value.shape)[1:]])
    for node in copy.graph:
        for output in node.outputs:
            output.shape = None
    return serialized(copy)
