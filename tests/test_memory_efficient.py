"""Recomputing in the backward pass: nothing but memory changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import densenet as reference

from densenet_deploy import memory_efficient
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.spec import DenseNetSpec

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = torch.tensor([1, 0, 2, 1])


def pair(name: str, **options: Any) -> tuple[DenseNet, DenseNet]:
    """A network in double precision, and one like it that recomputes."""
    naive = create_model(name, (3, 16, 16), 3, seed=0, **options)
    assert isinstance(naive, DenseNet)
    efficient = copy.deepcopy(naive.double())
    efficient.memory_efficient = True
    assert (naive.memory_efficient, efficient.memory_efficient) == (False, True)
    return naive, efficient


def trained(network: nn.Module, images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Everything that a forward and a backward pass leave behind."""
    images = images.clone().requires_grad_()
    torch.manual_seed(seed)
    logits = network(images)
    functional.cross_entropy(logits, LABELS[: len(images)]).backward()
    assert images.grad is not None
    gradients = {f"{name}.grad": p.grad for name, p in network.named_parameters()}
    return {
        "logits": logits,
        "images.grad": images.grad,
        **gradients,
        **dict(network.named_buffers()),
    }


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        scale = max(1e-3, float(tensor.detach().abs().max()))
        assert float((tensor - other[name]).detach().abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "name", ["densenet-bc-22-4", "densenet-b-16-4", "densenet-c-13-4", "densenet-13-4"]
)
def test_everything_equals_plain_autograd(name: str, layout: torch.memory_format) -> None:
    naive, efficient = (network.to(memory_format=layout) for network in pair(name))
    images = torch.randn(4, 3, 16, 16, dtype=torch.double).to(memory_format=layout)
    assert_close(trained(naive, images), trained(efficient, images), 1e-12)


@pytest.mark.parametrize("place", ["every-convolution", "dense-layer"])
def test_dropout_drops_the_same(place: Any) -> None:
    naive, efficient = pair("densenet-bc-22-4", dropout=0.2, dropout_place=place)
    images = torch.randn(4, 3, 16, 16, dtype=torch.double)
    plain = trained(naive, images)
    assert_close(plain, trained(efficient, images), 1e-12)
    assert not torch.equal(plain["logits"], trained(naive, images, seed=1)["logits"])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16], ids=str)
def test_what_is_made_again_is_the_same_to_the_bit(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    value = (3 * torch.randn(8, 60, 14, 14, dtype=torch.double) + 5).to(dtype, memory_format=layout)
    value[:, 7] = 2.5  # a constant channel: how its zeros round decides what ReLU lets through
    norm = nn.BatchNorm2d(60, dtype=torch.double if dtype == torch.double else torch.float)
    nn.init.normal_(norm.weight)
    nn.init.zeros_(norm.bias)
    rectified, *statistics = memory_efficient._rectified(value, norm)
    again = memory_efficient._rectified_again(value, norm.weight, norm.bias, *statistics)
    assert torch.equal(rectified, again)


@given(
    growth_rate=st.integers(1, 5),
    layers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    init_channels=st.integers(1, 7),
    bottleneck=st.booleans(),
    compression=st.sampled_from([0.5, 1.0]),
    stem=st.sampled_from(["cifar", "imagenet"]),
)
def test_any_densenet(growth_rate: int, layers: list[int], **rest: Any) -> None:
    if rest["init_channels"] + growth_rate < 2:
        return
    spec = DenseNetSpec(growth_rate, tuple(layers), input_shape=(3, 16, 16), classes=3, **rest)
    naive = DenseNet(spec).double()
    efficient = copy.deepcopy(naive)
    efficient.memory_efficient = True
    images = torch.randn(4, 3, 16, 16, dtype=torch.double)
    assert_close(trained(naive, images), trained(efficient, images), 1e-9)


def test_running_statistics_move_once_where_torchvisions_move_twice() -> None:
    """Issue: a checkpointed segment of torchvision's runs its BatchNorm again in backward."""
    options = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "num_classes": 3}
    checkpointed = reference.DenseNet(**options, memory_efficient=True).double()
    spec = DenseNetSpec(4, (2, 2), 8, "imagenet", True, 0.5, (3, 32, 32), 3)
    ours = DenseNet(spec).double()
    ours.memory_efficient = True
    ours.load_state_dict({**checkpointed.state_dict()}, strict=False)
    images = torch.randn(4, 3, 32, 32, dtype=torch.double)
    once, twice = trained(ours, images), trained(checkpointed, images)
    assert float((once["logits"] - twice["logits"]).detach().abs().max()) < 1e-12
    counters = {name: int(t) for name, t in ours.named_buffers() if name.endswith("tracked")}
    assert set(counters.values()) == {1}
    assert int(twice["features.denseblock1.denselayer1.norm1.num_batches_tracked"]) == 2


def test_a_cumulative_average_counts_batches() -> None:
    naive, efficient = pair("densenet-bc-10-4")
    for network in (naive, efficient):
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None
    for _ in range(3):
        images = torch.randn(4, 3, 16, 16, dtype=torch.double)
        assert_close(trained(naive, images), trained(efficient, images), 1e-9)


def test_bfloat16_is_as_exact_as_plain_autograd() -> None:
    naive, efficient = (network.float() for network in pair("densenet-bc-22-4"))
    exact, _ = pair("densenet-bc-22-4")
    images = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = trained(naive, images), trained(efficient, images)
    truth = trained(exact, images.double())

    def error(found: dict[str, Tensor]) -> float:
        gradients = [name for name in truth if name.endswith("weight.grad")]
        off = [
            (found[name].double() - truth[name]).norm() / truth[name].norm() for name in gradients
        ]
        return float(torch.stack(off).mean())

    assert error(ours) < 1.5 * error(plain)
    assert ours["features.conv0.weight.grad"].dtype == torch.float32
    assert ours["features.norm5.running_var"].dtype == torch.float32


def test_evaluation_does_not_recompute() -> None:
    naive, efficient = pair("densenet-bc-10-4")
    images = torch.randn(4, 3, 16, 16, dtype=torch.double)
    assert torch.equal(naive.eval()(images), efficient.eval()(images))


def test_a_second_derivative_is_refused() -> None:
    _, efficient = pair("densenet-bc-10-4")
    images = torch.randn(4, 3, 16, 16, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(efficient(images).sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
