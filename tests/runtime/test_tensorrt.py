"""The TensorRT runner over a simulated engine, behind the real surface of every version."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from densenet_deploy import _cuda
from densenet_deploy.bundle import Bundle, EngineRecord, TensorRecord, open_bundle, write_manifest
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.runner import Array
from tests.bindings.surface import Surface
from tests.runtime.conftest import Open, close
from tests.runtime.on_device import on_device
from tests.simulated import make_plan
from tests.simulated_cuda import Cuda
from tests.simulated_engine import ICudaEngine

BUCKETS = ((1, 1, 1), (2, 4, 8), (9, 16, 32))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_golden_logits(opened: Open, bundle: Bundle, cuda: Cuda, precision: Any) -> None:
    inputs, logits = bundle.golden()
    with opened(precision=precision) as runner:
        found = runner.run({"images": inputs})["logits"]
        assert runner.profiles == ((1, 8, 64),) and runner.cuda_graph
    assert np.abs(found - logits).max() < (1e-4 if precision == "fp32" else 1.5)
    assert (found.argmax(1) == logits.argmax(1)).all()
    assert not cuda.live


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("profiles", [((1, 8, 64),), BUCKETS, ((4, 8, 16),)])
def test_every_batch_size(
    opened: Open, images: Array, expected: Array, profiles: Any, cuda_graph: bool
) -> None:
    """Split, padded or as they are; from the largest to the smallest, so that shapes change."""
    with opened(profiles, cuda_graph=cuda_graph) as runner:
        for size in (70, 65, 64, 33, 32, 31, 17, 9, 8, 7, 4, 3, 2, 1):
            close(runner.logits(images[:size]), expected[:size])


def test_a_graph_per_shape_is_captured_once_and_replayed(
    opened: Open, images: Array, expected: Array, cuda: Cuda, surface: Surface
) -> None:
    with opened(BUCKETS) as runner:
        for size in (1, 3, 8, 3, 1, 17, 8, 3):
            close(runner.logits(images[size : 2 * size]), expected[size : 2 * size])
    made = [name for name, _ in cuda.calls].count("cudaGraphInstantiate")
    launched = [name for name, _ in cuda.calls].count("cudaGraphLaunch")
    # TensorRT-RTX captures by itself
    assert (made, launched) == ((4, 8) if surface.backend == "tensorrt" else (0, 0))


def test_the_graph_used_longest_ago_makes_room(
    opened: Open, images: Array, expected: Array, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densenet_deploy.runtime.execution.GRAPHS", 2)
    with opened() as runner:
        for size in (1, 2, 1, 3, 1, 2):
            close(runner.logits(images[:size]), expected[:size])
    names = [name for name, _ in cuda.calls]
    captures = 4 if runner.backend == "tensorrt" else 0  # of 1, 2, 3 and of 2 again
    assert names.count("cudaGraphInstantiate") == names.count("cudaGraphExecDestroy") == captures
    assert not cuda.live


@pytest.mark.parametrize("contexts", [1, 3])
def test_threads_share_contexts(
    opened: Open, images: Array, expected: Array, cuda: Cuda, contexts: int
) -> None:
    starts = [(7 * turn) % 60 for turn in range(24)]
    with opened(BUCKETS, contexts=contexts) as runner, ThreadPoolExecutor(6) as threads:
        found = list(
            threads.map(lambda row: runner.logits(images[row : row + row % 9 + 1]), starts)
        )
    for row, logits in zip(starts, found, strict=True):
        close(logits, expected[row : row + row % 9 + 1])
    streams = {args[-1] for name, args in cuda.calls if name == "execute_async_v3"}
    assert len(streams) <= contexts and not cuda.live


def test_closing_waits_for_what_runs_and_refuses_what_comes(opened: Open, images: Array) -> None:
    runner = opened()
    answers: list[Any] = []

    def ask() -> None:
        try:
            while True:
                answers.append(runner.logits(images[:2]))
        except BackendError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(answers) < 5:
        threading.Event().wait(0.01)
    runner.close()
    for thread in threads:
        thread.join(20)
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert len(refused) == 3 and all("closed" in answer for answer in refused)
    runner.close()
    with pytest.raises(BackendError, match="is closed"):
        runner.run_device({}, {})


def scenario(opened: Open, images: Array, cuda: Cuda) -> None:
    """Everything a runner does: opens, captures, replays, splits, runs on the device, closes."""
    with opened(((1, 1, 1), (2, 2, 3)), contexts=2) as runner:
        for size in (2, 4, 2):
            runner.logits(images[:size])
        with on_device(images[:2]) as given, on_device(np.zeros((2, 10))) as taken:
            runner.run_device({"images": given}, {"logits": taken}, taken.stream)


def test_every_failing_call_is_an_error_and_leaves_nothing(
    opened: Open, images: Array, cuda: Cuda
) -> None:
    scenario(opened, images, cuda)
    names = [name for name, _ in cuda.calls]
    assert not cuda.live and {"deserialize_cuda_engine", "cudaMallocHost", "cudaFree"} <= set(names)
    for index, name in enumerate(names):
        cuda.calls.clear()
        cuda.failing = index
        with pytest.raises(BackendError) as caught:
            scenario(opened, images, cuda)
        assert not cuda.live, f"call {index}, {name}"
        assert not cuda._captures, f"call {index}, {name}"
        told = (
            name,
            "cudaErrorLaunchFailure",
            "cudaErrorMemoryAllocation",
            "cannot load",
            "runtime",
        )
        assert any(word in str(caught.value) for word in told), f"{name}: {caught.value}"


def test_a_failed_request_does_not_spoil_the_next(
    opened: Open, images: Array, expected: Array, cuda: Cuda
) -> None:
    with opened(BUCKETS) as runner:
        runner.logits(images[:3])
        cuda.calls.clear()
        runner.logits(images[:9])
        for index in range(len(cuda.calls)):  # of a size that is met for the first time
            rows = slice(index, 2 * index + 10)
            cuda.calls.clear()
            cuda.failing = index
            with pytest.raises(BackendError):
                runner.logits(images[rows])
            cuda.failing = -1
            close(runner.logits(images[rows]), expected[rows])
            close(runner.logits(images[:3]), expected[:3])


def test_another_profile_or_dtype_than_the_manifest_says(opened: Open, bundle: Bundle) -> None:
    graph = bundle.model("fp32", "tensorrt").read_bytes()
    with pytest.raises(BackendError, match="'images' is HALF, the manifest says float32"):
        opened(how={"dtype": "HALF"})
    with pytest.raises(BackendError, match=r"profiles are .*2, 2.*, the manifest says"):
        opened(plan=make_plan(graph, ((1, 2, 2),)))
    renamed = replace(bundle.manifest, output=TensorRecord("scores", "float32", ("N", 10)))
    with pytest.raises(BackendError, match=r"output 'logits'; expected .*output 'scores'"):
        opened(of=replace(bundle, manifest=renamed))
    wider = replace(bundle.manifest, output=TensorRecord("logits", "float32", ("N", 11)))
    with pytest.raises(BackendError, match=r"'logits' has shape .*10.*, the manifest says .*11"):
        opened(of=replace(bundle, manifest=wider))


def test_an_output_that_is_not_on_the_device(
    opened: Open, surface: Surface, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = surface.enum("TensorLocation").HOST
    monkeypatch.setattr(ICudaEngine, "get_tensor_location", lambda self, name: host)
    with pytest.raises(BackendError, match="'logits' is on the HOST, not the DEVICE"):
        opened()


def test_a_static_engine_has_one_profile(
    opened: Open, bundle: Bundle, surface: Surface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for its profiles, a real one without dynamic inputs has none to tell."""
    shapes = {"images": (4, 1, 28, 28), "logits": (4, 10)}
    monkeypatch.setattr(ICudaEngine, "get_tensor_shape", lambda self, name: shapes[name])
    monkeypatch.setattr(ICudaEngine, "get_tensor_profile_shape", None)
    with opened(((4, 4, 4),)) as runner:
        assert runner.profiles == ((4, 4, 4),)


def test_a_plan_that_cannot_be_loaded(opened: Open, surface: Surface, cuda: Cuda) -> None:
    with pytest.raises(BackendError) as caught:
        opened(plan=b"garbage")
    assert f"{surface.backend} cannot load engines/a.plan" in str(caught.value)
    assert "magicTag does not match" in str(caught.value)
    assert ("MALFORMED_ENGINE" in str(caught.value)) == (surface.backend == "tensorrt-rtx")
    with pytest.raises(BackendError, match=r"it needs .*, not 8.9"):
        opened(plan=b"garbage", record={"compute_capabilities": ("7.5",)})
    assert not cuda.live


def test_a_stripped_engine_takes_the_weights_of_the_graph(
    opened: Open, images: Array, expected: Array, cuda: Cuda
) -> None:
    with opened(how={"weights": "stripped", "names": ["classifier.weight"]}) as runner:
        close(runner.logits(images[:4]), expected[:4])
    assert "refit_from_file" in [name for name, _ in cuda.calls]


def test_a_refit_with_other_weights_is_noticed(
    opened: Open, bundle: Bundle, damaged: Path, cuda: Cuda
) -> None:
    """The right names and shapes: only the answers tell."""
    graph = onnx.load(bundle.model("fp32"))
    for weight in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.ndim == 4:
            weight.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weight.name))
    (damaged / "fp32.onnx").write_bytes(graph.SerializeToString())
    other = write_manifest(damaged, bundle.manifest)
    with pytest.raises(BackendError, match=r"(?s)was refitted, and its answers .* agreement"):
        opened(of=other, how={"weights": "stripped"})
    assert not cuda.live


def test_an_engine_that_takes_no_weights(opened: Open, cuda: Cuda) -> None:
    """The manifest says stripped, the engine is not."""
    with pytest.raises(BackendError, match="takes no other weights"):
        opened(how={"weights": "embedded"}, record={"weights": "stripped"})
    assert not cuda.live


def test_a_version_compatible_plan_may_bring_its_runtime(
    opened: Open, images: Array, expected: Array
) -> None:
    """Code in a plan runs only where the manifest says that this one has some."""
    with pytest.raises(BackendError, match="cannot load"):
        opened(how={"host_code": True})
    with opened(how={"host_code": True}, record={"version_compatible": True}) as runner:
        close(runner.logits(images[:3]), expected[:3])


def test_a_refit_without_all_weights(opened: Open, cuda: Cuda) -> None:
    with pytest.raises(BackendError, match=r"fp32.onnx lacks weights of the engine: norm9.weight"):
        opened(how={"weights": "stripped", "names": ["classifier.weight", "norm9.weight"]})
    assert not cuda.live


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("dynamic_shapes", ["lazy", "eager", "none"])
def test_how_tensorrt_rtx_is_told_to_run(
    opened: Open,
    images: Array,
    cuda: Cuda,
    surface: Surface,
    cuda_graph: bool,
    dynamic_shapes: str,
) -> None:
    """Contexts are made, and kernels compiled, before the first request."""
    if surface.backend == "tensorrt":
        pytest.skip("TensorRT has no such strategies")
    with opened(contexts=2, cuda_graph=cuda_graph, dynamic_shapes=dynamic_shapes) as runner:
        made = [args[0] for name, args in cuda.calls if name == "create_execution_context"]
        cuda.calls.clear()
        runner.logits(images[:2])
        assert len(made) == 2
        assert "create_execution_context" not in [name for name, _ in cuda.calls]
    for settings in made:
        shapes = settings.dynamic_shapes_kernel_specialization_strategy
        assert shapes.name == dynamic_shapes.upper()
        captures = settings.cuda_graph_strategy
        assert captures.name == ("WHOLE_GRAPH_CAPTURE" if cuda_graph else "DISABLED")


def test_another_device_than_the_first(opened: Open, images: Array, cuda: Cuda) -> None:
    """And the caller's own device is the current one again after each call."""
    with opened(device=1) as runner:
        assert _cuda.current_device() == 0
        runner.logits(images[:2])
        assert _cuda.current_device() == 0
        with on_device(images[:2]) as given, on_device(np.zeros((2, 10))) as taken:
            with pytest.raises(BackendError, match="'images' is on GPU 0; expected GPU 1"):
                runner.run_device({"images": given}, {"logits": taken})
            assert _cuda.current_device() == 0
            cuda.calls.clear()
    chosen = [args for name, args in cuda.calls if name == "cudaSetDevice"]
    assert chosen == [(1,), (0,)]


def test_contexts_are_made_one_after_the_other(
    opened: Open, images: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT does not promise that threads may make them of one engine at once."""
    real, inside = ICudaEngine.create_execution_context, []

    def slowly(self: ICudaEngine, how: Any = None) -> Any:
        inside.append(how)
        assert len(inside) == 1
        threading.Event().wait(0.02)
        inside.pop()
        return real(self, how)

    monkeypatch.setattr(ICudaEngine, "create_execution_context", slowly)
    with opened(contexts=4) as runner, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda rows: runner.logits(images[:rows]), range(1, 9)))


def test_any_thread_closes(opened: Open, images: Array, cuda: Cuda) -> None:
    runner = opened(contexts=2)
    runner.logits(images[:2])
    with ThreadPoolExecutor(1) as other:
        other.submit(runner.close).result()
    assert not cuda.live


def test_kernels_compiled_on_the_device_are_kept(opened: Open, surface: Surface) -> None:
    if surface.backend == "tensorrt":
        with opened() as runner:
            assert runner.runtime_cache_hit is None
        with pytest.raises(BackendError, match="dynamic_shapes eager"):
            opened(dynamic_shapes="eager")
        return
    profiles = ((1, 3, 5),)  # an engine of this test's own
    for hit in (False, True, True):
        with opened(profiles, dynamic_shapes="eager") as runner:
            assert runner.runtime_cache_hit is hit
    with opened(profiles, runtime_cache=False) as runner:
        assert runner.runtime_cache_hit is None


def test_the_bundle_s_engine_for_this_device_is_opened(
    opened: Open, surface: Surface, damaged: Path, images: Array, expected: Array, cuda: Cuda
) -> None:
    """From `open_runner` on, whose checks see the simulated GPU too."""
    from densenet_deploy import runtime

    graph = open_bundle(damaged).model("fp32").read_bytes()
    (damaged / "a.plan").write_bytes(make_plan(graph, ((1, 2, 4),)))
    engine = EngineRecord(
        "a.plan", surface.backend, "fp32", surface.version, ((1, 2, 4),), ("8.9",)
    )
    manifest = replace(open_bundle(damaged).manifest, engines=(engine,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "package_version", lambda name: "1.0")
        with runtime.open_runner(
            write_manifest(damaged, manifest), surface.backend, "fp32"
        ) as runner:
            close(runner.logits(images), expected)
            assert runner.profiles == ((1, 2, 4),)
        cuda.calls.clear()
        second = RunConfig(device=1)
        runtime.open_runner(
            write_manifest(damaged, manifest), surface.backend, "fp32", config=second
        ).close()
    asked = {args[1] for name, args in cuda.calls if name == "cudaDeviceGetAttribute"}
    assert asked == {1}, "what fits the first device may not fit this one"
