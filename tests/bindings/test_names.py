"""Every TensorRT name in our source is in every version, or the options table says who lacks it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import densenet_deploy
from densenet_deploy.engine.options import OPTIONS, Option
from tests.bindings.surface import Surface

PACKAGE = Path(densenet_deploy.__file__).parent
DOOR = PACKAGE / "_tensorrt.py"
MODULE_NAMES = {"trt", "_trt"}  # what our source calls the loaded bindings
OWN_WORDS = {"precision"}  # of a bundle; ILayer.precision is what TensorRT 11 removed


def scopes() -> Iterator[tuple[Path, ast.stmt]]:
    """Top-level statements and methods of our modules that talk to TensorRT.

    Those are all in engine/ and all that have a name for TensorRT's module.
    """
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        named = any(last_name(node) in MODULE_NAMES for node in ast.walk(tree))
        if named or path.parent.name == "engine":
            for statement in tree.body:
                body = statement.body if isinstance(statement, ast.ClassDef) else [statement]
                yield from ((path, part) for part in body)


def last_name(node: ast.AST) -> str:
    """`c` of `a.b.c`, of `c` and of a parameter `c`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
            return name
    return ""


def chain(node: ast.AST, aliases: dict[str, str]) -> str | None:
    """Dotted name below the bindings, such as `BuilderFlag.TF32`; None for anything else."""
    if last_name(node) in MODULE_NAMES:
        return ""
    match node:
        case ast.Name(id=name):
            return aliases.get(name)
        case ast.Attribute(value=holder, attr=name):
            pass
        case ast.Call(func=ast.Name(id="getattr"), args=[holder, ast.Constant(value=name), *_]):
            pass
        case _:
            return None
    above = chain(holder, aliases)
    return None if above is None else f"{above}.{name}".lstrip(".")


def names_in(scope: ast.AST) -> set[str]:
    """Dotted names below the bindings, also through local names for parts of them."""
    aliases: dict[str, str] = {}
    for node in ast.walk(scope):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=value)
                | ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value)
            ):
                if name := chain(value, aliases):
                    aliases[target] = name
    found = {chain(node, aliases) for node in ast.walk(scope)}
    return {name for name in found if name} - {"__version__"}


def branches_on_version(path: Path, scope: ast.AST) -> bool:
    """Whether this is where a name may be missing: the door, in a function that asks for it."""
    return path == DOOR and any(last_name(node) == "hasattr" for node in ast.walk(scope))


def exists(surface: Surface, path: str) -> bool:
    """Whether the bindings have it; what is below a value of theirs is not theirs to name."""
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        member = surface.members.get(".".join(parts[:length]))
        if member is None or member.kind not in ("class", "enum"):
            return member is not None
    return True


def claimed(option: Option, surface: Surface) -> bool:
    """Whether the table says that this version has the option."""
    since = {str(backend): version for backend, version in option.since.items()}
    return surface.backend in since and _numbers(surface.version) >= _numbers(
        since[surface.backend]
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def told(name: str, surface: Surface) -> bool:
    """Whether the table says that this version lacks all options of that class."""
    first = name.partition(".")[0]
    options = [o for o in OPTIONS if any(n.partition(".")[0] == first for n in o.names)]
    return bool(options) and not any(claimed(option, surface) for option in options)


def test_the_walk_sees_attributes_aliases_and_getattr() -> None:
    source = """
def f(site, trt):
    flags = site.trt.BuilderFlag
    site.settings.set_flag(flags.TF32)
    base: Any = trt.ILogger
    x = base.Severity.ERROR
    getattr(trt.ProfilingVerbosity, "NONE")
    getattr(trt.ProfilingVerbosity, name)
"""
    classes = {"BuilderFlag", "ILogger", "ILogger.Severity", "ProfilingVerbosity"}
    members = {"BuilderFlag.TF32", "ILogger.Severity.ERROR", "ProfilingVerbosity.NONE"}
    assert names_in(ast.parse(source)) == classes | members


def test_the_walk_finds_our_modules() -> None:
    found = {str(path.relative_to(PACKAGE)) for path, _ in scopes()}
    assert {"_tensorrt.py", "engine/process.py", "runtime/tensorrt.py"} <= found
    names = set().union(*(names_in(scope) for _, scope in scopes()))
    assert {"Builder", "Runtime", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"} <= names


def test_every_name_exists_or_the_table_says_who_lacks_it(surfaces: dict[str, Surface]) -> None:
    problems = [
        f"{path.name}:{scope.lineno}: {surface} has no {name}"
        for path, scope in scopes()
        if not branches_on_version(path, scope)
        for name in sorted(names_in(scope))
        for surface in surfaces.values()
        if not exists(surface, name) and not told(name, surface)
    ]
    assert not problems, "\n".join(problems)


def test_a_missing_name_would_be_seen(surfaces: dict[str, Surface]) -> None:
    eleven, rtx = surfaces["11.4.0.106"], surfaces["rtx"]
    for name in ("BuilderFlag.FP16", "BuilderFlag.STRIP_PLAN_", "Buildr"):
        assert not exists(eleven, name)
        assert not told(name, eleven)
    assert not exists(eleven, "CudaGraphStrategy.DISABLED")
    assert told("CudaGraphStrategy.DISABLED", eleven)
    assert not told("CudaGraphStrategy.OFF", rtx)


def test_nothing_that_11_removed_is_used(surfaces: dict[str, Surface]) -> None:
    """By the last part of the name alone, so that attributes of any object are seen."""

    def last_names(surface: Surface) -> set[str]:
        return {path.rpartition(".")[2] for path in surface.members}

    removed = last_names(surfaces["10.16.1.11"]) - last_names(surfaces["11.4.0.106"])
    assert {"FP16", "int8_calibrator", "EXPLICIT_BATCH", "device_memory_size"} <= removed
    for path, scope in scopes():
        if not branches_on_version(path, scope):
            nodes = list(ast.walk(scope))
            given = [value for node in nodes if isinstance(node, ast.Call) for value in node.args]
            words = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            words |= {str(value.value) for value in given if isinstance(value, ast.Constant)}
            assert not words & removed - OWN_WORDS, f"{path.name}:{scope.lineno}"
