"""INT8 end to end: close to fp32, the same on every runtime, and in each target's own form."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from densenet_deploy.engine.build import build_engine
from densenet_deploy.engine.layers import EngineLayers, parse_build_log
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import GraphError
from densenet_deploy.export import to_bytes
from densenet_deploy.quantize import Int8Result, to_int8
from densenet_deploy.quantize.legal import check_legal
from densenet_deploy.recipe import TARGETS, ConcatPolicy, QuantizeConfig, Target
from densenet_deploy.rewrite import RULES, fold_preactivation, rewrite
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    arrays,
    batchnorm,
    difference,
    exported,
    graph,
    nodes_of,
    normal,
    operators,
    random_densenet,
    run_onnxruntime,
    run_openvino,
    serialized,
)

NET = "densenet-bc-16-8"
IMAGES = 32
POLICIES: tuple[ConcatPolicy, ...] = ("equalized", "shared", "per-producer", "after-bn-relu")
CPU: tuple[Target, ...] = ("onnxruntime", "openvino")
TENSORRT: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx")


@functools.cache
def quantized(target: Target, policy: ConcatPolicy = "equalized", **options: Any) -> Int8Result:
    """The exported net, not yet rewritten, in INT8."""
    config = QuantizeConfig(images=IMAGES, policy=policy, **options)
    export = exported(NET, fuse=False)
    return to_int8(export.model, config, target, export.images[:IMAGES])


@functools.cache
def expected_logits() -> NDArray[np.float32]:
    """Of the first images, in fp32."""
    export = exported(NET, fuse=False)
    return run_onnxruntime(export.content, export.images[:IMAGES])


def loaded(model: ir.Model) -> ir.Model:
    """As it is read back from a file."""
    return ir.from_proto(onnx.load_from_string(to_bytes(model)))


def noise(found: NDArray[Any], reference: NDArray[Any]) -> float:
    """Norm of the error, relative to the reference's."""
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def run_everywhere(result: Int8Result, images: NDArray[np.float32]) -> list[NDArray[Any]]:
    """By ONNX Runtime, without and with its optimizations, and by OpenVINO."""
    content = to_bytes(result.model)
    return [
        run_onnxruntime(content, images),
        run_onnxruntime(content, images, optimized=True),
        run_openvino(loaded(result.model), images),
    ]


@settings(max_examples=30, derandomize=True)
@given(
    RANDOM_NETS, st.sampled_from(TARGETS), st.sampled_from(POLICIES), st.booleans(), st.booleans()
)
def test_random_densenets(
    net: RandomNet, target: Target, policy: ConcatPolicy, folded: bool, corrected: bool
) -> None:
    model, images = random_densenet(net), normal(8, net.channels[0], *net.size)
    expected = run_onnxruntime(model, images)
    source = rewrite(model.clone(), RULES[target]).model if folded else model
    before = serialized(source)
    config = QuantizeConfig(8, method="minmax", policy=policy, bias_correction=corrected)
    result = to_int8(source, config, target, images)
    assert serialized(source) == before
    check_legal(result.model, target)
    assert difference(run_onnxruntime(result.reference, images), expected) <= 1e-5
    plain, optimized, openvino = run_everywhere(result, images)
    # Tiny nets with one scale for all: a channel may get few levels.
    assert noise(plain, expected) <= (0.2 if policy == "shared" else 0.1)
    # What lies between two levels may round either way: half differs, and so do sums.
    for other in (optimized, openvino):
        assert difference(other, plain) <= 0.03
    signed = target in TENSORRT
    convolutions = nodes_of(result.model, "Conv")
    stems = [node for node in convolutions if node.inputs[0].name.startswith("images")]  # type: ignore[union-attr]
    assert len(result.quantized) == len(convolutions) - len(stems) * signed


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("target", TARGETS)
def test_an_exported_net(target: Target, policy: ConcatPolicy) -> None:
    result, images = quantized(target, policy), exported(NET, fuse=False).images[:IMAGES]
    expected = expected_logits()
    assert difference(run_onnxruntime(result.reference, images), expected) <= 1e-5
    check_legal(result.model, target)
    plain, optimized, openvino = run_everywhere(result, images)
    # Random scales of either sign amplify rounding: a trained net does far better.
    limit = {"equalized": 0.08, "after-bn-relu": 0.2}.get(policy, 0.6)
    assert noise(plain, expected) <= limit
    for other in (optimized, openvino):
        assert noise(other, plain) <= limit / 2
    assert len(result.blocks) == (0 if policy == "after-bn-relu" else 3)
    for block in result.blocks:
        assert (block.worst < 0.01) == (policy == "equalized")


def test_equalization_serves_accuracy() -> None:
    images = exported(NET, fuse=False).images[:IMAGES]
    expected = expected_logits()
    for target in ("onnxruntime", "tensorrt"):
        found = {
            policy: noise(run_onnxruntime(quantized(target, policy).model, images), expected)
            for policy in ("equalized", "per-producer", "shared")
        }
        assert 2 * found["equalized"] < min(found["per-producer"], found["shared"])


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_every_calibration_method_is_close(target: Target, method: Any) -> None:
    images = exported(NET, fuse=False).images[:IMAGES]
    expected = expected_logits()
    result = quantized(target, method=method)
    assert noise(run_onnxruntime(result.model, images), expected) <= 0.1


def producers(model: ir.Model, operator: str) -> list[set[str]]:
    """Of each node of an operator: who computes its inputs, or `constant`."""
    makers = [
        [value.producer() for value in node.inputs if value is not None and value.producer()]
        for node in nodes_of(model, operator)
    ]
    return [{maker.op_type for maker in found if maker} for found in makers]


@pytest.mark.parametrize("target", CPU)
def test_cpus_compute_in_integers(target: Target) -> None:
    model = loaded(quantized(target).model)
    count = operators(model)
    convolutions = nodes_of(model, "Conv")
    assert len(convolutions) == 15 + 2, "and two pools"
    left = {"Conv", "Concat", "Max", "Min", "Relu", "QuantizeLinear", "DequantizeLinear"}
    assert count.keys() == left | {"ReduceMean", "Reshape", "Gemm"}
    values = arrays(model)
    for node in convolutions:
        data, weight, bias = (value.producer() for value in node.inputs if value)
        assert data and weight and bias
        assert {n.op_type for n in (data, weight, bias)} == {"DequantizeLinear"}
        kinds = [n.inputs[0] for n in (data, weight, bias)]
        assert [str(value.dtype) for value in kinds if value] == ["UINT8", "INT8", "INT32"]
        scale, weights, biases = (values[str(n.inputs[1].name)] for n in (data, weight, bias))  # type: ignore[union-attr]
        np.testing.assert_allclose(biases, scale * weights, rtol=1e-6)
        assert scale.shape == () and weights.shape == (node.outputs[0].shape[1],)  # type: ignore[index]
    for operator in ("Concat", "Max", "Min"):
        found = nodes_of(model, operator)
        assert found and all(node.outputs[0].dtype == ir.DataType.UINT8 for node in found)


@pytest.mark.parametrize("target", TENSORRT)
def test_tensorrt_takes_int8_around_zero_and_half(target: Target) -> None:
    result = quantized(target)
    model = loaded(result.model)
    assert len(result.quantized) == 14, "all but the stem, which reads pixels"
    values = arrays(model)
    kinds = Counter(array.dtype for array in values.values())
    assert set(kinds) <= {np.dtype(kind) for kind in (np.int8, np.float16, np.int64)}
    for node in (*nodes_of(model, "QuantizeLinear"), *nodes_of(model, "DequantizeLinear")):
        scale, zero = (values[str(value.name)] for value in node.inputs[1:] if value)
        assert zero.dtype == np.int8 and not zero.any() and scale.dtype == np.float16
        assert (scale > 0).all() and zero.shape == scale.shape
    inside = [n.outputs[0].dtype for n in model.graph if n.op_type != "QuantizeLinear"][:-1]
    assert set(inside) == {ir.DataType.FLOAT16}
    behind = {
        node.op_type for conv in nodes_of(model, "Conv") for node, _ in conv.outputs[0].uses()
    }
    assert ("Mul" in behind) == (target == "tensorrt-rtx")
    for node in nodes_of(model, "Conv"):
        quantizer = node.inputs[1].producer()  # type: ignore[union-attr]
        if node.name in result.quantized:
            assert quantizer is not None and quantizer.op_type == "DequantizeLinear"
            shape = values[str(quantizer.inputs[1].name)].shape  # type: ignore[union-attr]
            assert (len(shape) == 0) == (target == "tensorrt-rtx"), "per tensor"
        else:
            assert node.name == "features.conv0" and quantizer is None


@pytest.mark.parametrize("target", TENSORRT)
def test_what_a_dense_block_gathers_is_int8(target: Target) -> None:
    """Quantized where it is written, not once for each reader."""
    model = loaded(quantized(target).model)
    assert all(found == {"DequantizeLinear"} for found in producers(model, "Concat"))
    after = loaded(quantized(target, "after-bn-relu").model)
    assert not any("DequantizeLinear" in found for found in producers(after, "Concat"))


def layers(result: Int8Result, path: Path) -> EngineLayers:
    """What TensorRT-RTX makes of it."""
    pytest.importorskip("tensorrt_rtx")
    config = BuildConfig(profiles=((1, 1, 1),), compute_capabilities=("8.9",))
    build_engine(to_bytes(result.model), config, log=path)
    return parse_build_log(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("policy", ["equalized", "after-bn-relu"])
def test_tensorrt_rtx_reads_int8_in_every_convolution(policy: Any, tmp_path: Path) -> None:
    found = layers(quantized("tensorrt-rtx", policy), tmp_path / "log")
    convolutions = found.of("convolution").layers
    assert len(convolutions) == 15 and found.without_int8() == ("features.conv0",)
    written = Counter(layer.outputs[0].dtype for layer in convolutions)
    assert not written["Float"], "bias and ReLU are not a kernel of their own"


def test_per_channel_weights_make_tensorrt_rtx_emit_float(tmp_path: Path) -> None:
    """Why its form is a Mul behind a convolution with one scale."""
    own = layers(quantized("tensorrt-rtx"), tmp_path / "own")
    other = layers(quantized("tensorrt-rtx", weights="per-channel"), tmp_path / "other")
    written = Counter(layer.outputs[0].dtype for layer in other.of("convolution").layers)
    assert written["Float"] >= 10
    assert own.bytes_out is not None and other.bytes_out is not None
    assert own.bytes_out < other.bytes_out


@pytest.mark.parametrize("weights", ["per-tensor", "per-channel", "per-channel-mul"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_every_form_of_weights_on_every_target(target: Target, weights: Any) -> None:
    result, images = quantized(target, weights=weights), exported(NET, fuse=False).images[:IMAGES]
    expected = expected_logits()
    check_legal(result.model, target)
    assert noise(run_onnxruntime(to_bytes(result.model), images), expected) <= 0.15


KEPT = ("features.denseblock2", "features.transition1.conv", "features.denseblock1.denselayer1")


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt-rtx"])
def test_keep_float_keeps_exactly_those(target: Target) -> None:
    whole, part = quantized(target), quantized(target, keep_float=KEPT)
    model = loaded(part.model)
    plain = {
        node.name
        for node in nodes_of(model, "Conv")
        if (maker := node.inputs[1].producer()) is None or maker.op_type != "DequantizeLinear"  # type: ignore[union-attr]
    }
    wanted = {
        name for name in whole.quantized if f"{name}.".startswith(tuple(f"{k}." for k in KEPT))
    }
    assert len(wanted) == 7, "a block of two layers, one layer, one transition"
    assert plain == wanted | {"features.conv0"} - set(whole.quantized)
    assert set(part.quantized) == set(whole.quantized) - wanted
    check_legal(part.model, target)
    images = exported(NET, fuse=False).images[:IMAGES]
    expected = expected_logits()
    assert noise(run_onnxruntime(to_bytes(part.model), images), expected) <= 0.1


@pytest.mark.parametrize(
    "name", ["features.denseblock9", "features.denseblock", "features.norm5", "classifier", ""]
)
def test_keep_float_refuses_what_holds_no_convolution(name: str) -> None:
    export = exported(NET, fuse=False)
    config = QuantizeConfig(images=2, policy="after-bn-relu", method="minmax", keep_float=(name,))
    with pytest.raises(GraphError, match=f"keep_float names '{name}', which holds no convolution"):
        to_int8(export.model, config, "onnxruntime", export.images[:2])


def test_nothing_is_left_to_quantize() -> None:
    export = exported(NET, fuse=False)
    config = QuantizeConfig(images=2, method="minmax", keep_float=("features",))
    with pytest.raises(GraphError, match="no convolution with constant weights to quantize"):
        to_int8(export.model, config, "onnxruntime", export.images[:2])


def test_bias_correction_reduces_the_mean_error() -> None:
    """Of convolutions with unpadded kernels over inputs whose mean is not zero."""
    weights = {"w": normal(8, 4, 1, 1, seed=1), "v": normal(6, 8, 1, 1, seed=2)}
    model = graph("c = Conv(x, w) r = Relu(c) y = Conv(r, v)", weights)
    images = normal(16, 4, 8, 8) + 2
    expected = run_onnxruntime(model, images)
    errors = []
    for corrected in (False, True):
        config = QuantizeConfig(
            16, method="minmax", weights="per-tensor", bias_correction=corrected
        )
        for target in ("onnxruntime", "tensorrt"):
            found = run_onnxruntime(to_int8(model, config, target, images).model, images)
            errors.append(np.abs((found - expected).mean((0, 2, 3))).mean())
    assert max(errors[2:]) < min(errors[:2]) / 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("policy", ["equalized", "after-bn-relu"])
def test_a_folded_source_is_as_good(target: Target, policy: ConcatPolicy) -> None:
    """What `export` writes for a target is rewritten already."""
    export = exported(NET, fuse=False)
    images = export.images[:IMAGES]
    folded = rewrite(export.model, RULES[target]).model
    config = QuantizeConfig(images=IMAGES, policy=policy)
    found = to_int8(folded, config, target, images)
    whole = quantized(target, policy)
    assert operators(found.model) == operators(whole.model)
    assert [len(b.covered) for b in found.blocks] == [len(b.covered) for b in whole.blocks]
    expected = expected_logits()
    errors = [noise(run_onnxruntime(r.model, images), expected) for r in (found, whole)]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt-rtx"])
def test_the_same_images_give_the_same_bytes(target: Target) -> None:
    export = exported(NET, fuse=False)
    config = QuantizeConfig(images=IMAGES)
    again = to_int8(export.model, config, target, export.images[:IMAGES].copy())
    assert to_bytes(again.model) == to_bytes(quantized(target).model)
    assert serialized(again.reference) == serialized(quantized(target).reference)


@pytest.mark.parametrize("fold", [False, True], ids=["BatchNorm", "folded"])
@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize("target", [*CPU, "tensorrt"])
@pytest.mark.parametrize("policy", ["equalized", "after-bn-relu"])
def test_openvino_agrees_where_a_convolution_is_read_twice(
    fold: bool, pads: int, target: Target, policy: ConcatPolicy
) -> None:
    """OpenVINO 2026.4 is wrong by 80 % here unless the first convolution has a bias."""
    body = "z = Conv(x, u) c = Conv <pads = [1, 1, 1, 1]>(z, w)"
    body += " n = BatchNormalization(c, gamma, beta, mean, var) r = Relu(n)"
    body += f" d = Conv <pads = [{pads}, {pads}, {pads}, {pads}]>(r, v)"
    weights = {
        "u": normal(4, 4, 1, 1),
        "w": normal(24, 4, 3, 3) * 0.2,
        "v": normal(12, 24, 1 + 2 * pads, 1 + 2 * pads) * 0.1,
    }
    model = graph(f"{body} y = Concat <axis = 1>(c, d)", weights | batchnorm(24))
    if fold:
        rewrite(model, [fold_preactivation])
    images = normal(4, 4, 8, 8)
    config = QuantizeConfig(images=4, policy=policy, bias_correction=False)
    result = to_int8(model, config, target, images)
    found, expected = run_openvino(result.model, images), run_onnxruntime(result.model, images)
    assert difference(found, expected) <= 0.02


@pytest.mark.parametrize("target", TARGETS)
def test_a_channel_without_weights_keeps_its_bias(target: Target) -> None:
    """A pruned channel is its bias; int32 counts it in steps of the weight's scale."""
    weight, bias = normal(6, 8, 1, 1, seed=2), normal(6) * 3
    weight[1], weight[2] = 0, weight[2] * 1e-9
    constants = {"w": normal(8, 4, 1, 1, seed=1), "v": weight, "b": bias}
    model = graph("c = Conv(x, w) r = Relu(c) d = Conv(r, v, b) y = Neg(d)", constants)
    images = normal(4, 4, 8, 8)
    result = to_int8(model, QuantizeConfig(images=4, method="minmax"), target, images)
    expected = run_onnxruntime(model, images)
    for found in run_everywhere(result, images):
        assert difference(found, expected) <= 0.02


@pytest.mark.parametrize("target", TARGETS)
def test_dead_channels_and_dead_blocks(target: Target) -> None:
    """Images that are black, and a weight that is zero: no range is empty."""
    net = RandomNet(
        5, (2, 4), (8, 8), (2, 1), 3, True, True, True, "after", "ReduceMean", (1, -1), True
    )
    model = random_densenet(net)
    for name, value in model.graph.initializers.items():
        if name == "weight0" and value.const_value is not None:
            array = value.const_value.numpy().copy()
            array[1] = 0
            value.const_value = ir.tensor(array, name=name)
    for images in (normal(4, 2, 8, 8), np.zeros((4, 2, 8, 8), np.float32)):
        for method in ("minmax", "mse", "percentile", "entropy"):
            config = QuantizeConfig(images=4, method=method)  # type: ignore[arg-type]
            result = to_int8(model, config, target, images)
            found = run_onnxruntime(to_bytes(result.model), images)
            assert difference(found, run_onnxruntime(model, images)) <= 0.25


def test_a_block_that_cannot_be_equalized_shares_a_scale_as_it_is() -> None:
    """An Add writes into the concatenation, so no convolution can absorb a factor."""
    body = (
        "c = Conv(x, w) d = Conv(x, v) a = Add(c, d) e = Conv(x, s) k = Concat <axis = 1>(a, e) "
        "n = BatchNormalization(k, gamma, beta, mean, var) r = Relu(n) z = Conv(r, u) q = Relu(z) "
        "y = Conv(q, t)"
    )
    constants = batchnorm(8) | {
        "w": 9 * normal(4, 4, 1, 1),
        "v": normal(4, 4, 1, 1, seed=1),
        "s": normal(4, 4, 1, 1, seed=4),
        "u": normal(4, 8, 1, 1, seed=2),
        "t": normal(2, 4, 1, 1, seed=3),
    }
    constants["gamma"] = np.abs(constants["gamma"]) + np.float32(0.1)
    model, images = graph(body, constants), normal(16, 4, 8, 8)
    found = to_int8(model, QuantizeConfig(images=16), "onnxruntime", images)
    assert len(found.blocks) == 1 and not found.blocks[0].factors
    expected = run_onnxruntime(model, images)
    assert difference(run_onnxruntime(found.model, images), expected) < 0.1
