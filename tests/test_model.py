"""The torch module against torchvision's DenseNet, torch's own FLOP counter and the spec."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from densenet_deploy.errors import RecipeError
from densenet_deploy.model import DenseNet, Dropout, create_model
from densenet_deploy.spec import VARIANTS, DenseNetSpec, variant

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["densenet-10-4", "densenet-b-10-4", "densenet-c-10-4", "densenet-bc-16-4"]
TORCHVISION: dict[str, Callable[..., nn.Module]] = {
    name: getattr(torchvision.models, name)
    for name in ("densenet121", "densenet161", "densenet169", "densenet201")
}


def on_meta(spec: DenseNetSpec) -> DenseNet:
    """A model with shapes but no numbers."""
    with torch.device("meta"):
        return DenseNet(spec).eval()


def scramble(model: nn.Module, seed: int) -> None:
    """Random values in every weight, BatchNorm statistics too, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.rand(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.copy_((noise - 0.5) / sqrt(tensor[0].numel()))
        else:
            tensor.copy_(noise + 0.5)


@pytest.mark.parametrize("name", [*VARIANTS, *SMALL])
def test_torch_counts_what_the_spec_says(name: str) -> None:
    spec = variant(name)
    model = on_meta(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == spec.depth
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.empty(1, *spec.input_shape, device="meta"))
    assert counter.get_total_flops() == 2 * spec.macs
    assert logits.shape == (1, spec.classes)


@given(
    growth_rate=st.integers(1, 6),
    block_layers=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    init_channels=st.integers(2, 9),
    stem=st.sampled_from(["cifar", "imagenet"]),
    bottleneck=st.booleans(),
    compression=st.floats(0.5, 1),
    input_shape=st.tuples(st.integers(1, 4), st.integers(32, 48), st.integers(32, 48)),
    classes=st.integers(1, 5),
)
def test_counts_of_any_architecture(**fields: Any) -> None:
    spec = DenseNetSpec(**fields)
    model = on_meta(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    sizes = []
    for name, module in model.features.named_children():
        if name.startswith("denseblock"):
            module.register_forward_hook(
                lambda _, inputs, out: sizes.append((inputs[0].shape[1], *out.shape[1:]))
            )
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(2, *spec.input_shape, device="meta"))
    assert counter.get_total_flops() == 2 * 2 * spec.macs
    expected = zip(spec.block_channels(), spec.feature_sizes(), strict=True)
    assert sizes == [(*channels, *size) for channels, size in expected]


@pytest.mark.parametrize("name", ["densenet121", "densenet-bc-10-4"])
def test_spec_accepts_just_the_inputs_torch_can_run(name: str) -> None:
    model = on_meta(variant(name))
    for size in range(1, 40):
        try:
            model(torch.empty(1, 3, size, 64, device="meta"))
            runs = True
        except RuntimeError:
            runs = False
        try:
            variant(name, (3, size, 64))
            accepted = True
        except RecipeError:
            accepted = False
        assert accepted == runs, size


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_state_dict_fits(name: str) -> None:
    with torch.device("meta"):
        reference = TORCHVISION[name](weights=None)
    ours = on_meta(variant(name))
    theirs = reference.state_dict()
    assert list(ours.state_dict()) == list(theirs)
    ours.load_state_dict(theirs, strict=True, assign=True)


def test_logits_equal_torchvisions() -> None:
    reference = TORCHVISION["densenet121"](weights=None)
    scramble(reference, seed=0)
    model = create_model("densenet121", (3, 64, 64))
    model.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, logits = reference.eval()(images), model.eval()(images)
        assert torch.equal(logits, expected)
        assert expected.std() > 0.01  # neither is constant
        # training mode: the batch's own statistics, and the same update of the running ones; the
        # transitions pool first, which is the same but for rounding
        model, reference, images = (
            model.double().train(),
            reference.double().train(),
            images.double(),
        )
        torch.testing.assert_close(model(images), reference(images), rtol=1e-9, atol=1e-11)
    updated = reference.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, updated[name], rtol=1e-9, atol=1e-11, msg=name)


def test_gradients_equal_torchvisions() -> None:
    reference = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5)
    scramble(reference, seed=2)
    spec = DenseNetSpec(8, (2, 2), 16, "imagenet", True, 0.5, (3, 32, 32), 5)
    model = DenseNet(spec)
    model.load_state_dict(reference.state_dict())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()
    for network in (reference.double(), model.double()):
        network(images).square().sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-11, msg=name
        )


def test_cifar_stem_is_one_bare_convolution() -> None:
    # "a convolution with 16 (or twice the growth rate for -BC) output channels", section 3
    features = dict(on_meta(variant("densenet-bc-40-12")).features.named_children())
    assert list(features)[:2] == ["conv0", "denseblock1"]
    conv = features["conv0"]
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))


@pytest.mark.parametrize("name", ["densenet-bc-40-12", "densenet121"])
def test_only_the_classifier_has_a_bias(name: str) -> None:
    modules = on_meta(variant(name)).named_modules()
    biased = [
        path
        for path, module in modules
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None
    ]
    assert biased == ["classifier"]


@pytest.mark.parametrize("initialisation", ["fan-out", "fan-in"])
def test_convolutions_begin_as_he_normal(initialisation: Any) -> None:
    model = create_model("densenet-bc-40-36", seed=0, initialisation=initialisation)
    tested = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            out = initialisation == "fan-out"
            channels = module.out_channels if out else module.in_channels
            std = sqrt(2 / (channels * height * width))
            weights = module.weight.detach().flatten().double().numpy()
            # 39 convolutions and a fixed seed: 1e-4 is far from any of them by chance
            assert stats.kstest(weights, "norm", args=(0, std)).pvalue > 1e-4, name
            tested += 1
    assert tested == 39


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], float]]:
    """Shapes that dropout is applied to, in order, and its rates."""
    found: list[tuple[tuple[int, ...], float]] = []

    def dropout(features: torch.Tensor, p: float, training: bool = True, **_: Any) -> torch.Tensor:
        assert training
        found.append((tuple(features.shape[1:]), p))
        return features

    monkeypatch.setattr(nn.functional, "dropout", dropout)
    return found


Dropped = list[tuple[tuple[int, ...], float]]


def test_dropout_follows_every_convolution_but_the_first(dropped: Dropped) -> None:
    """Section 4.2 of the paper; those of transitions and bottlenecks too."""
    model = create_model("densenet-bc-10-4", (3, 16, 16), dropout=0.2)
    model(torch.zeros(2, 3, 16, 16))
    shapes = [(16, 16, 16), (4, 16, 16), (6, 16, 16)]  # bottleneck, 3x3, transition before its pool
    shapes += [(16, 8, 8), (4, 8, 8), (5, 8, 8), (16, 4, 4), (4, 4, 4)]
    assert dropped == [(shape, 0.2) for shape in shapes]


def test_without_bottlenecks_each_layer_has_one_dropout(dropped: Dropped) -> None:
    create_model("densenet-10-4", (3, 16, 16), dropout=0.3)(torch.zeros(2, 3, 16, 16))
    channels = [(4, 16)] * 2 + [(24, 16)] + [(4, 8)] * 2 + [(32, 8)] + [(4, 4)] * 2
    assert [(shape[0], shape[1]) for shape, _ in dropped] == channels


def test_dropout_of_dense_layers_alone_is_torchvisions(dropped: Dropped) -> None:
    theirs = torchvision.models.DenseNet(4, (2, 1), 8, drop_rate=0.2, num_classes=3)
    theirs(torch.zeros(2, 3, 32, 32))
    expected = list(dropped)
    assert expected == [((4, 8, 8), 0.2)] * 2 + [((4, 4, 4), 0.2)]
    dropped.clear()
    spec = DenseNetSpec(4, (2, 1), 8, "imagenet", True, 0.5, (3, 32, 32), 3)
    DenseNet(spec, Dropout(0.2))(torch.zeros(2, 3, 32, 32))
    assert dropped == expected
    dropped.clear()
    options: Any = {"dropout": 0.2, "dropout_place": "dense-layer"}
    create_model("densenet-bc-10-4", (3, 16, 16), **options)(torch.zeros(2, 3, 16, 16))
    assert dropped == [((4, size, size), 0.2) for size in (16, 8, 4)]


@pytest.mark.parametrize("efficient", [False, True])
def test_nothing_is_dropped_in_evaluation(dropped: Dropped, efficient: bool) -> None:
    model = create_model("densenet-bc-10-4", (3, 16, 16), dropout=0.2, memory_efficient=efficient)
    images = torch.randn(2, 3, 16, 16)
    model.eval()
    assert torch.equal(model(images), model(images)) and dropped == []


def test_norms_and_classifier_begin_neutral() -> None:
    model = create_model("densenet-bc-40-36", seed=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
            assert (module.eps, module.momentum) == (1e-5, 0.1)
    assert (model.classifier.bias == 0).all()
    bound = 1 / sqrt(model.classifier.in_features)
    weights = model.classifier.weight.detach().flatten().double().numpy()
    assert stats.kstest(weights, "uniform", args=(-bound, 2 * bound)).pvalue > 1e-4


def test_seed_decides_the_weights() -> None:
    one, same, other = (create_model("densenet-bc-10-4", seed=seed) for seed in (7, 7, 8))
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.features.conv0.weight, other.features.conv0.weight)


def test_seed_leaves_the_global_generators_alone() -> None:
    devices = range(torch.cuda.device_count())
    before = [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)]
    create_model("densenet-bc-10-4", seed=7)
    after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_a_seed_the_global_generator_decides() -> None:
    weights = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            weights.append([create_model("densenet-bc-10-4").classifier.weight for _ in range(2)])
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][0], weights[0][1])


def test_created_model_fits_its_arguments() -> None:
    model = create_model("densenet-bc-10-4", (1, 12, 8), classes=3)
    assert model.training
    assert model.spec == variant("densenet-bc-10-4", (1, 12, 8), 3)
    assert model(torch.zeros(2, 1, 12, 8)).shape == (2, 3)
    assert model.eval()(torch.zeros(5, 1, 31, 17)).shape == (5, 3)  # fully convolutional


def test_unknown_name_and_small_input_are_recipe_errors() -> None:
    with pytest.raises(RecipeError, match="unknown model 'vgg16'"):
        create_model("vgg16")
    with pytest.raises(RecipeError, match="too small for 4 dense blocks"):
        create_model("densenet121", (3, 28, 28))
