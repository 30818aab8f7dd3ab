"""The inputs and outputs of an engine, checked against what the bundle promises."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from densenet_deploy.bundle import Manifest, TensorRecord
from densenet_deploy.engine_config import Profile
from densenet_deploy.errors import BackendError


@dataclass(frozen=True)
class EngineIO:
    """What a caller has to know of an engine; both tensors are float32 and on the device.

    Attributes:
        input: Name of the images.
        image: Their shape without the batch.
        output: Name of the logits.
        logit: Their shape without the batch.
        profiles: (min, opt, max) batch size of each optimization profile.
    """

    input: str
    image: tuple[int, ...]
    output: str
    logit: tuple[int, ...]
    profiles: tuple[Profile, ...]


def read_io(
    trt: ModuleType, engine: Any, manifest: Manifest, profiles: tuple[Profile, ...]
) -> EngineIO:
    """Reads an engine's inputs and outputs.

    Args:
        trt: Loaded bindings.
        engine: An ICudaEngine.
        manifest: Of the bundle the engine belongs to.
        profiles: What the bundle says of this engine.

    Raises:
        BackendError: Names every tensor and profile that is not as promised.
    """
    expected = {manifest.input.name: "INPUT", manifest.output.name: "OUTPUT"}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: engine.get_tensor_mode(name).name for name in names}
    if found != expected:
        raise BackendError(f"the engine has {_named(found)}", expected=_named(expected))
    problems = [
        problem
        for record in (manifest.input, manifest.output)
        for problem in _misfits(trt, engine, record)
    ]
    own = () if problems else read_profiles(engine, manifest.input.name)
    if not problems and own != profiles:
        problems = [f"its profiles are {own}, the manifest says {profiles}"]
    if problems:
        raise BackendError.collect("the engine is not the one the manifest describes", problems)
    return EngineIO(
        manifest.input.name,
        tuple(manifest.input.shape[1:]),
        manifest.output.name,
        tuple(manifest.output.shape[1:]),
        own,
    )


def read_profiles(engine: Any, name: str) -> tuple[Profile, ...]:
    """Batch sizes of each optimization profile; those of a static batch are that one."""
    static = engine.get_tensor_shape(name)[0]
    if static != -1:
        return ((static, static, static),)
    shapes = [
        engine.get_tensor_profile_shape(name, index)
        for index in range(engine.num_optimization_profiles)
    ]
    return tuple((low[0], best[0], high[0]) for low, best, high in shapes)


def _misfits(trt: ModuleType, engine: Any, record: TensorRecord) -> list[str]:
    name, problems = record.name, []
    dtype, location = engine.get_tensor_dtype(name), engine.get_tensor_location(name)
    shape, promised = tuple(engine.get_tensor_shape(name)), tuple(record.shape[1:])
    if dtype != trt.DataType.FLOAT or record.dtype != "float32":
        problems.append(f"{name!r} is {dtype.name}, the manifest says {record.dtype}")
    if location != trt.TensorLocation.DEVICE:
        problems.append(f"{name!r} is on the {location.name}, not the DEVICE")
    if shape[1:] != promised:
        problems.append(f"{name!r} has shape {shape}, the manifest says (N, *{promised})")
    return problems


def _named(modes: dict[str, str]) -> str:
    return ", ".join(f"{mode.lower()} {name!r}" for name, mode in modes.items()) or "no tensors"
