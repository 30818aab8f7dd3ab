"""What train's options make of a recipe."""

from __future__ import annotations

import pytest

from densenet_deploy.cli.training import _chosen
from densenet_deploy.schedule import learning_rate


@pytest.mark.parametrize("name", ["fashion-mnist", "paper/densenet-40-12/c10"])
def test_a_recipe_that_is_shortened_keeps_its_warm_up_in_proportion(name: str) -> None:
    whole, short = (_chosen(name, epochs, 0, "").train for epochs in (None, 5))
    for share in (0.0, 0.02, 0.04, 0.25, 0.5, 0.6, 0.75, 0.9, 0.999):
        expected = learning_rate(whole, share * whole.epochs)
        assert learning_rate(short, share * 5) == pytest.approx(expected, rel=1e-9, abs=1e-12)
