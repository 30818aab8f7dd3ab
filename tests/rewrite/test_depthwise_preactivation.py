"""A pre-activation as a depthwise convolution: exact, and a reason where it does not apply."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from densenet_deploy.rewrite import depthwise_preactivation
from tests.graphs import (
    RANDOM_NETS,
    RandomNet,
    batchnorm,
    graph,
    operators,
    random_densenet,
    refusals,
    rewrite_exactly,
)

NORM = "n = BatchNormalization(x, gamma, beta, mean, var)"


@settings(max_examples=20, derandomize=True)
@given(RANDOM_NETS)
def test_exact_on_random_densenets(net: RandomNet) -> None:
    model = random_densenet(net)
    shape = (2, net.channels[0], *net.size)
    result = rewrite_exactly(model, [depthwise_preactivation], *shape)
    before, after = operators(model), operators(result.model)
    assert result.counts == {"depthwise_preactivation": before.pop("BatchNormalization")}
    assert after["Conv"] == before["Conv"] + result.counts["depthwise_preactivation"]
    assert {**after, "Conv": before["Conv"]} == before and not result.refusals


def test_names_and_a_relu_that_is_the_output() -> None:
    model = graph(f"{NORM} y = Relu(n)", batchnorm())
    result = rewrite_exactly(model, [depthwise_preactivation], 2, 4, 8, 8)
    conv = result.model.graph[0]
    assert (conv.op_type, conv.name, conv.outputs[0].name) == ("Conv", "n", "n")
    assert [value.name for value in conv.inputs if value] == ["x", "n.scale", "n.shift"]
    assert conv.attributes["group"].as_int() == 4


@pytest.mark.parametrize(
    "body, outputs, reason",
    [
        (f"{NORM} y = Sigmoid(n)", "", "a single ReLU does not follow"),
        (f"{NORM} y = Relu(n)", ", float[N, 4, 8, 8] n", "a single ReLU does not follow"),
        (f"g = Abs(gamma) {NORM.replace('gamma', 'g')} y = Relu(n)", "", "its parameters are not"),
        (
            "n, m, v = BatchNormalization <training_mode = 1>(x, gamma, beta, mean, var)"
            " y = Relu(n)",
            "",
            "it is in training mode",
        ),
    ],
)
def test_refusal(body: str, outputs: str, reason: str) -> None:
    model = graph(body, batchnorm(), outputs=f"float[N, 4, 8, 8] y{outputs}")
    [refusal] = refusals(model, depthwise_preactivation)
    assert refusal.startswith(f"n: {reason}")


def test_refuses_what_is_not_an_image() -> None:
    model = graph(f"{NORM} y = Relu(n)", batchnorm(), "float[N, 4] x", "float[N, 4] y")
    [refusal] = refusals(model, depthwise_preactivation)
    assert refusal == "n: its output is not known to have four dimensions"
