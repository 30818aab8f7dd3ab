"""The TensorRT backend in C++ without a GPU: compiled and linked for real, run over a simulation.

Headers of TensorRT 10.14 are in the package kernel-lens, CUDA's in nvidia-cuda-runtime and
nvidia-cuda-crt, and tensorrt-lean-cu13-libs has a runtime of the same major version to link with.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from densenet_deploy.bundle import EngineRecord, open_bundle, write_manifest
from densenet_deploy.engine_config import Profile
from densenet_deploy.recipe import Precision
from tests.cpp.toolchain import (
    ENVIRONMENT,
    PROJECT,
    compile_all,
    configure,
    require_toolchain,
    run,
    unavailable,
)

SDK = {"kernel_lens": "include/tensorrt", "nvidia.cu13": "include", "tensorrt_lean_libs": ""}
HEADERS = os.environ.get("TENSORRT_HEADERS", "")  # folders of other versions, for a wider check
SANITIZED = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"


@pytest.fixture(scope="session")
def sdk() -> list[str]:
    """CMake options that name the headers and libraries."""
    require_toolchain()
    folders = {}
    for package, inside in SDK.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            unavailable(f"{package} is not installed; pip install -e '.[dev]' brings it")
            raise AssertionError
        folders[package] = Path(next(iter(spec.submodule_search_locations))) / inside
    cuda = folders["nvidia.cu13"]
    return [
        "-DDENSENET_DEPLOY_TENSORRT=ON",
        "-DDENSENET_DEPLOY_OPENVINO=OFF",
        f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DTensorRT_INCLUDE_DIR={folders['kernel_lens']}",
        f"-DTensorRT_LIBRARY={next(folders['tensorrt_lean_libs'].glob('libnvinfer_lean.so.*'))}",
        f"-DTensorRT_CUDA_INCLUDE_DIR={cuda}",
        f"-DTensorRT_CUDA_LIBRARY={next((cuda.parent / 'lib').glob('libcudart.so.*'))}",
    ]


@pytest.fixture(scope="session")
def linked(sdk: list[str]) -> Path:
    """densenet-infer linked with a real TensorRT runtime."""
    build = PROJECT / "build" / "tensorrt"
    configure(PROJECT, build, *sdk, "-DDENSENET_DEPLOY_TESTS=OFF")
    compile_all(build)
    return build / "app" / "densenet-infer"


@pytest.fixture(scope="session")
def simulated(sdk: list[str]) -> Path:
    """The backend's tests over a simulated GPU, under sanitizers."""
    build = PROJECT / "build" / "simulated"
    flags = f"-DCMAKE_CXX_FLAGS_DEBUG={SANITIZED}"
    options = ["-DDENSENET_DEPLOY_SIMULATED_GPU=ON", "-DDENSENET_DEPLOY_APP=OFF", flags]
    configure(PROJECT, build, *sdk, *options, "-DCMAKE_BUILD_TYPE=Debug")
    compile_all(build, "tensorrt_tests")
    return build / "tests" / "tensorrt_tests"


def engine(precision: Precision, file: str, *profiles: Profile) -> EngineRecord:
    """A record of an engine for the simulated GPU."""
    return EngineRecord(file, "tensorrt", precision, "10.16.1.11", profiles, ("8.9",))


@pytest.fixture(scope="session")
def bundles(fashion_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles with plans that the simulation reads, good ones and bad."""
    folder = tmp_path_factory.mktemp("bundles")
    one, buckets = (1, 8, 64), ((1, 1, 1), (4, 4, 8))
    good = (
        engine("fp32", "one.plan", one),
        engine("int8", "buckets.plan", *buckets),
        replace(engine("fp16", "old.plan", one), version="10.0.1.6"),
    )
    engines = {
        "good": good,
        "damaged": (engine("fp32", "damaged.plan", one),),
        "profiles": (engine("fp32", "one.plan", (1, 1, 64)),),
        "stripped": (replace(good[0], weights="stripped"),),
    }
    plans = {"one": "plan 1,8,64", "buckets": "plan 1,1,1 4,4,8", "old": "plan 1,8,64"}
    for name, records in engines.items():
        path = Path(shutil.copytree(fashion_bundle, folder / name))
        for stem, text in {**plans, "damaged": "plam"}.items():
            (path / f"{stem}.plan").write_text(text)
        write_manifest(path, replace(open_bundle(fashion_bundle).manifest, engines=records))
    return folder


def test_without_a_device_it_says_so(linked: Path, fashion_bundle: Path, gpu_less: None) -> None:
    done = run(linked, "backends")
    assert re.search(
        r"^tensorrt: no CUDA device \(.+\) \(TensorRT 10\.15\.1\.29\)$", done.out, re.M
    )
    done = run(linked, "verify", fashion_bundle, "--backend", "tensorrt")
    assert done.code == 2
    assert done.err.startswith("error: tensorrt cannot run here: no CUDA device (")
    done = run(linked, "bench", fashion_bundle)
    assert done.code == 2 and "no backend can run here" in done.err


@pytest.fixture
def gpu_less() -> None:
    """Skips where there is a GPU: tests/gpu is for those."""
    from densenet_deploy import _cuda

    if not _cuda.why_no_device():
        pytest.skip("this machine has a CUDA device")


def test_the_backend_over_a_simulated_gpu(simulated: Path, bundles: Path) -> None:
    environment = ENVIRONMENT | {"SIMULATED_BUNDLES": str(bundles)}
    done = subprocess.run([str(simulated)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.search(r"\[  PASSED  \] (\d+) tests", done.stdout)
    assert passed and int(passed[1]) >= 15


@pytest.mark.parametrize("folder", list(filter(None, HEADERS.split(os.pathsep))) or [""])
def test_it_compiles_without_warnings(folder: str, sdk: list[str], cpu: Path) -> None:
    """With the installed headers; with others too, which TENSORRT_HEADERS=DIR:DIR:... names."""
    options = dict(option[2:].split("=", 1) for option in sdk)
    headers = folder or options["TensorRT_INCLUDE_DIR"]
    command = ["c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command += [
        "-Werror=deprecated-declarations",
        f"-I{PROJECT / 'include'}",
        f"-I{PROJECT / 'src'}",
    ]
    command += [f"-I{cpu / 'include'}", "-isystem", headers]
    command += ["-isystem", options["TensorRT_CUDA_INCLUDE_DIR"]]
    for source in sorted((PROJECT / "src" / "backends" / "tensorrt").glob("*.cpp")):
        done = subprocess.run([*command, str(source)], capture_output=True, text=True)
        assert done.returncode == 0, f"{headers}\n{done.stderr[:3000]}"
