"""Ways to quantize a small net, really measured, and how one of them is chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from densenet_deploy.errors import CheckFailedError, DataError
from densenet_deploy.paired import Ratio
from densenet_deploy.pareto import write
from densenet_deploy.recipe import QuantizeConfig
from densenet_deploy.tune import Candidate, Tuning, choose_policy, tune
from tests.graphs import exported

CONFIG = QuantizeConfig(images=16, batch_size=8, method="minmax", budget=100)


def candidate(name: str, agreement: float, cost: float, kl: float = 0.1) -> Candidate:
    exact = Ratio(10 / cost, 10 / cost, 10 / cost, 1)
    return Candidate(name, CONFIG, agreement, kl, cost, exact)


@cache
def tuning(target: Any) -> Tuning:
    net = exported("densenet-bc-10-4", fuse=False)
    return tune(net.model, CONFIG, target, net.images[:16], net.images[16:24])


def test_every_policy_is_measured_for_a_cpu_runtime() -> None:
    found = tuning("onnxruntime")
    assert (found.unit, found.images) == ("ms", 8)
    names = {item.config.policy for item in found.policies}
    assert names == {"equalized", "shared", "per-producer", "after-bn-relu"}
    assert all(item.cost > 0 and item.speedup.low > 0 for item in found.candidates)
    assert all(0 <= item.agreement <= 100 and item.kl >= 0 for item in found.candidates)
    assert found.chosen in found.candidates
    assert found.chosen.name in found.summary()


def test_sensitivities_are_sorted_and_name_every_part_once() -> None:
    found = tuning("onnxruntime").sensitivities
    parts = [item.part for item in found]
    assert "features.conv0" in parts and "features.denseblock1.denselayer1" in parts
    assert len(set(parts)) == len(parts)
    assert [item.kl for item in found] == sorted(item.kl for item in found)
    assert all(item.gain + item.kl == pytest.approx(found[0].gain + found[0].kl) for item in found)


def test_mixed_graphs_leave_the_most_sensitive_parts_in_floating_point() -> None:
    found = tuning("onnxruntime")
    parts = [item.part for item in found.sensitivities]
    kept = [item.config.keep_float for item in found.mixed]
    assert kept == [tuple(parts[:count]) for count in (1, 2, 4, 8) if count < len(parts)]


def test_tensorrt_is_charged_for_the_bytes_of_its_engine() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    found = tuning("tensorrt-rtx")
    assert found.unit == "MB"
    costs = {item.name: item.cost for item in found.policies}
    assert costs["equalized"] == costs["shared"] > 0
    assert all(item.speedup.low == item.speedup.high for item in found.policies)


def test_a_picture_and_records(tmp_path: Any) -> None:
    found = tuning("onnxruntime")
    write(found, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    record = found.to_dict()
    assert record["front"] == [item.name for item in found.front]
    assert len(record["policies"]) == 4 and record["budget"] == 100


def test_the_front_holds_what_nothing_beats() -> None:
    cheap, good, bad = candidate("cheap", 98, 1), candidate("good", 99, 2), candidate("bad", 98, 2)
    found = Tuning("openvino", "ms", 1, 5.0, (bad, good, cheap), (), (), good)
    assert found.front == (cheap, good)


def test_a_choice_is_within_the_budget_or_refused() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    net = exported("densenet-bc-10-4", fuse=False)
    far_away = net.images[16:24] * np.float32(30)  # far outside what calibrated
    strict = replace(CONFIG, budget=0.0)
    try:
        chosen = choose_policy(net.model, strict, "tensorrt-rtx", net.images[:16], far_away)
    except CheckFailedError as error:
        assert "agrees with fp32 on" in str(error) and "raise quantize.budget" in str(error).lower()
    else:
        assert chosen.agreement == 100


def test_without_spare_images_nothing_is_chosen() -> None:
    net = exported("densenet-bc-10-4", fuse=False)
    with pytest.raises(DataError, match="no training images are left"):
        choose_policy(net.model, CONFIG, "onnxruntime", net.images[:16], net.images[:0])
