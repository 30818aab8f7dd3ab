"""What costs traffic in engines that TensorRT-RTX really built, held against sums made by hand."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from densenet_deploy.choose import find_recipe
from densenet_deploy.engine.build import compile_layers
from densenet_deploy.engine.kernels import EngineLayers, Layer, Tensor
from densenet_deploy.engine.why_slow import LEAST_SHARE, WhySlow, why_slow
from densenet_deploy.recipe import Target
from densenet_deploy.sides import export_plain, make_graph
from densenet_deploy.source import prepare
from densenet_deploy.suite import GraphKind
from tests.conftest import TINY
from tests.engine.test_layers import BLOCK, GROWTH, LAYERS, SIZE, engine, sizes

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("tensorrt_rtx")
Compiled = Callable[..., EngineLayers]


def found(told: WhySlow) -> dict[str, int]:
    """Bytes of each cause, worst first."""
    return {finding.cause.name: finding.bytes for finding in told.findings}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Real engines of a small DenseNet, three layers a block: (kind of graph, target) -> layers."""
    path = tmp_path_factory.mktemp("why_slow") / "small.toml"
    path.write_text(TINY.replace("densenet-bc-10-4", "densenet-bc-22-4"), encoding="utf-8")
    recipe = find_recipe(str(path))
    source = prepare(recipe)
    plain = export_plain(source)
    pixels = source.calibration.pixels[: recipe.quantize.images]
    images = source.preprocessing.normalise(pixels)

    @functools.cache
    def compile_kind(kind: GraphKind, target: Target | None = None) -> EngineLayers:
        graph = make_graph(kind, target, plain, images, recipe.quantize)
        return compile_layers(graph)[1]

    return compile_kind


@pytest.mark.parametrize(
    ("weights", "cause", "width"), [("tensor", "half-output", 2), ("channel", "float-output", 4)]
)
def test_what_int8_convolutions_write_wide(weights: str, cause: str, width: int) -> None:
    told = why_slow(engine(weights))
    values = LAYERS * (4 * GROWTH + GROWTH) * SIZE * SIZE
    written_and_read = 2 * width * values
    # The last kernel joins all features again; it reads the first layer's conv2 a second time,
    # unless an earlier kernel has written it as half.
    again = 0 if weights == "channel" else width * GROWTH * SIZE * SIZE
    assert told and next(iter(found(told))) == cause
    assert found(told)[cause] == written_and_read + again
    assert told.precision == "INT8" and "4 of 4 convolutions read Int8" in told.verdict


def test_a_target_without_int8_explains_all_that_is_wide() -> None:
    told = why_slow(engine("tensor", targets=("7.5", "8.9")))
    (worst, *others) = told.findings
    assert worst.cause.name == "lost-int8" and not others
    assert worst.share > 0.5 and "7.5" in worst.cause.remedy
    assert "0 of 4 convolutions read Int8" in told.verdict


def test_a_float_graph_has_nothing_to_quantize() -> None:
    told = why_slow(engine(""))
    assert not told and told.precision == "FP16"
    assert "nothing is quantized" in told.verdict
    assert told.summary().endswith("nothing moves that its precision does not need")


def test_a_dynamic_batch_is_counted_for_one_image() -> None:
    fixed, dynamic = why_slow(engine()), why_slow(engine(batch="n", bounds=(1, 2, 4)))
    assert found(dynamic) == found(fixed) and dynamic.types == fixed.types


@pytest.mark.parametrize("kind", ["fp16", "fp32"])
def test_a_graph_lowered_for_onnxruntime_copies_its_concatenations(
    compiled: Compiled, kind: GraphKind
) -> None:
    """What the finding counts is what the same net writes more than when lowered for the target."""
    own, foreign = compiled(kind, "tensorrt-rtx"), compiled(kind, "onnxruntime")
    assert not why_slow(own)
    told = why_slow(foreign)
    assert list(found(told)) == ["growing-concat"]
    assert found(told)["growing-concat"] == sizes(foreign)[1] - sizes(own)[1] > 0
    assert "export.target" in told.findings[0].cause.remedy
    assert set(told.findings[0].parts) <= set(foreign.parts())


def test_findings_rank_as_the_traffic_does(compiled: Compiled) -> None:
    """ONNX Runtime's quantizer moves more than ours, and the findings say by what."""
    ours = why_slow(compiled("int8", "tensorrt-rtx"))
    theirs = why_slow(compiled("quantize-static-tensorrt"))
    assert sum(ours.types.values()) < sum(theirs.types.values())
    assert sum(found(ours).values()) < sum(found(theirs).values())
    assert list(found(theirs))[:2] == ["float-output", "float-features"]
    assert set(found(ours)) <= {"half-output", "lone-quantizer"}, "its features stay Int8"


@pytest.mark.parametrize("kind", ["int8", "quantize-static-tensorrt"])
def test_no_byte_counts_twice(compiled: Compiled, kind: GraphKind) -> None:
    target: Target | None = "tensorrt-rtx" if kind == "int8" else None
    layers = compiled(kind, target)
    told = why_slow(layers)
    explained = [
        (id(one.layer), one.tensor, one.written)
        for finding in told.findings
        for one in finding.transfers
    ]
    assert len(explained) == len(set(explained))
    assert sum(told.types.values()) == sum(sizes(layers)) >= sum(found(told).values())
    shares = [finding.share for finding in told.findings]
    assert shares == sorted(shares, reverse=True) and min(shares) >= LEAST_SHARE
    for finding in told.findings:
        assert sum(finding.parts.values()) == finding.bytes
        assert finding.share == pytest.approx(finding.bytes / sum(sizes(layers)))


def test_summary_and_record(compiled: Compiled) -> None:
    told = why_slow(compiled("quantize-static-tensorrt"))
    lines = told.summary().splitlines()
    assert lines[0] == told.verdict and max(map(len, lines[1:])) <= 110
    heads = [line for line in lines if " MB " in line[:16]]
    assert [head.split("  ")[-1].rsplit(" (", 1)[0] for head in heads] == [
        finding.cause.what for finding in told.findings
    ]
    record = json.loads(json.dumps(told.to_dict()))
    assert record["bytes"] == sum(record["bytes_by_type"].values())
    assert [one["bytes"] for one in record["findings"]] == list(found(told).values())
    convolutions = {layer.name for layer in told.layers.of("convolution").layers}
    named = {one["name"]: one["nodes"] for one in record["findings"][0]["kernels"]}
    assert convolutions <= named.keys() and all(named[name] for name in convolutions)


def chain(*steps: tuple[str, str]) -> EngineLayers:
    """TensorRT's own layers in a row: (kind, type of what it writes), behind a Half input."""
    layers, source = [], Tensor("images", "Half", (1, 8, 4, 4))
    for number, (kind, dtype) in enumerate(steps):
        target = Tensor(f"t{number}", dtype, (1, 8, 4, 4))
        part = f"{BLOCK}.denselayer{number}"
        layers.append(Layer(f"l{number}", kind, "", (source,), (target,), (), "", part))
        source = target
    return EngineLayers(tuple(layers))


CONV, QUANTIZE, COPY, POOL = "CaskConvolution", "Quantize", "Reformat", "Pooling"
STEM, TAIL = ((CONV, "Half"), (QUANTIZE, "Int8")), ((QUANTIZE, "Half"), (POOL, "Half"))
VALUES = 8 * 4 * 4


@pytest.mark.parametrize(
    ("between", "causes"),
    [
        # Q/DQ round the quantized part: Half to Int8 and back
        (((CONV, "Int8"),), {"lone-quantizer": 6 * VALUES}),
        (((CONV, "Int8"), (COPY, "Int8")), {"lone-quantizer": 6 * VALUES, "copy": 2 * VALUES}),
        (
            ((CONV, "Int8"), (QUANTIZE, "Half"), (POOL, "Half"), (QUANTIZE, "Int8")),
            {"lone-quantizer": 12 * VALUES, "float-island": 4 * VALUES},
        ),
        (
            ((CONV, "Int8"), (QUANTIZE, "Half"), (CONV, "Half"), (QUANTIZE, "Int8")),
            {"lone-quantizer": 12 * VALUES, "float-convolution": 4 * VALUES},
        ),
    ],
)
def test_layers_of_tensorrt(between: tuple[tuple[str, str], ...], causes: dict[str, int]) -> None:
    """Each cause by hand: a Half value is two bytes, an Int8 value one; the stem may stay Half."""
    assert found(why_slow(chain(*STEM, *between, *TAIL))) == causes


def test_a_conversion_at_the_edge_is_the_callers() -> None:
    whole = chain(
        (COPY, "Float"), (CONV, "Float"), (COPY, "Float"), (CONV, "Float"), (COPY, "Half")
    )
    told = why_slow(whole)
    assert found(told) == {"copy": 2 * 4 * VALUES}, "that between the convolutions alone"
    assert [layer.name for layer in told.findings[0].layers] == ["l2"]
    assert told.precision == "FP32"
    edges = why_slow(chain((QUANTIZE, "Int8"), (CONV, "Int8"), (CONV, "Int8"), (QUANTIZE, "Half")))
    assert not edges and edges.precision == "INT8"


def test_what_hardly_costs_is_not_told() -> None:
    stem, copy, last = chain((CONV, "Float"), (COPY, "Float"), (CONV, "Float")).layers
    for channels, told in ((8, True), (80_000, False)):
        images = tuple(replace(one, shape=(1, channels, 4, 4)) for one in stem.inputs)
        layers = EngineLayers((replace(stem, inputs=images), copy, last))
        assert bool(why_slow(layers)) == told


def test_unknown_sizes_are_said() -> None:
    (first, *rest) = chain(*STEM, *TAIL).layers
    wide = replace(first.inputs[0], shape=(1, 8, -1, 4))
    told = why_slow(EngineLayers((replace(first, inputs=(wide,)), *rest)))
    assert "activations of unknown size are not counted" in told.summary()
    alone = why_slow(EngineLayers((replace(first, inputs=(wide,), outputs=(wide,)),)))
    for empty in (alone, why_slow(EngineLayers(()))):
        assert not empty and "its kernels move 0.000 MB" in empty.verdict
    assert np.isfinite([finding.share for finding in told.findings]).all()
