"""Which backends `bench` measures, and in which Python each runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError, RecipeError
from densenet_deploy.interpreter import Environment, inspect
from densenet_deploy.recipe import Precision
from densenet_deploy.results import Skipped
from densenet_deploy.runtime import BACKENDS, GPU_BACKENDS, why_unavailable
from densenet_deploy.runtime.select import why_cannot_run

_ALL = ""
Pythons = Annotated[
    list[str] | None,
    typer.Option(
        "--python",
        metavar="[BACKEND=]PATH",
        help="Interpreter of another environment that runs this backend, or all; repeatable.",
    ),
]
Gpu = Annotated[bool, typer.Option("--gpu", help="Every GPU backend that can run, and no other.")]
Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="Compile engines that the bundle lacks for this device.")
]


@dataclass(frozen=True)
class Selection:
    """What is to be measured.

    Attributes:
        backends: That run, here or in an environment of their own.
        skipped: The others, and why.
        environments: By backend, of those that do not run in this one.
    """

    backends: list[str]
    skipped: list[Skipped]
    environments: Mapping[str, Environment]

    @property
    def pythons(self) -> dict[str, str]:
        """Interpreter of each backend that does not run in this one."""
        return {name: found.python for name, found in self.environments.items()}

    def to_dict(self) -> dict[str, Any]:
        """Environments of their own, as records keep them."""
        return {name: dict(found.description) for name, found in self.environments.items()}


def select(
    bundle: Bundle,
    asked: Sequence[str],
    wanted: Sequence[Precision],
    pythons: Sequence[str],
    gpu: bool,
    rebuild: bool,
) -> Selection:
    """Finds out what can run; a backend that was asked for, also by `--python`, must.

    Raises:
        RecipeError: `--gpu` beside `--backend`, or a `--python` that names no backend.
        BackendError: A backend that was asked for cannot run, none can, or a `--python` is none.
    """
    if gpu and asked:
        raise RecipeError("--gpu and --backend", expected="one of them")
    paths = _paths(pythons)
    required = [*asked, *(name for name in paths if name not in (_ALL, *asked))]
    names = asked or (GPU_BACKENDS if gpu else BACKENDS)
    chosen = list(dict.fromkeys((*names, *required)))
    environments = _environments(paths, chosen)
    reasons = {
        name: environments[name].reasons[name]
        if name in environments
        else (why_unavailable(name) if rebuild else why_cannot_run(bundle, name, wanted))
        for name in chosen
    }
    for name in filter(reasons.get, required):
        where = f"in {environments[name].python}" if name in environments else "here"
        raise BackendError(f"{name} cannot run {where}: {reasons[name]}")
    available = [name for name in chosen if not reasons[name]]
    if not available:
        _complain(reasons, gpu)
    return Selection(
        available,
        [Skipped(name, reason) for name, reason in reasons.items() if reason],
        {name: found for name, found in environments.items() if name in available},
    )


def _paths(texts: Iterable[str]) -> dict[str, Path]:
    """`[BACKEND=]PATH` by backend; `_ALL` for those that none names."""
    paths: dict[str, Path] = {}
    for text in texts:
        backend, equals, path = text.partition("=")
        if not equals or "/" in backend or "\\" in backend:  # a path may hold a `=` too
            backend, path = _ALL, text
        if backend not in (_ALL, *BACKENDS):
            raise RecipeError(
                f"--python {text}: unknown backend {backend!r}",
                expected=f"one of {', '.join(BACKENDS)}",
            )
        if backend in paths:
            raise RecipeError(f"--python {text}", expected="one interpreter for each backend")
        paths[backend] = Path(path).expanduser()
    return paths


def _environments(paths: Mapping[str, Path], chosen: Sequence[str]) -> dict[str, Environment]:
    """Of each backend that does not run in this one; every interpreter is asked once."""
    elsewhere = {
        name: path for name in chosen if (path := paths.get(name, paths.get(_ALL))) is not None
    }
    found = {
        path: inspect(path, [name for name in elsewhere if elsewhere[name] == path])
        for path in dict.fromkeys(elsewhere.values())
    }
    return {name: found[path] for name, path in elsewhere.items()}


def _complain(reasons: Mapping[str, str], gpu: bool) -> None:
    if gpu:
        raise BackendError.collect(
            "no GPU backend can run", [f"{name}: {reason}" for name, reason in reasons.items()]
        )
    raise BackendError(
        "no backend can run here", remedy="install one: pip install 'densenet-deploy[ort]'"
    )
