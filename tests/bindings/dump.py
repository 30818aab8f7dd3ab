"""Child process: imports the real bindings named in argv and prints their surface as JSON.

Run as `python dump.py MODULE`. Standard output: {"version": text, "members": {name: record}}, names
dotted below the module. What a record holds depends on its `kind`, see `surface.Member`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

Records = Iterator[tuple[str, dict[str, Any]]]
SPECIAL = {"__init__", "__int__", "__index__", "__len__", "__getitem__", "__members__"}
QUALIFIERS = re.compile(
    r"\b(?:tensorrt(?:_rtx)?_bindings\.tensorrt(?:_rtx)?\.|nvinfer1::(?:v_1_0::)?|nvonnxparser::)"
)
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w*\(.*\) -> .+)$", re.MULTILINE)


def module_members(module: ModuleType) -> Records:
    """Classes with all they hold, constants and functions of the bindings."""
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        if inspect.isclass(value):
            yield from class_members(name, value)
        elif isinstance(getattr(type(value), "__members__", None), dict):
            yield name, constant(value)
        elif callable(value):
            yield name, {"kind": "function", "signatures": signatures(value)}


def class_members(path: str, cls: type) -> Records:
    """The class itself and its members, inherited ones included."""
    kind = "enum" if hasattr(cls, "__members__") else "class"
    bases = [base.__qualname__ for base in cls.__mro__[1:] if base.__module__ == cls.__module__]
    yield path, {"kind": kind, "name": cls.__qualname__, "bases": bases}
    for name in dir(cls):
        if name.startswith("_") and name not in SPECIAL:
            continue
        value = inspect.getattr_static(cls, name)
        if inspect.isclass(value):
            yield from class_members(f"{path}.{name}", value)
        else:
            yield f"{path}.{name}", member(cls, name, value)


def member(cls: type, name: str, static: Any) -> dict[str, Any]:
    """Record of one member of a class; `static` is what the class's dictionary holds."""
    if isinstance(static, property):
        accessors = {"get": static.fget, "set": static.fset}
        return {"kind": "property"} | {k: signatures(v) for k, v in accessors.items() if v}
    value = getattr(cls, name)
    if callable(value):
        kind = "static method" if isinstance(static, staticmethod) else "method"
        return {"kind": kind, "signatures": signatures(value)}
    return constant(value)


def constant(value: Any) -> dict[str, Any]:
    """Record of an enum member or an integer; of another fixed value only that it is there."""
    if isinstance(getattr(type(value), "__members__", None), dict):
        enum = type(value).__qualname__
        name = str(value).rpartition(".")[2]  # `ErrorCode.name` is a method
        return {"kind": "constant", "enum": enum, "name": name, "value": int(value)}
    return {"kind": "constant", "value": value if isinstance(value, int) else None}


def signatures(function: Any) -> list[str]:
    """Signatures that pybind11 writes into docstrings; empty for what is written in Python."""
    return SIGNATURE.findall(QUALIFIERS.sub("", function.__doc__ or ""))


if __name__ == "__main__":
    bindings = importlib.import_module(sys.argv[1])
    document = {"version": bindings.__version__, "members": dict(module_members(bindings))}
    json.dump(document, sys.stdout, indent=1)
