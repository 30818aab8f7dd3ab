"""What runs when the wanted engine does not: other ways, in the order they were asked for.

Nothing is tried that was not asked for, and every step is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

from densenet_deploy import _cuda
from densenet_deploy.bundle import MANIFEST, Bundle, EngineRecord
from densenet_deploy.engine.build import build_widest
from densenet_deploy.engine.cache import default_cache
from densenet_deploy.engine.options import TITLES
from densenet_deploy.engine_config import BuildConfig, EngineBackend, RunConfig
from densenet_deploy.errors import BackendError, BuildError, MissingDependencyError
from densenet_deploy.progress import Track, silent
from densenet_deploy.recipe import Precision, parse_recipe
from densenet_deploy.runtime import BACKENDS, DEFAULT_RUN, open_runner, why_unavailable
from densenet_deploy.runtime.runner import Runner

REBUILD = "rebuild"
Opener = Callable[[Bundle, str, Precision, int, RunConfig], Runner]
Say = Callable[[str], None]
# What another way may still get around; a damaged bundle, for one, is none of it.
_CANNOT = (BackendError, BuildError, MissingDependencyError)


def check_fallback(fallback: Sequence[str]) -> None:
    """Refuses a way that does not exist, before anything is opened.

    Raises:
        BackendError: Names every unknown one.
    """
    known = (REBUILD, *BACKENDS)
    if unknown := [repr(name) for name in fallback if name not in known]:
        raise BackendError(f"fallback {', '.join(unknown)}", expected=f"some of {', '.join(known)}")


def open_with_fallback(
    bundle: Bundle,
    backend: str,
    precision: Precision,
    threads: int = 0,
    config: RunConfig = DEFAULT_RUN,
    fallback: Sequence[str] = (),
    say: Say = print,
    track: Track = silent,
) -> Runner:
    """Opens a backend as `open_runner` does, or the first way of `fallback` that works.

    Args:
        bundle: A verified bundle.
        backend: The one that is wanted.
        precision: One the bundle has.
        threads: CPU threads; 0 for all cores.
        config: Of a GPU backend. Its contexts are an engine's: a backend without one that steps in
            runs one request at a time.
        fallback: `rebuild`, which compiles the bundle's own graph for this device with the wanted
            backend, or names of backends.
        say: Is told why each way does not work, and which one does.
        track: Progress reporter of a rebuild.

    Returns:
        A runner whose `backend` is the one that runs.

    Raises:
        BackendError: A way does not exist, or none works; gives the reason of each.
        BundleError: The bundle has no such precision.
    """
    check_fallback(fallback)
    why_unavailable(backend)  # raises for an unknown one: a mistake, and nothing to work around
    reasons: list[str] = []
    alone = dataclasses.replace(config, contexts=1)
    for way in (backend, *fallback):
        try:
            if way == REBUILD:
                runner = _rebuilt(bundle, backend, precision, config, track)
            else:
                run = config if way == backend or way in TITLES else alone
                runner = open_runner(bundle, way, precision, threads, run)
        except _CANNOT as error:
            if not fallback:
                raise
            reasons.append(str(error))
            say(f"{way}: {error}")
            continue
        if reasons:
            how = "an engine rebuilt for " if way == REBUILD else ""
            say(f"{precision} runs on {how}{runner.backend}")
        return runner
    raise BackendError.collect(f"{precision} runs in none of the ways asked for", reasons)


def _rebuilt(
    bundle: Bundle, backend: str, precision: Precision, config: RunConfig, track: Track
) -> Runner:
    """A runner over an engine of the bundle's graph, compiled here or found in the cache."""
    if backend not in TITLES:
        raise BackendError(f"{backend} has no engines to rebuild", expected=" or ".join(TITLES))
    if reason := why_unavailable(backend):
        raise BackendError(f"an engine for {backend} could not run here: {reason}")
    from densenet_deploy.runtime import tensorrt

    how = rebuild_config(
        bundle, cast(EngineBackend, backend), _cuda.compute_capability(config.device)
    )
    built = build_widest(
        bundle.model(precision, backend), how, track, cache=default_cache(), device=config.device
    )
    record = EngineRecord(
        file="",
        backend=how.backend,
        precision=precision,
        version=built.version,
        profiles=how.profiles,
        compute_capabilities=built.compute_capabilities,
    )
    return tensorrt.open_plan(bundle, backend, precision, built.plan, record, config)


def rebuild_config(bundle: Bundle, backend: EngineBackend, compute_capability: str) -> BuildConfig:
    """How the bundle's recipe builds, for this device and library alone: nothing is shipped.

    Another backend's options are left out: only the profiles are the recipe's then.
    """
    recipe = parse_recipe(bundle.manifest.recipe, MANIFEST).build
    if recipe.backend != backend:
        recipe = BuildConfig(backend=backend, profiles=recipe.profiles)
    if backend == "tensorrt-rtx":  # TensorRT is told none: it compiles for the GPU it finds
        recipe = dataclasses.replace(recipe, compute_capabilities=(compute_capability,))
    return dataclasses.replace(
        recipe,
        optional_compute_capabilities=(),
        hardware_compatibility="none",
        version_compatible=False,
        weights="embedded",
    )
