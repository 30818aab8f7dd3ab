"""The C++ runtime on a real GPU, with an engine that Python compiled for it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.bundle import Bundle, EngineRecord, open_bundle, write_manifest
from densenet_deploy.engine.build import build_widest
from densenet_deploy.engine_config import BuildConfig
from densenet_deploy.runtime import open_runner
from densenet_deploy.verify import predict
from tests.cpp.toolchain import PROJECT, compile_all, configure, require_toolchain, run
from tests.gpu.conftest import why_no_engine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]  # an engine and the runtime are compiled
BUCKETS = ((1, 1, 1), (2, 4, 8), (9, 16, 64))


@pytest.fixture(scope="module")
def infer() -> Path:
    """densenet-infer of the preset `gpu`."""
    if reason := why_no_engine("tensorrt"):
        pytest.skip(f"tensorrt cannot run here: {reason}")
    root = os.environ.get("TENSORRT_ROOT", "")
    if not root:
        pytest.skip("no TensorRT SDK; TENSORRT_ROOT names an unpacked archive of Python's version")
    require_toolchain()
    build = PROJECT / "build" / "gpu"
    options = (f"-DTensorRT_ROOT={root}", f"-DPython3_EXECUTABLE={sys.executable}")
    configure(PROJECT, build, "--preset", "gpu", *options)
    compile_all(build, "densenet-infer")
    return build / "app" / "densenet-infer"


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def compiled(
    request: pytest.FixtureRequest,
    infer: Path,
    fashion_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """A bundle with an engine for this GPU."""
    path = tmp_path_factory.mktemp("gpu") / "bundle"
    bundle = open_bundle(Path(shutil.copytree(fashion_bundle, path)))
    targets = BuildConfig().compute_capabilities  # TensorRT compiles for the GPU it finds
    config = BuildConfig("tensorrt", BUCKETS, targets, (), timing_cache=False)
    built = build_widest(bundle.model(request.param, "tensorrt"), config)
    (path / "engine.plan").write_bytes(built.plan)
    record = EngineRecord(
        "engine.plan",
        "tensorrt",
        request.param,
        built.version,
        BUCKETS,
        built.compute_capabilities,
    )
    return write_manifest(path, replace(bundle.manifest, engines=(record,)))


def test_it_gives_pythons_answers(infer: Path, compiled: Bundle, tmp_path: Path) -> None:
    precision = compiled.manifest.engines[0].precision
    images = [compiled.file(name) for name in compiled.manifest.samples]
    options = ["--backend", "tensorrt", "--precision", precision]
    logits = tmp_path / "logits.npy"
    done = run(infer, "classify", compiled.path, *images, *options, "--save-logits", logits)
    assert done.code == 0, done.err
    with open_runner(compiled, "tensorrt", precision) as runner:
        expected = predict(runner, compiled.sample_pixels())
    assert np.abs(np.load(logits) - expected).max() <= 1e-4
    verified = run(infer, "verify", compiled.path, *options)
    assert verified.code == 0, verified.out


def test_it_measures_every_batch_size(infer: Path, compiled: Bundle) -> None:
    precision = compiled.manifest.engines[0].precision
    options = ["--backend", "tensorrt", "--precision", precision, "--batch", "1,8,64", "--json"]
    done = run(infer, "bench", compiled.path, *options, "--seconds", "0.5")
    assert [item["batch"] for item in done.json["measurements"]] == [1, 8, 64]
    assert done.json["environment"]["gpus"][0]["name"]
