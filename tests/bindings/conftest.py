"""All versions of the bindings at once; `surface` in tests/conftest.py is one after the other."""

from __future__ import annotations

import pytest

from tests.bindings.install import Unavailable
from tests.bindings.surface import VERSIONS, Surface, load_surface


@pytest.fixture(scope="session")
def surfaces() -> dict[str, Surface]:
    """By what `VERSIONS` calls them."""
    try:
        return {version: load_surface(version) for version in VERSIONS}
    except Unavailable as error:
        pytest.skip(f"not all TensorRT bindings are here: {error}")
