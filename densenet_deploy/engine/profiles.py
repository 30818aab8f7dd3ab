"""Optimization profiles: the batch sizes an engine is compiled for, over its dynamic inputs."""

from __future__ import annotations

from typing import Any

from densenet_deploy.engine_config import Profile
from densenet_deploy.errors import BuildError


def add_profiles(builder: Any, network: Any, settings: Any, profiles: tuple[Profile, ...]) -> None:
    """Adds each (min, opt, max) batch for every input whose dimension 0 is dynamic.

    Raises:
        BuildError: An input does not fit the batch sizes, or the builder refused a profile.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    if problems := _misfits(shapes, profiles):
        raise BuildError.collect("the model does not fit the batch sizes", problems)
    dynamic = {name: shape for name, shape in shapes.items() if shape[:1] == (-1,)}
    if not dynamic:
        return
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for name, shape in dynamic.items():
            profile.set_shape(name, *((size, *shape[1:]) for size in sizes))
        if settings.add_optimization_profile(profile) < 0:
            raise BuildError(f"the builder refused an optimization profile of batch {sizes}")


def _misfits(shapes: dict[str, tuple[int, ...]], profiles: tuple[Profile, ...]) -> list[str]:
    problems = []
    for name, shape in shapes.items():
        if -1 in shape[1:]:
            problems.append(f"input {name!r} has shape {shape}; only dimension 0 may be dynamic")
        elif shape and shape[0] != -1 and profiles != ((shape[0],) * 3,):
            asked = " and ".join(",".join(map(str, sizes)) for sizes in profiles)
            problems.append(
                f"input {name!r} has the static batch size {shape[0]}, the configuration "
                f"asks for {asked} (min, opt, max)"
            )
    return problems
