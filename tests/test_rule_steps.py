"""Steps, and how names are told in few words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy.graph_costs import costs_of
from densenet_deploy.rewrite import RULES, fold_preactivation, pool_before_conv
from densenet_deploy.rule_steps import apply_rules, grouped, steps_summary
from tests.graphs import batchnorm, exported, graph, normal


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "a"], "a"),
        (["norm5", "conv0"], "norm5, conv0"),
        (["b1.layer1.norm", "b1.layer2.norm", "b1.layer3.norm"], "b1.layer1..3.norm"),
        (["b1.c1", "t1", "b2.c1", "t2", "b3.c1"], "b1..3.c1, t1..2"),
        ([f"layer{n}" for n in (1, 2, 3, 5, 7, 8)], "layer1..3,5,7..8"),
        ([f"layer{n}" for n in (9, 10, 11)], "layer9..11"),
        ([f"features.{n}.conv" for n in (1, 2)], "features.1..2.conv"),
        ([f"b{b}.layer{n}" for b in (1, 2) for n in (1, 2, 3)], "b1..2.layer1..3"),
        (
            [f"b{b}.layer{n}" for b in (1, 2) for n in range(1, 3 + b)],
            "b1.layer1..3, b2.layer1..4",
        ),
        (["concat", "concat_2", "concat_3"], "concat, concat_2..3"),
    ],
)
def test_grouped(names: list[str], text: str) -> None:
    assert grouped(names) == text


def expanded(text: str) -> list[str]:
    """What a text of `grouped` stands for."""
    match = re.search(r"\d+(?:\.\.\d+)?(?:,\d+(?:\.\.\d+)?)+|\d+\.\.\d+", text)
    if match is None:
        return [text]
    numbers = []
    for part in match[0].split(","):
        first, _, last = part.partition("..")
        numbers += list(range(int(first), int(last or first) + 1))
    return [
        name
        for number in numbers
        for name in expanded(f"{text[: match.start()]}<{number}>{text[match.end() :]}")
    ]


@given(st.sets(st.tuples(st.integers(1, 4), st.integers(1, 12)), min_size=1))
def test_no_name_is_lost_or_made_up(places: set[tuple[int, int]]) -> None:
    names = {f"block{block}.layer{layer}.norm" for block, layer in sorted(places)}
    found = [name for text in grouped(sorted(names)).split(", ") for name in expanded(text)]
    assert sorted(re.sub("[<>]", "", name) for name in found) == sorted(names)


def test_what_was_done_and_refused() -> None:
    body = "n = BatchNormalization(x, gamma, beta, mean, var) c = Conv(n, w)"
    pool = "y = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]>(c)"
    model = graph(f"{body} {pool}", batchnorm() | {"w": normal(5, 4, 1, 1)})
    plain = costs_of(model)
    steps = apply_rules(model, [pool_before_conv, fold_preactivation])
    assert [(step.rule, step.applied) for step in steps] == [
        ("pool_before_conv", ()),
        ("fold_preactivation", ()),
    ]
    assert all(step.costs == plain for step in steps)
    lines = steps_summary("plain", plain, steps)
    assert "  refused c: the convolution or the pool is padded" in lines
    assert "  refused n: a single ReLU does not follow" in lines
    assert steps[0].to_dict()["refusals"][0]["node"] == "c"


def test_an_export() -> None:
    model = exported("densenet-bc-40-12", fuse=False).model
    plain = costs_of(model)
    first, second = apply_rules(model, RULES["tensorrt"])
    assert first.applied == ("features.transition1.conv", "features.transition2.conv")
    assert first.costs.macs is not None and plain.macs is not None
    assert first.costs.macs < plain.macs and second.costs.macs == first.costs.macs
    assert (second.costs.nodes["Add"], len(second.applied)) == (21, 21)
    *table, nodes, pools, norms, last = steps_summary("plain", plain, [first, second])
    assert len({len(line) for line in table}) == 1 and len(table) == 4
    assert "BatchNormalization 21 -> 0, Concat 18, Conv 39" in nodes
    assert pools == "pool_before_conv: features.transition1..2.conv"
    assert norms == (
        "fold_preactivation: features.denseblock1..3.denselayer1..6.norm1, "
        "features.transition1..2.norm, features.norm5"
    )
    assert last == "nothing was refused"
