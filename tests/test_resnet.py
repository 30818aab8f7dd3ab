"""ResNets against torchvision's, the paper's formula, torch's FLOP counter and the runtimes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, relu
from torch.utils.flop_counter import FlopCounterMode

from densenet_deploy import checkpoint
from densenet_deploy.checkpoint import CheckpointInfo
from densenet_deploy.errors import CheckpointError, RecipeError
from densenet_deploy.export import export_onnx, from_bytes, to_bytes
from densenet_deploy.model import build_network, create_model
from densenet_deploy.preprocess import FASHION_MNIST
from densenet_deploy.quantize import quantize
from densenet_deploy.recipe import ExportConfig, Precision, QuantizeConfig, Target
from densenet_deploy.resnet import ResNet
from densenet_deploy.resnet_spec import ResNetSpec
from densenet_deploy.rewrite import RULES, rewrite
from densenet_deploy.runtime import open_graph
from densenet_deploy.spec import variant

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["resnet-preact-8-4", "resnet-preact-b-11-4", "resnet-preact-14-3"]
TORCHVISION: dict[str, Callable[..., nn.Module]] = {
    name: getattr(torchvision.models, name)
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
}


def on_meta(spec: ResNetSpec) -> ResNet:
    """A model with shapes but no numbers."""
    with torch.device("meta"):
        return ResNet(spec).eval()


def scrambled(name: str, shape: tuple[int, int, int], classes: int) -> ResNet:
    """A model with random BatchNorm statistics too, as after training."""
    model = create_model(name, shape, classes, seed=0).eval()
    assert isinstance(model, ResNet)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var, module.bias.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            module.running_mean.copy_(torch.randn(len(tensor), generator=generator))
    return model


@pytest.mark.parametrize("name", [*TORCHVISION, "resnet-preact-110", *SMALL])
def test_torch_counts_what_the_spec_says(name: str) -> None:
    spec = variant(name)
    assert isinstance(spec, ResNetSpec)
    model = on_meta(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    named = dict(model.named_modules())
    weighted = [
        name
        for name, module in named.items()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not {"shortcut", "downsample"} & {*name.split(".")}
    ]
    assert len(weighted) == spec.depth
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.empty(1, *spec.input_shape, device="meta"))
    assert counter.get_total_flops() == 2 * spec.macs
    assert logits.shape == (1, spec.classes)


@settings(max_examples=25)
@given(
    stem=st.sampled_from(["cifar", "imagenet"]),
    block=st.sampled_from(["basic", "bottleneck"]),
    stage_blocks=st.tuples(*[st.integers(1, 2)] * 4),
    channels=st.integers(1, 9),
    input_shape=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70)),
    classes=st.integers(1, 5),
)
def test_counts_of_any_architecture(**fields: Any) -> None:
    if fields["stem"] == "imagenet":
        fields["channels"] = 64
    spec = ResNetSpec(**fields)
    model = on_meta(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(2, *spec.input_shape, device="meta"))
    assert counter.get_total_flops() == 2 * 2 * spec.macs


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = TORCHVISION[name]()
    spec = variant(name)
    assert isinstance(spec, ResNetSpec)
    ours = {key: value.shape for key, value in on_meta(spec).state_dict().items()}
    assert ours == {key: value.shape for key, value in theirs.state_dict().items()}


def test_answers_are_torchvisions() -> None:
    ours = scrambled("resnet18", (3, 64, 64), 5)
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_blocks_are_the_papers(name: str) -> None:
    """x + F(x) of equation 3 of arXiv 1603.05027, with F = conv(relu(bn(...))), written out."""
    model = scrambled(name, (2, 13, 11), 3)
    state = model.state_dict()

    def activated(x: Tensor, norm: str) -> Tensor:
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return relu(batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"]))

    images = torch.randn(2, 2, 13, 11)
    x = conv2d(images, state["conv1.weight"], padding=1)
    for stage in range(1, 4):
        for index in range(len(model.get_submodule(f"layer{stage}"))):  # type: ignore[arg-type]
            at = f"layer{stage}.{index}"
            kept, new = x, x
            halves = [stage > 1 and index == 0]  # once, at the first 3x3 convolution
            for number in range(1, 4):
                if f"{at}.conv{number}.weight" not in state:
                    continue
                new = activated(new, f"{at}.norm{number}")
                if number == 1 and index == 0:
                    kept = new
                weight = state[f"{at}.conv{number}.weight"]
                wide = weight.shape[2] == 3
                stride = 2 if wide and halves and halves.pop() else 1
                new = conv2d(new, weight, stride=stride, padding=int(wide))
            if f"{at}.shortcut.weight" in state:
                stride = 2 if stage > 1 else 1
                kept = conv2d(kept, state[f"{at}.shortcut.weight"], stride=stride)
            x = kept + new
    pooled = activated(x, "norm").mean((2, 3))
    torch.testing.assert_close(
        model(images), pooled @ state["fc.weight"].T + state["fc.bias"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["resnet-preact-8-64", "resnet18"])
@pytest.mark.parametrize("initialisation", ["fan-out", "fan-in"])
def test_initial_weights_are_hes(name: str, initialisation: Any) -> None:
    model = create_model(name, seed=0, initialisation=initialisation)
    conv = model.get_submodule("layer2.0.conv1")  # as many more out of it as into it
    assert isinstance(conv, nn.Conv2d) and conv.out_channels == 2 * conv.in_channels
    fan = 9 * (conv.out_channels if initialisation == "fan-out" else conv.in_channels)
    assert conv.weight.std().item() == pytest.approx(sqrt(2 / fan), rel=0.02)
    assert not model.get_submodule("fc").bias.any()  # type: ignore[operator]


def test_created_model_fits_its_arguments() -> None:
    model = create_model("resnet-preact-8-4", (1, 12, 8), classes=3, memory_efficient=True)
    assert model.training and model.spec == variant("resnet-preact-8-4", (1, 12, 8), 3)
    assert model(torch.zeros(2, 1, 12, 8)).shape == (2, 3)
    with pytest.raises(
        RecipeError, match=r"resnet-preact-8-4 with dropout; expected train.dropout"
    ):
        create_model("resnet-preact-8-4", dropout=0.2)


def test_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    model = scrambled("resnet-preact-b-11-4", (1, 28, 28), 10)
    path = tmp_path / "net.safetensors"
    checkpoint.save(path, model, CheckpointInfo(model.spec, FASHION_MNIST, ("a",) * 10, {}))
    info = checkpoint.read_info(path)
    assert info is not None and info.spec == model.spec
    rebuilt = build_network(info.spec).eval()
    checkpoint.load_weights(path, rebuilt)
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(rebuilt(images), model(images))
    with pytest.raises(CheckpointError, match="does not fit this architecture"):
        checkpoint.load_weights(path, create_model("densenet-bc-10-4", (1, 28, 28)))


NETWORKS = {
    "imagenet": ResNetSpec("imagenet", "basic", (1, 1, 1, 1), 64, (3, 40, 40), 10),
    "preact": variant("resnet-preact-8-4", (1, 28, 28)),
    "preact-b": variant("resnet-preact-b-11-4", (1, 28, 28)),
}


@dataclass(frozen=True)
class Exported:
    """A network with statistics as after training, images, its logits of them, and its graph."""

    spec: ResNetSpec
    images: NDArray[np.float32]
    logits: NDArray[np.float32]
    plain: bytes


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request: pytest.FixtureRequest) -> Exported:
    spec = NETWORKS[request.param]
    assert isinstance(spec, ResNetSpec)
    torch.manual_seed(0)
    model = ResNet(spec)
    images = torch.randn(24, *spec.input_shape)
    for module in model.modules():  # statistics of these images: activations of unit scale
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        model(images)
        logits = model.eval()(images).numpy()
    config = ExportConfig(fuse=False)
    graph = export_onnx(model, spec.input_shape, config).model
    return Exported(spec, images.numpy(), logits, to_bytes(graph))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt-rtx"])
def test_graphs_answer_as_pytorch(exported: Exported, target: Target, tmp_path: Path) -> None:
    scale = np.abs(exported.logits).max()
    fused = rewrite(from_bytes(exported.plain, "plain"), RULES[target]).model
    backend = "openvino" if target == "openvino" else "onnxruntime"
    precisions: tuple[tuple[Precision, float], ...] = (
        ("fp32", 1e-4),
        ("fp16", 2e-2),
        ("int8", 0.2),
    )
    for precision, bound in precisions:
        config = QuantizeConfig(images=24, method="minmax")
        graph = quantize(fused, precision, config, exported.images, target)
        path = tmp_path / f"{precision}.onnx"
        path.write_bytes(to_bytes(graph))
        found = open_graph(path, backend, 1)(exported.images)
        assert np.abs(found - exported.logits).max() < bound * scale, precision
        if precision == "int8":
            kinds = Counter(node.op_type for node in graph.graph)
            assert kinds["DequantizeLinear"] > kinds["Conv"] > 0
            assert np.corrcoef(found.ravel(), exported.logits.ravel())[0, 1] > 0.99


def test_every_batchnorm_behind_a_convolution_is_folded(exported: Exported) -> None:
    graph, spec = from_bytes(exported.plain, "plain").graph, exported.spec
    nodes = Counter(node.op_type for node in graph)
    assert graph.name == "resnet" and nodes["Conv"] == len(spec.convolutions())
    # Those that remain read a sum: of every block but the last, and of that before the classifier.
    sums = sum(spec.stage_blocks) if spec.stem == "cifar" else 0
    assert nodes["BatchNormalization"] == sums
