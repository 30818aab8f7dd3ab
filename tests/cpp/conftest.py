"""The C++ runtime, built once in a session, plainly and under sanitizers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cpp.toolchain import (
    PROJECT,
    Probe,
    build_preset,
    compile_all,
    configure,
    require_toolchain,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a session also waits for the build."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(scope="session")
def cpu() -> Path:
    """Build folder of the preset `cpu`."""
    return build_preset("cpu")


@pytest.fixture(scope="session")
def asan() -> Path:
    """Build folder of the preset `asan`."""
    return build_preset("asan")


@pytest.fixture(scope="session")
def infer(cpu: Path) -> Path:
    """The program densenet-infer."""
    return cpu / "app" / "densenet-infer"


@pytest.fixture(scope="session")
def infer_onnxruntime() -> Path:
    """densenet-infer with ONNX Runtime, whose headers no package has."""
    sdk = os.environ.get("ONNXRUNTIME_SDK", "")
    if not sdk:
        pytest.skip("no ONNX Runtime SDK; ONNXRUNTIME_SDK names an unpacked release")
    require_toolchain()
    build = PROJECT / "build" / "onnxruntime"
    options = ("-DDENSENET_DEPLOY_ONNXRUNTIME=ON", "-DDENSENET_DEPLOY_TESTS=OFF")
    configure(PROJECT, build, *options, f"-DOnnxRuntime_ROOT={sdk}")
    compile_all(build)
    return build / "app" / "densenet-infer"


@pytest.fixture(scope="module")
def probe(asan: Path) -> Iterator[Probe]:
    """The test program under AddressSanitizer and UndefinedBehaviorSanitizer."""
    with Probe(asan / "tests" / "probe") as running:
        yield running
