"""The C++ runtime, built once in a session, plainly and under sanitizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cpp.toolchain import Probe, build_preset


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


@pytest.fixture(scope="module")
def probe(asan: Path) -> Iterator[Probe]:
    """The test program under AddressSanitizer and UndefinedBehaviorSanitizer."""
    with Probe(asan / "tests" / "probe") as running:
        yield running
