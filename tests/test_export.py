"""From torch to ONNX: the exported graphs against torch, and what must and must not be in them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import densenet_deploy
from densenet_deploy import data
from densenet_deploy.data import ImageSet
from densenet_deploy.errors import GraphError
from densenet_deploy.export import export_onnx, from_bytes, to_bytes
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.preprocess import Preprocessing
from densenet_deploy.recipe import ExportConfig
from densenet_deploy.source import calibrate_batchnorm
from densenet_deploy.spec import variant
from tests.graphs import (
    Exported,
    difference,
    exported,
    graph,
    infer,
    normal,
    operators,
    run_onnxruntime,
    run_openvino,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = "densenet-10-4", (1, 8, 8)
EXPORTS = [
    ("densenet121", "tensorrt"),
    ("densenet-bc-40-12", "tensorrt"),
    ("densenet-bc-40-12", "onnxruntime"),
]


@pytest.fixture(params=EXPORTS, ids=["-".join(export) for export in EXPORTS])
def export(request: pytest.FixtureRequest) -> Exported:
    """Each of the nets that are exported once per process."""
    return exported(*request.param)


def export_tiny(training: bool = True, opset: int = 20) -> tuple[DenseNet, bytes]:
    """A net that exports fast, and its export."""
    net = create_model(TINY[0], TINY[1], classes=3, seed=0).train(training)
    return net, to_bytes(export_onnx(net, TINY[1], ExportConfig(opset=opset)).model)


@pytest.fixture(scope="module")
def tiny() -> tuple[DenseNet, bytes]:
    """One such export."""
    return export_tiny()


def test_rewrites_of_densenet121() -> None:
    export = exported("densenet121")
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in export.net.modules())
    assert norms == 121
    # The exporter folds norm0 and each layer's norm2 into the convolution before: 1 + 58.
    assert export.result.counts == {"pool_before_conv": 3, "fold_preactivation": 121 - 59}
    assert export.result.refusals == ()
    assert export.result.summary() == "rewrites: pool_before_conv x3, fold_preactivation x62"
    found = operators(export.model)
    assert "BatchNormalization" not in found
    assert (found["Conv"], found["Relu"], found["Add"], found["Mul"]) == (120, 121, 62, 62)


def test_rewrites_of_a_net_for_onnxruntime() -> None:
    export = exported("densenet-bc-40-12", "onnxruntime")
    assert export.result.counts == {"pool_before_conv": 2, "chain_concat": 15}
    assert operators(export.model)["BatchNormalization"] == 21
    assert operators(exported("densenet-bc-40-12").model).get("BatchNormalization") is None


def test_no_rewrites_without_fuse() -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    assert (export.result.counts, export.result.refusals) == ({}, ())
    assert operators(export.model)["BatchNormalization"] == 21
    conv = next(node for node in export.model.graph if node.name == "features.transition1.conv")
    assert [use.node.op_type for use in conv.outputs[0].uses()] == ["AveragePool"]


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_are_those_of_torch(export: Exported, batch: int) -> None:
    images = export.images[:batch]
    logits = export.run_torch(images)
    assert logits.std() > 0.01, "the logits of a dead net would equal anything"
    assert difference(run_onnxruntime(export.content, images), logits) <= 1e-4


def test_logits_of_openvino() -> None:
    export = exported("densenet121")
    images = export.images[:2]
    assert difference(run_openvino(export.model, images), export.run_torch(images)) <= 1e-4


def test_logits_without_fuse() -> None:
    export = exported("densenet-bc-40-12", fuse=False)
    images = export.images[:2]
    assert difference(run_onnxruntime(export.content, images), export.run_torch(images)) <= 1e-4


def test_a_valid_model_with_a_dynamic_batch(export: Exported) -> None:
    proto = onnx.load_from_string(export.content)
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
    images, logits = (
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (proto.graph.input[0], proto.graph.output[0])
    )
    assert images == ["batch", *export.net.spec.input_shape]
    assert logits == ["batch", 10]
    assert len(proto.graph.input) == len(proto.graph.output) == 1
    assert (proto.graph.input[0].name, proto.graph.output[0].name) == ("images", "logits")


def test_strict_shape_inference_agrees_with_stored_shapes(export: Exported) -> None:
    proto = onnx.load_from_string(export.content)
    stored = {value.name: shape_of(value) for value in proto.graph.value_info}
    del proto.graph.value_info[:]
    inferred = {value.name: shape_of(value) for value in infer(proto).graph.value_info}
    activations = [node.output[0] for node in proto.graph.node[:-1]]
    assert set(activations) <= stored.keys()
    for name in activations:
        assert stored[name][1:] == inferred[name][1:], name


def shape_of(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_metadata(export: Exported) -> None:
    proto = onnx.load_from_string(export.content)
    assert [(entry.key, entry.value) for entry in proto.metadata_props] == [
        ("alpha", "first"),
        ("zeta", "last"),
    ]
    assert (proto.producer_name, proto.producer_version) == ("densenet-deploy", "")
    assert (proto.graph.name, proto.doc_string, proto.graph.doc_string) == ("densenet", "", "")


def test_nothing_of_this_machine_is_in_the_bytes(export: Exported) -> None:
    proto = onnx.load_from_string(export.content)
    for tensor in proto.graph.initializer:  # random weights may spell anything
        tensor.ClearField("raw_data")
    text = proto.SerializeToString()
    root = str(Path(densenet_deploy.__file__).parents[1]).encode()
    for trace in (root, b"site-packages", b"stack_trace", b"torch", b".py", b"/home", b"/root"):
        assert trace not in text


def test_nodes_are_named_after_their_modules() -> None:
    export = exported("densenet121")
    names = [node.name for node in export.model.graph]
    assert len(set(names)) == len(names) and all(names)
    convolutions = {
        name
        for name, module in export.net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    assert {
        node.name for node in export.model.graph if node.op_type in ("Conv", "Gemm")
    } == convolutions
    assert {"features.norm5.add", "features.transition1.averagepool"} <= set(names)
    modules = dict(export.net.named_modules())
    for node in export.model.graph:
        assert node.name is not None
        # `<module>.<operator>` or `<module>`, or what the model itself computes
        owner = node.name if node.name in modules else node.name.rpartition(".")[0]
        assert owner in modules or owner == "model", node.name


def test_norms_keep_the_names_of_their_modules() -> None:
    export = exported("densenet-bc-40-12", "onnxruntime")
    modules = dict(export.net.named_modules())
    norms = [node.name for node in export.model.graph if node.op_type == "BatchNormalization"]
    assert len(norms) == 21
    assert all(isinstance(modules[str(name)], nn.BatchNorm2d) for name in norms)


def test_pooling_first_saves_eight_percent_of_densenet121() -> None:
    spec = variant("densenet121", classes=10)
    found = count_macs(exported("densenet121").model, (3, 224, 224))
    # A transition from c to c / 2 channels at s x s pixels saves three quarters of its MACs.
    saved = sum(3 * c * (c // 2) * s * s // 4 for c, s in ((256, 56), (512, 28), (1024, 14)))
    assert found == spec.macs - saved
    assert 0.08 < saved / spec.macs < 0.085


def count_macs(model: ir.Model, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and Gemm for one image of another size."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, (1, *shape), strict=True):
        dim.dim_value = size
    shapes = {value.name: shape_of(value) for value in infer(proto).graph.value_info}
    weights = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    total = 0
    for node in proto.graph.node:
        if node.op_type == "Conv":
            total += int(np.prod([*weights[node.input[1]], *shapes[node.output[0]][2:]]))
        elif node.op_type == "Gemm":
            total += int(np.prod(weights[node.input[1]]))
    return total


def test_the_same_bytes_in_another_process(tiny: tuple[DenseNet, bytes]) -> None:
    program = (
        "import hashlib, torch\n"
        "torch.set_num_threads(1)\n"
        "from densenet_deploy.export import export_onnx, to_bytes\n"
        "from densenet_deploy.model import create_model\n"
        "from densenet_deploy.recipe import ExportConfig\n"
        f"net = create_model({TINY[0]!r}, {TINY[1]!r}, classes=3, seed=0)\n"
        f"content = to_bytes(export_onnx(net, {TINY[1]!r}, ExportConfig()).model)\n"
        "print(hashlib.sha256(content).hexdigest())\n"
    )
    root = str(Path(densenet_deploy.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", program]
    other = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert other.stdout.split()[-1] == hashlib.sha256(tiny[1]).hexdigest()


def test_the_same_bytes_again_and_without_chatter(
    tiny: tuple[DenseNet, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    assert export_tiny(training=False)[1] == tiny[1]
    assert capfd.readouterr() == ("", "")


def test_a_newer_opset() -> None:
    proto = onnx.load_from_string(export_tiny(opset=22)[1])
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 22)]


def test_the_module_is_left_as_it_was(tiny: tuple[DenseNet, bytes]) -> None:
    net, content = tiny
    assert all(module.training for module in net.modules())
    assert not any(module.training for module in exported("densenet121").net.modules())
    fresh = create_model(TINY[0], TINY[1], classes=3, seed=0)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name
    with torch.inference_mode():
        logits = np.asarray(fresh.eval()(torch.from_numpy(normal(2, *TINY[1]))))
    found = run_onnxruntime(content, normal(2, *TINY[1]))
    assert difference(found, logits) <= 1e-4, "exported in evaluation mode"


def test_bytes_round_trip() -> None:
    model = graph("y = Relu(x)", {})
    content = to_bytes(model)
    assert to_bytes(from_bytes(content, "a file")) == content


def test_to_bytes_refuses_an_invalid_graph() -> None:
    model = graph("c = Relu(x) y = Sigmoid(c)", {})
    model.graph[0].outputs[0].name = "x"
    with pytest.raises(GraphError, match=r"the ONNX checker refuses the graph: .*SSA"):
        to_bytes(model)


def test_to_bytes_refuses_contradicting_shapes() -> None:
    model = graph("c = Relu(x) y = Sigmoid(c)", {})
    model.graph[0].outputs[0].shape = ir.Shape(["N", 5, 8, 8])
    with pytest.raises(GraphError, match=r"the ONNX checker refuses the graph: .*[Ss]hape"):
        to_bytes(model)


@pytest.mark.parametrize("content", [b"", b"no model", to_bytes(graph("y = Relu(x)", {}))[:30]])
def test_from_bytes_refuses_what_is_not_a_model(content: bytes) -> None:
    with pytest.raises(GraphError, match=r"^best\.onnx is not a valid ONNX model \(.+\)"):
        from_bytes(content, "best.onnx")


@pytest.mark.parametrize("location", ["/etc/passwd", "../../../../etc/passwd"])
def test_from_bytes_refuses_weights_elsewhere(location: str) -> None:
    proto = ir.to_proto(graph("y = Conv(x, w)", {"w": normal(5, 4, 1, 1)}))
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    with pytest.raises(GraphError, match="is not a valid ONNX model"):
        from_bytes(proto.SerializeToString(), "evil.onnx")


IMAGES = Preprocessing(8, 8, mean=(0.4,), std=(0.3,))


def images(count: int) -> ImageSet:
    return data.synthetic(count, IMAGES, seed=3)


def batches(count: int, size: int) -> Iterator[NDArray[np.float64]]:
    """What the first BatchNorm of the tiny net reads: the stem convolution of each batch."""
    net = create_model(TINY[0], TINY[1], classes=3, seed=0)
    pixels = torch.from_numpy(IMAGES.normalise(images(count).pixels))
    for start in range(0, count, size):
        with torch.no_grad():
            yield net.features.conv0(pixels[start : start + size]).double().numpy()


@pytest.mark.parametrize("count, size", [(12, 4), (10, 4), (3, 16)])
def test_batchnorm_statistics_are_those_of_the_batches(count: int, size: int) -> None:
    net = create_model(TINY[0], TINY[1], classes=3, seed=0)
    calibrate_batchnorm(net, images(count), IMAGES, batch_size=size)
    norm = net.features.denseblock1.denselayer1.norm1
    read = list(batches(count, size))
    means = np.mean([batch.mean((0, 2, 3)) for batch in read], axis=0)
    variances = np.mean([batch.var((0, 2, 3), ddof=1) for batch in read], axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), means, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), variances, rtol=1e-4)


def test_calibrated_activations_have_unit_scale() -> None:
    net = create_model("densenet-40-12", (1, 8, 8), classes=3, seed=0).eval()
    calibrate_batchnorm(net, images(32), IMAGES)
    seen: list[torch.Tensor] = []
    net.features.norm5.register_forward_hook(  # a copy: ReLU writes over it
        lambda _module, _inputs, output: seen.append(output.clone())
    )
    with torch.inference_mode():
        net(torch.from_numpy(IMAGES.normalise(images(32).pixels)))
    assert 0.8 < float(seen[0].std()) < 1.25


def test_calibration_again_forgets_the_first() -> None:
    once, twice = (create_model(TINY[0], TINY[1], classes=3, seed=0) for _ in range(2))
    calibrate_batchnorm(twice, data.synthetic(8, IMAGES, seed=9), IMAGES)
    for net in (once, twice):
        calibrate_batchnorm(net, images(8), IMAGES)
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_calibration_restores_momentum_and_mode(training: bool) -> None:
    net = create_model(TINY[0], TINY[1], classes=3, seed=0).train(training)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta: list[float | None] = [0.01 * index for index in range(len(norms) - 1)]
    momenta.append(None)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    parameters = [parameter.clone() for parameter in net.parameters()]
    calibrate_batchnorm(net, images(8), IMAGES)
    assert [norm.momentum for norm in norms] == momenta
    assert all(module.training is training for module in net.modules())
    assert all(map(torch.equal, parameters, net.parameters())), "only statistics change"
    assert all(parameter.grad is None for parameter in net.parameters())
