"""What real TensorRT bindings have: names, enum integers, signatures; and a check against it.

`load_surface("10.0.1").has("BuilderFlag.STRIP_PLAN")` is true or false, and
`check_call("Builder", "create_network", (1,))` an AssertionError where no overload takes that.
"""

from __future__ import annotations

import enum
import functools
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bindings.install import WHEELS, run_with
from tests.bindings.signatures import Signature, parse

VERSIONS = (*WHEELS, "rtx")


class BindingEnum(enum.Enum):
    """An enum as pybind11 makes them: int(member) is its integer, yet it is not one itself.

    `1 << member` is a TypeError and `member == 3` is False, here and there.
    """

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__


@dataclass(frozen=True)
class Member:
    """A class, or what a class or the module has.

    Attributes:
        kind: `class`, `enum`, `method`, `static method`, `property`, `function` or `constant`.
        name: A class's own name, or that of an enum member; a path can be another name for it.
        signatures: Overloads of what can be called; none for what is written in Python, and for
            the `__init__` of a class that cannot be made.
        bases: Classes a class derives from.
        readable: Type of a property, empty if it cannot be read.
        writable: Type a property takes, empty if it takes none.
        enum: Class of a constant that is an enum member.
        value: Integer of a constant.
    """

    kind: str
    name: str = ""
    signatures: tuple[Signature, ...] = ()
    bases: tuple[str, ...] = ()
    readable: str = ""
    writable: str = ""
    enum: str = ""
    value: int | None = None


class Surface:
    """The bindings of one version.

    Attributes:
        backend: `tensorrt` or `tensorrt-rtx`.
        version: Such as `10.0.1`.
        members: By dotted name below the module, such as `ILogger.Severity.ERROR`.
        classes: Dotted names of the classes and enums.
    """

    def __init__(self, backend: str, document: Mapping[str, Any]) -> None:
        self.backend = backend
        self.version = str(document["version"])
        records = document["members"]
        self.members = {path: _member(record) for path, record in records.items()}
        self.classes = {path for path, record in records.items() if "bases" in record}
        self._enums: dict[str, type[BindingEnum]] = {}

    def __str__(self) -> str:
        return f"{self.backend} {self.version}"

    def has(self, path: str) -> bool:
        """Whether there is such a name, as in `BuilderFlag.STRIP_PLAN`."""
        return path in self.members

    def enum(self, path: str) -> type[BindingEnum]:
        """An enum with the members and integers of this version, always the same object."""
        assert self.has(path), f"{self} has no {path}"
        name = self.members[path].name
        if name not in self._enums:
            members = {
                constant.rpartition(".")[2]: member.value
                for constant, member in self.members.items()
                if member.enum == name and constant.rpartition(".")[0] == name
            }
            by_integer = sorted(members.items(), key=lambda item: item[1])
            self._enums[name] = BindingEnum(
                name.rpartition(".")[2], by_integer, module=__name__, qualname=name
            )
        return self._enums[name]

    def overloads(self, class_name: str, method: str) -> tuple[Signature, ...]:
        """Signatures of a method or of `__init__`."""
        path = f"{class_name}.{method}"
        assert self.has(path), f"{self} has no {path}"
        return self.members[path].signatures

    def check_call(
        self,
        class_name: str,
        method: str,
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Signature | None:
        """The overload that takes a call; None where the bindings do not tell their signatures.

        Raises:
            AssertionError: None takes it, by the number, the names or the types of the arguments;
                or there is no such method.
        """
        overloads, named = self.overloads(class_name, method), keywords or {}
        for overload in overloads:
            if overload.takes(arguments, named, self.classes):
                return overload
        if not overloads and method != "__init__":
            return None
        given = [
            *map(reprlib.repr, arguments),
            *(f"{k}={reprlib.repr(v)}" for k, v in named.items()),
        ]
        known = "".join(f"\n  {overload.text}" for overload in overloads) or " no constructor"
        call = f"{class_name}.{method}({', '.join(given)})"
        raise AssertionError(f"{self} takes no {call}; it has{known}")


def _member(record: Mapping[str, Any]) -> Member:
    of_object = record["kind"] in ("method", "property")
    getter, setter = (
        [parse(text, of_object) for text in record.get(key, ())] for key in ("get", "set")
    )
    return Member(
        kind=record["kind"],
        name=record.get("name", ""),
        signatures=tuple(parse(text, of_object) for text in record.get("signatures", ())),
        bases=tuple(record.get("bases", ())),
        readable=getter[0].returns if getter else "object" * ("get" in record),
        writable=_only_type(setter[0]) if setter else "object" * ("set" in record),
        enum=record.get("enum", ""),
        value=record.get("value"),
    )


def _only_type(setter: Signature) -> str:
    (parameter,) = setter.bindable.parameters.values()
    return str(parameter.annotation)


@functools.cache
def load_surface(version: str) -> Surface:
    """Reads the bindings of one of `VERSIONS`, once a process.

    Raises:
        Unavailable: They cannot be had here.
    """
    backend = "tensorrt-rtx" if version == "rtx" else "tensorrt"
    return Surface(backend, run_with(version, "dump.py"))
