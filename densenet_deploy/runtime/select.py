"""Which engine of a bundle runs on a device, and for every other one what stands against it.

An engine is bound to the version of its builder and to the devices it was compiled for. TensorRT
itself finds out only while it loads a plan; the manifest tells before a byte is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import cast

from densenet_deploy import _cuda, _tensorrt
from densenet_deploy.bundle import Bundle, EngineRecord
from densenet_deploy.engine.options import TITLES
from densenet_deploy.engine_config import EngineBackend
from densenet_deploy.errors import BackendError, DeployError
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime import why_unavailable

_REMEDY = "build one on this machine, or run with --fallback rebuild,onnxruntime"
_AMPERE = (8, 0)


def choose_engine(
    bundle: Bundle, backend: str, precision: Precision, version: str, compute_capability: str
) -> EngineRecord:
    """The engine that fits a device; of several the one most closely made for it.

    Args:
        bundle: Whose manifest lists the engines.
        backend: `tensorrt` or `tensorrt-rtx`.
        precision: Of the graph.
        version: Of the installed library, such as `10.16.1.11`.
        compute_capability: Of the device, such as `8.9`.

    Raises:
        BackendError: None fits; says for every one which part differs.
    """
    of_backend = [item for item in bundle.manifest.engines if item.backend == backend]
    engines = [item for item in of_backend if item.precision == precision]
    if not engines:
        others = ", ".join(item.precision for item in of_backend)
        raise BackendError(
            f"{bundle.path} has no {backend} engine for {precision}",
            expected=f"one of {others}" if others else "",
            remedy=_REMEDY,
        )
    misfits = {item.file: misfit(item, version, compute_capability) for item in engines}
    fitting = [item for item in engines if not misfits[item.file]]
    if not fitting:
        reasons = "; ".join(f"{file} needs {reason}" for file, reason in misfits.items())
        here = f"{TITLES[engines[0].backend]} {version} on compute capability {compute_capability}"
        raise BackendError(
            f"no {backend} {precision} engine fits {here}: {reasons}",
            remedy=_REMEDY,
        )
    return min(fitting, key=_generality)


def why_cannot_run(
    bundle: Bundle, backend: str, precisions: Sequence[Precision], device: int = 0
) -> str:
    """Why a backend cannot run these precisions of a bundle here, as a clause; empty if it can.

    Beyond `why_unavailable`, TensorRT and TensorRT-RTX need engines that fit; the other backends
    compile the graph when they load it.

    Raises:
        BackendError: There is no backend of this name.
    """
    if (reason := why_unavailable(backend)) or backend not in TITLES:
        return reason
    try:
        version = _tensorrt.version(_tensorrt.load(cast(EngineBackend, backend)))
        capability = _cuda.compute_capability(device)
        for precision in precisions:
            choose_engine(bundle, backend, precision, version, capability)
    except DeployError as error:
        return error.found
    return ""


def misfit(engine: EngineRecord, version: str, compute_capability: str) -> str:
    """What an engine needs that it does not find, as a clause; empty if it fits."""
    return " and ".join(
        (*_version_misfit(engine, version), *_device_misfit(engine, compute_capability))
    )


def _version_misfit(engine: EngineRecord, found: str) -> Iterator[str]:
    """A plan runs on the very version that built it; a version compatible one on later ones too.

    NVIDIA's support policy: otherwise major, minor, patch and build must all match. Later majors
    count as later: NVIDIA runs version compatible TensorRT 10 plans on TensorRT 11.
    """
    product, built = TITLES[engine.backend], engine.version
    if engine.version_compatible:
        if _numbers(found) < _numbers(built):
            yield f"{product} {built} or later, not {found}"
    elif built != found:
        yield f"{product} {built}, not {found}"


def _device_misfit(engine: EngineRecord, found: str) -> Iterator[str]:
    """Compiled for the listed capabilities, or portable to Ampere (8.0) and everything later."""
    listed = engine.compute_capabilities
    from_ampere = engine.hardware_compatibility == "ampere-plus" or (
        engine.backend == "tensorrt-rtx" and not listed
    )
    if from_ampere:
        if _numbers(found) < _AMPERE:
            yield f"compute capability 8.0 or later, not {found}"
    elif found not in listed:
        yield f"compute capability {' or '.join(listed) or '(not recorded)'}, not {found}"


def _generality(engine: EngineRecord) -> int:
    """Portable engines may be slower than those made for one device and version."""
    portable = engine.hardware_compatibility == "ampere-plus" or not engine.compute_capabilities
    return portable + engine.version_compatible


def _numbers(version: str) -> tuple[int, ...]:
    """`10.16.1.11` as integers, which order as versions do."""
    return tuple(map(int, re.findall(r"\d+", version)))
