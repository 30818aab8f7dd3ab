"""The numbers of a record, against definitions written down here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from densenet_deploy.recipe import Tolerance
from densenet_deploy.results import Measurement, Parity, Skipped, milliseconds


def measured(latencies: Any, batch: int = 1) -> Measurement:
    return Measurement("fp16", "onnxruntime", batch, 2, 0.5, 0.3, True, tuple(latencies))


def nearest_rank(values: list[float], percent: int) -> float:
    """The smallest value with at least `percent` % of all values at or below it."""
    ordered = sorted(values)
    return next(
        value
        for position, value in enumerate(ordered, 1)
        if 100 * position >= percent * len(ordered)
    )


@given(
    hnp.arrays(float, st.integers(1, 600), elements=st.floats(1e-6, 10)),
    st.sampled_from([1, 10, 50, 90, 95, 99]),
)
def test_percentile_is_the_nearest_rank(values: NDArray[np.float64], percent: int) -> None:
    found = measured(values).percentile(percent)
    if found is None:
        assert len(values) * (100 - percent) < 500
    else:
        assert found == nearest_rank(values.tolist(), percent)


@pytest.mark.parametrize("percent, least", [(50, 10), (90, 50), (95, 100), (99, 500)])
def test_a_percentile_is_told_only_where_five_samples_lie_beyond_it(
    percent: int, least: int
) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 1001.0))
    for count in range(1, 1001):
        sample = values[:count]
        found = measured(sample).percentile(percent)
        assert (found is None) == (count < least)
        if found is not None:
            assert (sample > found).sum() >= 5
            # scipy: the share at or below it is at least, and below it at most, the percentage
            assert stats.percentileofscore(sample, found, "weak") >= percent - 1e-9
            assert stats.percentileofscore(sample, found, "strict") <= percent


def test_throughput_is_images_over_time() -> None:
    record = measured([0.010, 0.030, 0.020], batch=8)
    assert record.mean == pytest.approx(0.020)
    assert record.images_per_second == pytest.approx(24 / 0.060)


def test_measurement_json_holds_every_latency_in_order() -> None:
    latencies = np.random.default_rng(1).uniform(1e-4, 1e-2, 500)
    table = json.loads(json.dumps(measured(latencies, batch=4).to_dict()))
    np.testing.assert_allclose(table["latencies"], latencies, atol=1e-7)  # a tenth of a microsecond
    assert table["requests"] == 500
    assert table["p99_seconds"] == pytest.approx(np.sort(latencies)[494])
    assert table["mean_seconds"] == pytest.approx(latencies.mean())
    assert (table["batch"], table["threads"], table["steady"]) == (4, 2, True)
    assert (table["precision"], table["backend"]) == ("fp16", "onnxruntime")


def test_summary_leaves_out_what_the_sample_cannot_show() -> None:
    text = measured([0.00123456] * 60).summary()
    assert "p50 1.23, p90 1.23, p99 - ms" in text
    assert "810 images/s (60 requests)" in text
    assert measured([0.1]).to_dict()["p50_seconds"] is None


@pytest.mark.parametrize(
    "seconds, text", [(None, "-"), (0.0, "0"), (1.23456e-3, "1.23"), (0.0999, "99.9")]
)
def test_milliseconds(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text


PARITY = Parity(
    precision="int8",
    backend="openvino",
    reference="pytorch fp32",
    source="some images",
    images=7,
    top1=91.5,
    top5=99.25,
    reference_top1=92.0,
    agreement=98.5,
    max_abs=0.123456,
    cosine=0.9987654,
    nonfinite=0,
    tolerance=Tolerance(),
    failures=(),
)


def test_parity_that_holds() -> None:
    assert PARITY
    assert PARITY.summary() == (
        "int8 on openvino: top-1 91.50 %, top-5 99.25 %, agreement 98.50 %, "
        "max |d logit| 0.123, cosine 0.998765: pass"
    )
    table = json.loads(json.dumps(PARITY.to_dict()))
    assert table["passed"] is True
    assert table["tolerance"]["top1_drop"] == 0.5
    assert table["reference_top1"] == 92.0


def test_parity_that_fails_says_every_reason() -> None:
    failed = replace(PARITY, failures=("one", "two"), top1=None, top5=None)
    assert not failed
    assert failed.summary().endswith(": FAIL: one; two")
    assert "top-1" not in failed.summary()
    assert failed.to_dict()["passed"] is False
    assert failed.to_dict()["top1"] is None


def test_skipped_reads_as_one_line() -> None:
    assert str(Skipped("tensorrt", "no CUDA device")) == "tensorrt: no CUDA device"
