"""Which engine fits a device; NVIDIA's rules in a second form, as tables, judge the choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from densenet_deploy.bundle import Bundle, EngineRecord, open_bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.select import choose_engine

VERSIONS = ("10.0.1", "10.9.0.34", "10.16.1.11", "11.0.0.114", "11.4.0.106")
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
AMPERE_AND_LATER = {"8.0", "8.6", "8.9", "9.0", "10.0", "12.0"}


def record(**changes: object) -> EngineRecord:
    """An engine made for one TensorRT and one GPU."""
    made = EngineRecord("engines/a.plan", "tensorrt", "fp16", "10.9.0.34", ((1, 8, 64),), ("8.9",))
    return replace(made, **changes)  # type: ignore[arg-type]


def holding(bundle: Bundle, *engines: EngineRecord) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, engines=engines))


def fits(engine: EngineRecord, version: str, capability: str) -> bool:
    """The rules again, written for reading them beside NVIDIA's pages."""
    runs_version = (
        Version(version) >= Version(engine.version)
        if engine.version_compatible
        else version == engine.version
    )
    if engine.hardware_compatibility == "ampere-plus":
        return runs_version and capability in AMPERE_AND_LATER
    targets = set(engine.compute_capabilities)
    if engine.backend == "tensorrt-rtx":
        targets = targets or AMPERE_AND_LATER
    return runs_version and capability in targets


ENGINES = st.builds(
    record,
    backend=st.sampled_from(["tensorrt", "tensorrt-rtx"]),
    precision=st.sampled_from(["fp32", "fp16"]),
    version=st.sampled_from(VERSIONS),
    compute_capabilities=st.lists(st.sampled_from(CAPABILITIES), max_size=3, unique=True).map(
        tuple
    ),
    hardware_compatibility=st.sampled_from(["none", "ampere-plus", "same-compute-capability"]),
    version_compatible=st.booleans(),
)


@given(
    st.lists(ENGINES, max_size=6),
    st.sampled_from(["tensorrt", "tensorrt-rtx"]),
    st.sampled_from(VERSIONS),
    st.sampled_from(CAPABILITIES),
)
def test_what_is_chosen_fits_and_nothing_is_chosen_only_if_nothing_fits(
    fashion_bundle: Path, drawn: list[EngineRecord], backend: str, version: str, capability: str
) -> None:
    engines = [replace(item, file=f"engines/{row}.plan") for row, item in enumerate(drawn)]
    candidates = [e for e in engines if e.backend == backend and e.precision == "fp16"]
    bundle = holding(open_bundle(fashion_bundle), *engines)
    if any(fits(engine, version, capability) for engine in candidates):
        chosen = choose_engine(bundle, backend, "fp16", version, capability)
        assert chosen in candidates and fits(chosen, version, capability)
        return
    with pytest.raises(BackendError) as caught:
        choose_engine(bundle, backend, "fp16", version, capability)
    message = str(caught.value)
    assert "--fallback rebuild,onnxruntime" in message
    for engine in candidates:
        assert engine.file in message


def refusal(bundle: Bundle, version: str, capability: str, *engines: EngineRecord) -> str:
    with pytest.raises(BackendError) as caught:
        choose_engine(holding(bundle, *engines), "tensorrt", "fp16", version, capability)
    return str(caught.value)


@pytest.mark.parametrize(
    "changes, version, capability, needs",
    [
        ({}, "10.9.0.35", "8.9", "TensorRT 10.9.0.34, not 10.9.0.35"),  # the build part alone
        ({}, "10.9.0.34", "8.6", "compute capability 8.9, not 8.6"),
        ({}, "11.4.0.106", "9.0", "TensorRT 10.9.0.34, not 11.4.0.106 and compute capability 8.9"),
        ({"version_compatible": True}, "10.8.0.40", "8.9", "TensorRT 10.9.0.34 or later, not 10.8"),
        ({"hardware_compatibility": "ampere-plus"}, "10.9.0.34", "7.5", "8.0 or later, not 7.5"),
        (
            {"hardware_compatibility": "same-compute-capability"},
            "10.9.0.34",
            "8.6",
            "compute capability 8.9, not 8.6",
        ),
        ({"compute_capabilities": ()}, "10.9.0.34", "8.9", "(not recorded), not 8.9"),
    ],
)
def test_the_refusal_names_the_part_that_differs_and_no_other(
    bundle: Bundle, changes: dict[str, object], version: str, capability: str, needs: str
) -> None:
    message = refusal(bundle, version, capability, record(**changes))
    assert f"fits TensorRT {version} on compute capability {capability}: " in message
    assert "engines/a.plan needs " in message and needs in message
    listed = message.partition("a.plan needs ")[2]
    assert ("TensorRT" in listed) == ("TensorRT" in needs)
    assert ("compute capability" in listed) == ("TensorRT" not in needs or " and " in needs)


@pytest.mark.parametrize("capability", ["8.0", "10.0", "12.0"])
def test_portable_to_ampere_and_later_compares_numbers_and_not_text(
    bundle: Bundle, capability: str
) -> None:
    engine = record(hardware_compatibility="ampere-plus", compute_capabilities=("8.6",))
    held = holding(bundle, engine)
    assert choose_engine(held, "tensorrt", "fp16", engine.version, capability) == engine


def test_versions_are_ordered_as_numbers(bundle: Bundle) -> None:
    engine = record(version_compatible=True)  # of 10.9
    held = holding(bundle, engine)
    for later in ("10.9.0.34", "10.16.1.11", "11.4.0.106"):
        assert choose_engine(held, "tensorrt", "fp16", later, "8.9") == engine


def test_the_engine_made_for_this_device_is_preferred_to_a_portable_one(bundle: Bundle) -> None:
    portable = record(file="engines/b.plan", hardware_compatibility="ampere-plus")
    lasting = record(file="engines/c.plan", version_compatible=True)
    own = record()
    for order in ((portable, lasting, own), (own, portable, lasting)):
        chosen = choose_engine(holding(bundle, *order), "tensorrt", "fp16", own.version, "8.9")
        assert chosen == own


def test_a_bundle_without_such_an_engine_says_what_it_has(bundle: Bundle) -> None:
    message = refusal(bundle, "10.9.0.34", "8.9", record(precision="fp32"))
    assert "has no tensorrt engine for fp16; expected one of fp32. Build one" in message
    message = refusal(bundle, "10.9.0.34", "8.9", record(backend="tensorrt-rtx"))
    assert "has no tensorrt engine for fp16. Build one on this machine" in message


def test_every_engine_is_spoken_of(bundle: Bundle) -> None:
    engines = (record(), record(file="engines/b.plan", version="10.16.1.11"))
    message = refusal(bundle, "10.16.1.11", "8.6", *engines)
    assert message.index("a.plan needs TensorRT 10.9.0.34") < message.index("; engines/b.plan")
    assert "b.plan needs compute capability 8.9, not 8.6." in message
