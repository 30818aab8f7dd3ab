"""The self-consistency gate over a simulated engine: what is particular to one applies there."""

from __future__ import annotations

import pytest

from densenet_deploy.bundle import Bundle
from densenet_deploy.consistency import check
from densenet_deploy.consistency_rules import RULES
from tests.bindings.surface import Surface
from tests.runtime.conftest import Open


@pytest.mark.parametrize("profiles", [((1, 8, 64),), ((1, 1, 1), (2, 4, 8), (9, 16, 32))])
def test_an_engine_runner_keeps_every_rule(
    opened: Open, surface: Surface, bundle: Bundle, profiles: tuple[tuple[int, int, int], ...]
) -> None:
    """Two contexts, several profiles, CUDA graphs against none."""
    images = bundle.manifest.preprocessing.normalise(bundle.sample_pixels())
    with (
        opened(profiles, contexts=2) as runner,
        opened(profiles, contexts=2, cuda_graph=False) as plain,
    ):
        result = check(runner, images, plain)
    assert result, result.summary()
    assert all(not finding.skipped for finding in result.findings)
    assert [finding.rule for finding in result.findings] == list(RULES)
    assert result.backend == surface.backend
