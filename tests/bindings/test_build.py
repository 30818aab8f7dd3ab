"""Our build path over every version's real names, enums and signatures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy import _cuda
from densenet_deploy.engine.process import compile_engine
from densenet_deploy.engine.timing import TimingCache
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.errors import BuildError
from tests.bindings.simulated_builder import OF_ANOTHER_GPU, Build, IBuilderConfig, ParserError
from tests.bindings.surface import Surface

Compile = Callable[..., bytes]
Timed = Callable[..., str]
IMAGE = {"image": (-1, 3, 8, 8)}
EVERY_OPTION = {
    "profiles": ((1, 1, 1), (2, 4, 8)),
    "workspace_mib": 64,
    "optimization_level": 5,
    "timing_cache": False,
    "tf32": True,
    "profiling_verbosity": "none",
    "weights": "stripped",
}
OPTIONS_OF = {
    "tensorrt": {"hardware_compatibility": "ampere-plus", "version_compatible": True},
    "tensorrt-rtx": {"compute_capabilities": ("8.9", "12.0")},
}


@pytest.fixture
def compiled(surface: Surface, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compile:
    """Compiles with a simulated builder in the place of the bindings: (build, options) -> plan."""
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "")

    def compile_with(
        build: Build,
        on_step: Callable[[str], None] = lambda phase: None,
        timing: TimingCache | None = None,
        stopped: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> bytes:
        monkeypatch.setitem(sys.modules, surface.backend.replace("-", "_"), build.module())
        config = BuildConfig(**({"backend": surface.backend} | options))
        return compile_engine(tmp_path / "model.onnx", config, on_step, timing, stopped)

    return compile_with


def bits(surface: Surface, *flags: str) -> int:
    """Builder flags combined, with the integers of this version."""
    return sum(1 << int(surface.enum("BuilderFlag")[flag]) for flag in flags)


def test_defaults_build_a_strongly_typed_network(surface: Surface, compiled: Compile) -> None:
    build = Build(surface, IMAGE)
    steps: list[str] = []
    assert compiled(build, on_step=steps.append) == b"plan"
    strongly_typed = surface.enum("NetworkDefinitionCreationFlag")["STRONGLY_TYPED"]
    assert build.network_flags == 1 << int(strongly_typed)
    assert build.config.flags == 0  # TF32, which the builder sets, is cleared
    assert build.config.profiling_verbosity.name == "DETAILED"
    assert build.config._profiles == [{"image": tuple((size, 3, 8, 8) for size in (1, 8, 64))}]
    assert build.config._limits == {}
    assert steps == ["Building", "Building"]


def test_every_option_arrives(surface: Surface, compiled: Compile) -> None:
    build = Build(surface, IMAGE)
    compiled(build, **EVERY_OPTION, **OPTIONS_OF[surface.backend])
    config = build.config
    shapes = [tuple((size, 3, 8, 8) for size in sizes) for sizes in EVERY_OPTION["profiles"]]
    assert config._profiles == [{"image": shape} for shape in shapes]
    assert config._limits == {"WORKSPACE": 64 * 2**20}
    assert config.builder_optimization_level == 5
    assert config.profiling_verbosity is surface.enum("ProfilingVerbosity")["NONE"]
    if surface.backend == "tensorrt":
        assert config.flags == bits(surface, "TF32", "STRIP_PLAN", "VERSION_COMPATIBLE")
        assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
        assert config._targets == {}
    else:
        assert config.flags == bits(surface, "TF32", "STRIP_PLAN")
        assert config.hardware_compatibility_level.name == "NONE"
        assert config._targets == {0: "SM89", 1: "SM120"}
        assert config.num_compute_capabilities == 2


def test_no_option_is_forgotten_here() -> None:
    tested = set(EVERY_OPTION).union(*OPTIONS_OF.values())
    fields = {field.name for field in dataclasses.fields(BuildConfig)}
    assert fields - tested == {"backend", "optional_compute_capabilities"}
    defaults = BuildConfig()
    for options in (EVERY_OPTION, *OPTIONS_OF.values()):
        assert all(getattr(defaults, name) != value for name, value in options.items())


def test_refittable_weights(surface: Surface, compiled: Compile) -> None:
    build = Build(surface, IMAGE)
    compiled(build, weights="refittable")
    assert build.config.flags == bits(surface, "REFIT")


def test_same_compute_capability_where_there_is_such_a_level(
    surface: Surface, compiled: Compile
) -> None:
    build = Build(surface, IMAGE)
    asked = {"hardware_compatibility": "same-compute-capability"}
    if surface.has("HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY") and (
        surface.backend == "tensorrt"
    ):
        compiled(build, **asked)
        assert build.config.hardware_compatibility_level.name == "SAME_COMPUTE_CAPABILITY"
    else:
        with pytest.raises(BuildError, match=r"same-compute-capability.*TensorRT 10\.12"):
            compiled(build, **asked)


@pytest.fixture
def timed(surface: Surface, compiled: Compile, tmp_path: Path) -> Timed:
    """Builds that measure some kernels and share the file `kernels.timing`; what it did."""
    if surface.backend == "tensorrt-rtx":
        pytest.skip("TensorRT-RTX measures no kernels")

    def build(*kernels: bytes, on_step: Callable[[str], None] = lambda phase: None) -> str:
        timing = TimingCache(tmp_path / "kernels.timing")
        made = Build(surface, IMAGE, kernels=frozenset(kernels))
        compiled(made, on_step, timing, timing_cache=True)
        return timing.outcome

    return build


def test_a_timing_cache_is_extended_and_hit(timed: Timed) -> None:
    asked: list[list[bytes]] = [[], [b"a"], [b"a"], [b"b"], [b"a", b"b"]]
    outcomes = [timed(*kernels) for kernels in asked]
    assert outcomes == ["missed", "missed", "hit", "extended", "hit"]


def test_times_of_another_gpu_are_not_used(timed: Timed, tmp_path: Path) -> None:
    file = tmp_path / "kernels.timing"
    file.write_bytes(OF_ANOTHER_GPU + b" a")
    assert (timed(b"b"), file.read_bytes()) == ("missed", b"b")


def test_what_another_process_measured_meanwhile_stays(timed: Timed, tmp_path: Path) -> None:
    file = tmp_path / "kernels.timing"
    timed(b"a")
    outcome = timed(b"a", b"b", on_step=lambda phase: file.write_bytes(b"a c") and None)
    assert (outcome, file.read_bytes()) == ("extended", b"a b c")


def test_what_the_builder_refuses_is_said(
    surface: Surface, compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(IBuilderConfig, "add_optimization_profile", lambda self, profile: -1)
        with pytest.raises(BuildError, match=r"refused an optimization profile of .*1, 8, 64"):
            compiled(Build(surface, IMAGE))
    if surface.backend == "tensorrt-rtx":
        monkeypatch.setattr(IBuilderConfig, "set_compute_capability", lambda *_: False)
        with pytest.raises(BuildError, match=r"refused compute capability 12\.0"):
            compiled(Build(surface, IMAGE), compute_capabilities=("12.0",))


def test_a_timing_cache_that_cannot_be_written_costs_no_engine(
    surface: Surface, compiled: Compile, tmp_path: Path
) -> None:
    if surface.backend == "tensorrt-rtx":
        pytest.skip("TensorRT-RTX measures no kernels")
    (tmp_path / "file").touch()
    timing = TimingCache(tmp_path / "file" / "kernels.timing")
    assert compiled(Build(surface, IMAGE), timing=timing) == b"plan"


def test_another_gpu_is_made_current_before_tensorrt_looks(
    surface: Surface, compiled: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    monkeypatch.setattr(_cuda, "use_device", used.append)
    compiled(Build(surface, IMAGE))
    assert used == []  # TensorRT-RTX may have none
    config = BuildConfig(surface.backend)
    compile_engine(tmp_path / "model.onnx", config, lambda phase: None, device=1)
    assert used == [1]


def test_what_the_parser_refuses_is_told_with_its_node(surface: Surface, compiled: Compile) -> None:
    errors = (ParserError("no such operator\n", "conv7", "Convv"), ParserError("bad model"))
    with pytest.raises(BuildError) as caught:
        compiled(Build(surface, IMAGE, errors=errors))
    said = str(caught.value)
    assert f"{surface.backend} {surface.version} cannot parse the model" in said
    assert "node 'conv7' (Convv): no such operator" in said
    assert "bad model" in said


def test_a_build_without_an_engine_tells_the_errors_of_the_log(
    surface: Surface, compiled: Compile
) -> None:
    says = (("INFO", "chatter"), ("ERROR", "no kernel fits"), ("INTERNAL_ERROR", "lost"))
    with pytest.raises(BuildError) as caught:
        compiled(Build(surface, IMAGE, says=says, fails=True))
    said = str(caught.value)
    assert "no kernel fits" in said
    assert "lost" in said
    assert "chatter" not in said


def test_a_build_is_cancelled_between_steps(surface: Surface, compiled: Compile) -> None:
    steps: list[str] = []
    with pytest.raises(BuildError, match="cannot build the engine"):
        compiled(Build(surface, IMAGE), on_step=steps.append, stopped=lambda: True)
    assert steps == ["Building"]


def test_a_static_model_has_no_profile(surface: Surface, compiled: Compile) -> None:
    build = Build(surface, {"image": (4, 3, 8, 8)})
    compiled(build, profiles=((4, 4, 4),))
    assert build.config._profiles == []
