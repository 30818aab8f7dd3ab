"""The table of options against the real bindings of several versions and real builds."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy import _cuda, _tensorrt
from densenet_deploy.engine.options import (
    BUILD_OPTIONS,
    OLDEST,
    OPTIONS,
    RUN_OPTIONS,
    TITLES,
    Option,
    apply,
    changed,
    check,
    options_table,
)
from densenet_deploy.engine.process import compile_engine
from densenet_deploy.engine.setters import Site
from densenet_deploy.engine_config import BuildConfig, EngineBackend, RunConfig
from densenet_deploy.errors import BackendError, BuildError
from tests.bindings.surface import Surface
from tests.engine.test_build import conv_relu

VERSIONS: tuple[tuple[EngineBackend, str], ...] = (
    ("tensorrt", "10.0.1"),
    ("tensorrt", "10.16.1.11"),
    ("tensorrt", "11.4.0.106"),
    ("tensorrt-rtx", "1.7.1.116"),
)


def identity(option: Option) -> str:
    return "-".join([option.name, *map(str, option.values)])


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@pytest.mark.parametrize("option", OPTIONS, ids=identity)
def test_a_name_exists_in_the_versions_that_the_table_claims(
    option: Option, surface: Surface
) -> None:
    since = option.since.get(surface.backend)  # type: ignore[call-overload]
    missing = [name for name in option.names if not surface.has(name)]
    if since and numbers(surface.version) >= numbers(since):
        assert missing == []
    elif since:
        assert missing, f"{surface} has it already"
    elif surface.backend == "tensorrt":
        assert missing, "only TensorRT-RTX has it"
    # Names that TensorRT-RTX has and does not serve: see the tests of its builder below


@pytest.mark.parametrize(
    ("config", "options", "others"),
    [
        (BuildConfig, BUILD_OPTIONS, {"backend", "optional_compute_capabilities"}),
        (RunConfig, RUN_OPTIONS, {"device", "contexts"}),
    ],
)
def test_every_field_is_in_the_table(config: Any, options: Any, others: set[str]) -> None:
    fields = {field.name for field in dataclasses.fields(config)}
    assert {option.name for option in options} == fields - others
    assert not {"precision", "fp16", "int8", "calibrator"} & fields


@pytest.mark.parametrize(("backend", "version"), VERSIONS)
def test_defaults_are_never_refused(backend: EngineBackend, version: str) -> None:
    check(BuildConfig(backend), backend, version)
    check(RunConfig(), backend, version)
    check(BuildConfig(backend, timing_cache=False), backend, version)
    check(RunConfig(cuda_graph=False, runtime_cache=False), backend, version)


def test_everything_that_lacks_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "no CUDA device")
    config = BuildConfig(
        hardware_compatibility="ampere-plus", version_compatible=True, weights="stripped"
    )
    with pytest.raises(BuildError) as caught:
        check(config, "tensorrt-rtx", "1.7.1.116")
    assert str(caught.value).splitlines() == [
        "TensorRT-RTX 1.7.1.116 lacks what was asked for: 3 problems",
        "  - hardware_compatibility ampere-plus: TensorRT-RTX 1.7.1.116 has no such option; "
        "TensorRT 10.0 or newer has it; name the GPUs in compute_capabilities",
        "  - version_compatible true: TensorRT-RTX 1.7.1.116 has no such option; TensorRT 10.0 or "
        "newer has it; build again with the version that runs it",
        "  - weights stripped: TensorRT-RTX 1.7.1.116 needs a GPU for it, since it compiles "
        "replaceable weights on the device; here is no CUDA device",
    ]
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "")
    check(BuildConfig(weights="stripped"), "tensorrt-rtx", "1.7.1.116")


def test_what_only_tensorrt_rtx_has() -> None:
    with pytest.raises(BuildError, match=r"compute_capabilities \[8\.6\].* TensorRT-RTX 1\.4 or"):
        check(BuildConfig("tensorrt", compute_capabilities=("8.6",)), "tensorrt", "11.4.0.106")
    with pytest.raises(BackendError, match=r"dynamic_shapes eager.* TensorRT-RTX 1\.4 or newer"):
        check(RunConfig(dynamic_shapes="eager"), "tensorrt", "11.4.0.106")


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("10.0.1", False),
        ("10.9.0.34", False),
        ("10.11.0.33", False),
        ("10.12.0.36", True),
        ("10.13.3.9.post1", True),
        ("11.0.0.114", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, accepted: bool) -> None:
    config = BuildConfig("tensorrt", hardware_compatibility="same-compute-capability")
    if accepted:
        check(config, "tensorrt", version)
        return
    with pytest.raises(BuildError, match=rf"TensorRT {version} has .* TensorRT 10\.12 or newer"):
        check(config, "tensorrt", version)


@given(st.sampled_from(VERSIONS), st.data())
def test_any_combination_is_refused_for_what_it_lacks(
    backend_version: tuple[EngineBackend, str], data: st.DataObject
) -> None:
    backend, version = backend_version
    values = {
        "tf32": st.booleans(),
        "version_compatible": st.booleans(),
        "timing_cache": st.booleans(),
        "optimization_level": st.integers(0, 5),
        "workspace_mib": st.integers(0, 9),
        "hardware_compatibility": st.sampled_from(
            ["none", "ampere-plus", "same-compute-capability"]
        ),
    }
    config = BuildConfig(backend, **data.draw(st.fixed_dictionaries(values)))
    expected = set()
    if config.version_compatible and backend == "tensorrt-rtx":
        expected.add("version_compatible")
    if config.hardware_compatibility != "none" and backend == "tensorrt-rtx":
        expected.add("hardware_compatibility")
    if config.hardware_compatibility == "same-compute-capability" and version == "10.0.1":
        expected.add("hardware_compatibility")
    try:
        check(config, backend, version)
        refused = ""
    except BuildError as error:
        refused = str(error)
    assert {name for name in values if f"{name} " in refused} == expected


@functools.cache
def only_logger() -> Any:
    """TensorRT-RTX goes on using the first logger that a process gives it."""
    return _tensorrt.collecting_logger(_tensorrt.load("tensorrt-rtx"))


def builder_says(config: Any, *, touch: Any = None) -> tuple[bytes | None, list[str]]:
    """A real TensorRT-RTX build in this process: the engine, and warnings and errors of its log."""
    trt, logger = _tensorrt.load("tensorrt-rtx"), only_logger()
    logger.warnings.clear()
    logger.errors.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(_tensorrt.network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(conv_relu(shape=(2, 3, 8, 8)))
    settings = builder.create_builder_config()
    apply(config, "tensorrt-rtx", Site(trt, settings, builder, network))
    if touch:
        touch(trt, settings)
    plan = builder.build_serialized_network(network, settings)
    return plan and bytes(plan), logger.warnings + logger.errors


STATIC = BuildConfig(profiles=((2, 2, 2),), compute_capabilities=("8.6", "8.9"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"tf32": True}, {"workspace_mib": 64}, {"optimization_level": 5}]
    + [{"profiling_verbosity": value} for value in ("layer-names", "none")],
    ids=str,
)
def test_tensorrt_rtx_takes_its_options_without_a_word(changes: dict[str, Any]) -> None:
    pytest.importorskip("tensorrt_rtx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan, said = builder_says(dataclasses.replace(STATIC, **changes))
    assert plan is not None and plan.startswith(b"vtrt")
    assert said == []


def test_tensorrt_rtx_does_not_serve_what_the_table_says_it_lacks() -> None:
    """The names are there; the real builder warns, fails or calls them deprecated."""
    pytest.importorskip("tensorrt_rtx")

    def hardware(trt: Any, settings: Any) -> None:
        settings.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def version(trt: Any, settings: Any) -> None:
        settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)

    def timing(trt: Any, settings: Any) -> None:
        with pytest.warns(DeprecationWarning, match="no-ops in TensorRT-RTX"):
            settings.set_timing_cache(settings.create_timing_cache(b""), ignore_mismatch=False)

    assert "unsupported in TensorRT-RTX" in str(builder_says(STATIC, touch=hardware)[1])
    plan, said = builder_says(STATIC, touch=version)
    assert plan is None and "libnvinfer_lean" in str(said)
    assert builder_says(STATIC, touch=timing)[0] is not None


@pytest.mark.skipif(not _cuda.why_no_device(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("weights", ["refittable", "stripped"])
def test_tensorrt_rtx_cannot_make_replaceable_weights_without_a_gpu(weights: Any) -> None:
    pytest.importorskip("tensorrt_rtx")
    config = dataclasses.replace(STATIC, compute_capabilities=("8.6",), weights=weights)
    plan, said = builder_says(config)
    assert plan is None and "CUDA_SUCCESS" in str(said), "why `check` refuses it beforehand"


def test_a_refused_option_reaches_no_builder(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "m.onnx").write_bytes(conv_relu())
    config = dataclasses.replace(STATIC, version_compatible=True)
    with pytest.raises(BuildError, match=r"TensorRT 10\.0 or newer"):
        compile_engine(tmp_path / "m.onnx", config, lambda phase: pytest.fail(phase))


def test_options_that_are_not_default_in_words() -> None:
    assert changed(dataclasses.asdict(BuildConfig(profiles=((1, 1, 1),)))) == []
    config = BuildConfig(tf32=True, optimization_level=5, weights="refittable")
    assert sorted(changed(dataclasses.asdict(config))) == [
        "optimization_level 5",
        "tf32 true",
        "weights refittable",
    ]


def test_the_table_for_people() -> None:
    header, rule, *rows = options_table().splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert header.count("|") == rule.count("|") and len(rows) == len(OPTIONS)
    for option, row in zip(OPTIONS, cells, strict=True):
        assert len(row) == 6 and f"`{option.name}`" in row[0] and option.meaning == row[5]
        for backend, cell in zip(TITLES, row[2:4], strict=True):
            assert cell.split(",")[0] == option.since.get(backend, "no")
    assert set(OLDEST) == set(TITLES)


def test_the_documentation_has_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "tensorrt.md"
    assert options_table() in page.read_text(encoding="utf-8")
