"""What runs where the wanted engine does not: said, in the order asked for, or not at all."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densenet_deploy import _cuda, _tensorrt
from densenet_deploy.bundle import Bundle, EngineRecord, write_manifest
from densenet_deploy.classifier import classify
from densenet_deploy.engine import options
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError, BuildError, BundleError
from densenet_deploy.runtime import fallback, open_runner, why_unavailable
from densenet_deploy.runtime.fallback import open_with_fallback, rebuild_config
from densenet_deploy.runtime.runner import Runner
from densenet_deploy.runtime.select import why_cannot_run
from tests.bindings.surface import Surface
from tests.simulated import bindings, make_plan
from tests.simulated_cuda import Cuda

no_gpu = pytest.mark.skipif(
    not why_unavailable("tensorrt-rtx"), reason="TensorRT-RTX runs here; tests/gpu checks it"
)


def opened(bundle: Bundle, backend: str, ways: tuple[str, ...], **more: Any) -> tuple[str, str]:
    """(what ran, what was said); the golden images must have been answered."""
    said: list[str] = []
    with open_with_fallback(
        bundle, backend, "fp32", 1, fallback=ways, say=said.append, **more
    ) as runner:
        inputs, expected = bundle.golden()
        np.testing.assert_allclose(runner.logits(inputs), expected, atol=1e-3)
        return runner.backend, "\n".join(said)


def test_what_runs_needs_no_fallback(bundle: Bundle) -> None:
    assert opened(bundle, "openvino", ("rebuild", "onnxruntime")) == ("openvino", "")
    assert opened(bundle, "openvino", ()) == ("openvino", "")


@no_gpu
def test_the_order_is_the_one_asked_for(bundle: Bundle) -> None:
    reason = why_unavailable("tensorrt")
    ran, said = opened(bundle, "tensorrt", ("rebuild", "openvino", "onnxruntime"))
    assert ran == "openvino"
    assert said.splitlines() == [
        f"tensorrt: tensorrt cannot run here: {reason}.",
        f"rebuild: an engine for tensorrt could not run here: {reason}.",
        "fp32 runs on openvino",
    ]
    assert opened(bundle, "tensorrt", ("onnxruntime", "openvino"))[0] == "onnxruntime"


@no_gpu
def test_without_a_fallback_nothing_else_runs(bundle: Bundle) -> None:
    with pytest.raises(BackendError) as plain:
        open_runner(bundle, "tensorrt", "fp32")
    with pytest.raises(BackendError) as caught:
        open_with_fallback(bundle, "tensorrt", "fp32")
    assert str(caught.value) == str(plain.value)


def test_a_rebuild_that_fails_makes_way(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped bundle has no engines, so that its engine does not run anywhere."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise BuildError("no kernel fits")

    monkeypatch.setattr(fallback, "_rebuilt", refuse)
    said: list[str] = []
    ways = ("rebuild", "onnxruntime")
    with open_with_fallback(
        bundle, "tensorrt-rtx", "fp32", fallback=ways, say=said.append
    ) as runner:
        assert runner.backend == "onnxruntime"
    assert said[1:] == ["rebuild: no kernel fits.", "fp32 runs on onnxruntime"]


@no_gpu
def test_if_nothing_runs_one_error_has_every_reason(bundle: Bundle) -> None:
    said: list[str] = []
    with pytest.raises(BackendError) as caught:
        open_with_fallback(
            bundle,
            "tensorrt",
            "int8",
            fallback=("rebuild", "pytorch", "tensorrt-rtx"),
            say=said.append,
        )
    message = str(caught.value)
    assert message.startswith("int8 runs in none of the ways asked for: 4 problems\n")
    for part in ("tensorrt cannot run", "could not run here", "pytorch runs fp32 only, not int8"):
        assert part in message
    assert len(said) == 4 and message.count("\n  - ") == 4


@pytest.mark.parametrize("ways", [("rebiuld",), ("onnxruntime", "cuda", "rebiuld")])
def test_unknown_ways_are_refused_before_anything_is_opened(
    bundle: Bundle, ways: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> Runner:
        raise AssertionError("opened")

    monkeypatch.setattr(fallback, "open_runner", never)
    with pytest.raises(BackendError, match=r"'rebiuld'; expected some of rebuild, pytorch, onnx"):
        open_with_fallback(bundle, "onnxruntime", "fp32", fallback=ways)


@no_gpu
def test_a_missing_precision_is_not_worked_around(damaged: Path, bundle: Bundle) -> None:
    models = {"fp32": bundle.manifest.models["fp32"]}
    manifest = dataclasses.replace(bundle.manifest, models=models, lowered={})
    fp32_only = write_manifest(damaged, manifest)
    with pytest.raises(BundleError, match="has no int8 graph"):
        open_with_fallback(
            fp32_only, "tensorrt", "int8", fallback=("onnxruntime", "openvino"), say=lambda _: None
        )


@no_gpu
def test_only_backends_with_engines_are_rebuilt(bundle: Bundle) -> None:
    ran, said = opened(bundle, "onnxruntime-cuda", ("rebuild", "onnxruntime"))
    assert ran == "onnxruntime"
    assert "onnxruntime-cuda has no engines to rebuild; expected tensorrt or tensorrt-rtx" in said


def test_a_rebuild_is_for_this_device_and_library_alone(bundle: Bundle) -> None:
    recipe = bundle.manifest.recipe
    build = {
        **recipe["build"],
        "profiles": [[1, 4, 16]],
        "backend": "tensorrt",
        "hardware_compatibility": "ampere-plus",
        "version_compatible": True,
        "weights": "stripped",
        "optimization_level": 5,
    }
    manifest = dataclasses.replace(bundle.manifest, recipe={**recipe, "build": build})
    changed = dataclasses.replace(bundle, manifest=manifest)
    own = rebuild_config(changed, "tensorrt", "8.9")
    assert (own.backend, own.profiles, own.optimization_level) == ("tensorrt", ((1, 4, 16),), 5)
    assert (own.hardware_compatibility, own.version_compatible) == ("none", False)
    assert own.weights == "embedded"
    other = rebuild_config(changed, "tensorrt-rtx", "8.9")
    assert (other.profiles, other.optimization_level) == (((1, 4, 16),), 3)
    assert (other.compute_capabilities, other.optional_compute_capabilities) == (("8.9",), ())


def test_contexts_are_asked_of_engines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that was asked for itself may refuse them; one that steps in has one."""
    asked: list[tuple[str, int]] = []

    def refuse(bundle: Any, way: str, precision: Any, threads: int, config: RunConfig) -> Runner:
        asked.append((way, config.contexts))
        raise BackendError("no")

    monkeypatch.setattr(fallback, "open_runner", refuse)
    two, ways = RunConfig(contexts=2), ("tensorrt-rtx", "onnxruntime-cuda")
    for backend in ("tensorrt", "onnxruntime-cuda"):
        with pytest.raises(BackendError):
            open_with_fallback(None, backend, "fp32", 0, two, ways, lambda _: None)  # type: ignore[arg-type]
    engines = [("tensorrt", 2), ("tensorrt-rtx", 2), ("onnxruntime-cuda", 1)]
    assert asked == [
        *engines,
        ("onnxruntime-cuda", 2),
        ("tensorrt-rtx", 2),
        ("onnxruntime-cuda", 2),
    ]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("of", ["tensorrt", "tensorrt-rtx"])
def test_a_rebuild_asks_for_nothing_the_builder_refuses(
    bundle: Bundle, backend: Any, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "")
    recipe = {**bundle.manifest.recipe, "build": {"backend": of}}
    manifest = dataclasses.replace(bundle.manifest, recipe=recipe)
    config = rebuild_config(dataclasses.replace(bundle, manifest=manifest), backend, "9.0")
    options.check(config, backend, {"tensorrt": "10.0", "tensorrt-rtx": "1.4"}[backend])


def test_a_rebuild_compiles_the_bundles_own_graph_once(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX really compiles; the GPU that would run it is the only fake."""
    pytest.importorskip("tensorrt_rtx")
    plans: list[tuple[bytes, EngineRecord]] = []

    def open_plan(
        bundle: Bundle,
        backend: str,
        precision: Any,
        plan: bytes,
        record: EngineRecord,
        config: RunConfig,
    ) -> Runner:
        plans.append((plan, record))
        real = open_runner(bundle, "onnxruntime", precision, 1)
        return Runner(bundle, backend, precision, real.logits, real.close)

    monkeypatch.setattr("densenet_deploy.runtime.tensorrt.open_plan", open_plan)
    monkeypatch.setattr(fallback, "why_unavailable", lambda backend: "")
    monkeypatch.setattr(fallback, "default_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(_cuda, "compute_capability", lambda index: "8.6")
    for _ in range(2):
        ran, said = opened(bundle, "tensorrt-rtx", ("rebuild", "onnxruntime"))
        assert ran == "tensorrt-rtx"
        assert said.endswith("fp32 runs on an engine rebuilt for tensorrt-rtx")
    (first, record), (second, _) = plans
    assert first == second and first[:4] == b"vtrt" and len(first) > 100_000
    assert record == EngineRecord(
        "",
        "tensorrt-rtx",
        "fp32",
        _tensorrt.version(_tensorrt.load("tensorrt-rtx")),
        ((1, 8, 64),),
        ("8.6",),
    )
    assert len(list((tmp_path / "cache" / "engines").iterdir())) == 1


def test_an_engine_for_another_device_makes_way(
    bundle: Bundle, cuda: Cuda, surface: Surface, monkeypatch: pytest.MonkeyPatch, damaged: Path
) -> None:
    """On a simulated GPU: the engine that fits runs, one that does not is said to differ."""
    monkeypatch.setitem(sys.modules, surface.backend.replace("-", "_"), bindings(surface, cuda))
    for module in ("densenet_deploy.runtime", "densenet_deploy.runtime.select"):
        monkeypatch.setattr(f"{module}.why_unavailable", lambda backend: "")
    profiles = bundle.manifest.batch
    plan = make_plan(bundle.model("fp32", surface.backend).read_bytes(), (profiles,))
    (damaged / "a.plan").write_bytes(plan)
    here = _cuda.compute_capability(0)
    for capability in (here, "5.2"):
        engine = EngineRecord(
            "a.plan", surface.backend, "fp32", surface.version, (profiles,), (capability,)
        )
        manifest = dataclasses.replace(bundle.manifest, engines=(engine,))
        held = write_manifest(damaged, manifest)
        reason = why_cannot_run(held, surface.backend, ["fp32"])
        ran, said = opened(held, surface.backend, ("onnxruntime",))
        if capability == here:
            assert (ran, said, reason) == (surface.backend, "", "")
        else:
            assert ran == "onnxruntime"
            assert f"a.plan needs compute capability 5.2, not {here}" in reason
            assert f"a.plan needs compute capability 5.2, not {here}" in said


@no_gpu
def test_classify_falls_back_and_warns(bundle: Bundle) -> None:
    images = [bundle.file(name) for name in bundle.manifest.samples[:2]]
    with warnings.catch_warnings(record=True) as caught:
        found = classify(bundle, images, "tensorrt", fallback=("onnxruntime",))
    first, last = (str(warning.message) for warning in caught)
    assert "tensorrt cannot run here" in first and last == "fp32 runs on onnxruntime"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found == classify(bundle, images, "onnxruntime")
