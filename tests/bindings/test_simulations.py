"""What simulates TensorRT cannot drift from it: each of its public names is a real one."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests import simulated, simulated_engine, simulated_rtx
from tests.bindings import simulated_builder, test_door, test_surface
from tests.bindings.surface import Surface

SIMULATED = (simulated, simulated_engine, simulated_rtx, simulated_builder)


def classes(module: ModuleType, surfaces: dict[str, Surface]) -> Iterator[type]:
    """Those that are named like a class of the bindings."""
    for cls in vars(module).values():
        if inspect.isclass(cls) and any(cls.__name__ in s.classes for s in surfaces.values()):
            yield cls


def public_names(cls: type) -> set[str]:
    """What it has: methods, and attributes of its own and of `self`."""
    (tree,) = ast.parse(inspect.getsource(cls)).body
    names = {name for name in vars(cls) if not name.startswith("_")}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("module", [*SIMULATED, test_door, test_surface], ids=lambda m: m.__name__)
def test_every_name_is_real(module: ModuleType, surfaces: dict[str, Surface]) -> None:
    found = list(classes(module, surfaces))
    assert found
    for cls in found:
        for name in public_names(cls):
            path = f"{cls.__name__}.{name}"
            assert any(surface.has(path) for surface in surfaces.values()), path


@pytest.mark.parametrize("module", SIMULATED, ids=lambda m: m.__name__)
def test_methods_take_what_the_real_ones_take(
    module: ModuleType, surfaces: dict[str, Surface]
) -> None:
    """By position: at least one overload of every version that has the method."""
    for cls in classes(module, surfaces):
        methods = {name: m for name, m in vars(cls).items() if inspect.isfunction(m)}
        for name, method in methods.items():
            for surface in surfaces.values():
                if not name.startswith("_") and surface.has(f"{cls.__name__}.{name}"):
                    overloads = surface.overloads(cls.__name__, name)
                    counts = [len(overload.bindable.parameters) for overload in overloads]
                    assert any(_takes(method, count) for count in counts), f"{cls} {name}"


def _takes(method: object, count: int) -> bool:
    try:
        inspect.signature(method).bind(None, *range(count))  # type: ignore[arg-type]
    except TypeError:
        return False
    return True
