"""Our classes derived from the real ones, and what `checked` imitates held against the real."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bindings import probe
from tests.bindings.checked import checked_module
from tests.bindings.install import run_with
from tests.bindings.surface import Surface


@pytest.fixture
def real(surface: Surface, request: pytest.FixtureRequest) -> Any:
    """What `probe.py` finds with the bindings that `surface` is of."""
    return run_with(request.node.callspec.params["surface"], "probe.py")


def test_ours_are_of_the_real_classes_and_the_imitation_is_alike(
    surface: Surface, real: Any
) -> None:
    assert real["classes"] == {
        "derived": True,
        "network flags": 1 << int(surface.enum("NetworkDefinitionCreationFlag")["STRONGLY_TYPED"]),
        "errors": ["ERROR", "INTERNAL_ERROR"],
        "warnings": ["WARNING"],
        "steps": ["Building"],
        "going on": False,
    }
    imitation = checked_module(surface)
    assert probe.our_classes(imitation) == real["classes"]
    assert probe.behaviour(imitation) == real["behaviour"]
    assert len(set(real["behaviour"].values())) == 2
