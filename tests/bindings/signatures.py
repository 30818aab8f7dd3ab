"""The signatures pybind11 writes into docstrings: parsed, and compared with a call's arguments.

`set_shape(self: IOptimizationProfile, input: str, min: Dims, opt: Dims, max: Dims) -> None`
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PARAMETER = re.compile(r"(?P<stars>\**)(?P<name>\w+)(?:: (?P<type>.+?))?(?: = (?P<default>.+))?$")
SEQUENCE = re.compile(r"(?:List|list|collections\.abc\.Sequence)\[(.+)\]$")
KINDS = {
    "": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "*": inspect.Parameter.VAR_POSITIONAL,
    "**": inspect.Parameter.VAR_KEYWORD,
}


@dataclass(frozen=True)
class Signature:
    """One overload of a function; its annotations are pybind11's words.

    Attributes:
        text: As the docstring has it.
        bindable: Without the object a method is called on.
    """

    text: str
    bindable: inspect.Signature

    @property
    def returns(self) -> str:
        return str(self.bindable.return_annotation)

    def takes(
        self, arguments: Sequence[Any], keywords: Mapping[str, Any], classes: Container[str]
    ) -> bool:
        """Whether number, names and basic types of the arguments fit."""
        try:
            given = self.bindable.bind(*arguments, **keywords).arguments
        except TypeError:
            return False
        return all(
            fits(parameter.annotation, given[name], classes)
            or (given[name] is None and parameter.default == "None")
            for name, parameter in self.bindable.parameters.items()
            if name in given and parameter.kind is KINDS[""]
        )


def parse(text: str, of_object: bool) -> Signature:
    """Reads one signature; `of_object` says whether the first parameter is the object itself."""
    _, _, rest = text.partition("(")
    listed, _, returns = rest.rpartition(") -> ")
    parts = [part for part in _split(listed) if part not in ("/", "*")]
    parameters = [_parameter(part) for part in parts[1 if of_object else 0 :]]
    # unchecked, since in C++ a parameter without a default may follow those with one
    bindable = inspect.Signature(
        parameters, return_annotation=returns, __validate_parameters__=False
    )
    return Signature(text, bindable)


def _split(listed: str) -> Iterator[str]:
    """Parameters between their commas; those within brackets, <> and quotes do not count."""
    depth, start, quoted = 0, 0, False
    for position, character in enumerate(listed):
        quoted ^= character == "'"
        depth += 0 if quoted else (character in "([{<") - (character in ")]}>")
        if character == "," and not depth and not quoted:
            yield listed[start:position].strip()
            start = position + 1
    if listed[start:].strip():
        yield listed[start:].strip()


def _parameter(text: str) -> inspect.Parameter:
    match = PARAMETER.match(text)
    assert match, f"cannot read the parameter {text!r}"
    return inspect.Parameter(
        match["name"] + "_" * keyword.iskeyword(match["name"]),
        KINDS[match["stars"]],
        annotation=match["type"] or "object",
        default=match["default"] or inspect.Parameter.empty,
    )


def fits(declared: str, value: Any, classes: Container[str]) -> bool:
    """Whether the bindings take a value for a type. `classes` are theirs; other types take all.

    A tuple may become `Dims`, as there; stricter than they are, a truth value has to be one, and
    a class's object is never None.
    """
    if inner := SEQUENCE.match(declared):
        return _is_sequence(value) and all(fits(inner[1], item, classes) for item in value)
    if declared in classes and declared in names_of(value):
        return True
    check = CHECKS.get(declared)
    return check(value) if check else declared not in classes


def names_of(value: Any) -> set[str]:
    """The classes a value is of, by the names the bindings give them."""
    return {cls.__qualname__ for cls in type(value).__mro__}


def _is_integer(value: Any) -> bool:
    converts = hasattr(value, "__index__") or hasattr(value, "__int__")
    return converts and not isinstance(value, float)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(_is_integer(size) for size in value)


def _is_buffer(value: Any) -> bool:
    return "IHostMemory" in names_of(value) or isinstance(
        value, bytes | bytearray | memoryview | np.ndarray
    )


CHECKS: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool | np.bool_),
    "str": lambda value: isinstance(value, str),
    "FallbackString": lambda value: isinstance(value, str | bytes),
    "bytes": lambda value: isinstance(value, bytes),
    "tuple": lambda value: isinstance(value, tuple),
    "list": lambda value: isinstance(value, list),
    "float": lambda value: isinstance(value, float | int | np.number),
    "typing.SupportsFloat": lambda value: isinstance(value, float | int | np.number),
    "int": _is_integer,
    "typing.SupportsInt": _is_integer,
    "buffer": _is_buffer,
    "typing_extensions.Buffer": _is_buffer,
    "numpy.ndarray": lambda value: isinstance(value, np.ndarray),
    "Dims": _is_shape,
    "Permutation": _is_shape,
    "Weights": lambda value: isinstance(value, np.ndarray),
}
