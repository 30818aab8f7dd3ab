"""Strict reading of frozen dataclasses from TOML and JSON tables.

Config is data, checked once at the edge: an unknown key, a missing key and a value of the wrong
type are all reported together, each with its place in the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from densenet_deploy.errors import RecipeError

T = TypeVar("T")


def load_table(name: str, folder: Path, kind: str) -> tuple[dict[str, Any], Path]:
    """A TOML file by its name in `folder` or by its path, decoded, and where it is.

    Raises:
        RecipeError: There is no such `kind` of file, or it is not TOML.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise RecipeError(f"no {kind} {name!r}", expected=f"a .toml file or one of: {known}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, a number of 5,000 digits
        raise RecipeError(f"{path} is not valid TOML: {error}") from None


def read(cls: type[T], table: Any, where: str, problems: list[str]) -> T | None:
    """Builds dataclass `cls` from `table`, or appends to `problems` and returns None.

    Args:
        cls: A dataclass whose fields are str, int, float, bool, Literal, tuples, dicts with str
            keys, optionals, further dataclasses or unions of those.
        table: The decoded TOML or JSON value.
        where: Name of this table for the messages, such as `[export]`.
        problems: Receives one sentence for each thing that is wrong.
    """
    if not isinstance(table, Mapping):
        problems.append(f"{where} is {_show(table)}, expected a table")
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    before = len(problems)
    for key in sorted(table.keys() - fields.keys()):
        problems.append(_unknown_key(key, list(fields), where))
    values = {}
    for name, field in fields.items():
        place = f"{where} {name}".strip()
        if name in table:
            values[name] = _value(hints[name], table[name], place, problems)
        elif _required(field):
            problems.append(f"{place} is missing")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:  # a dataclass checks relations between its fields itself
        problems.append(f"{where}: {error}" if where else str(error))
        return None


def _unknown_key(key: str, known: list[str], where: str) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown key {key!r} in {where or 'the file'}{hint}; valid keys: {', '.join(known)}"


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _value(hint: Any, value: Any, place: str, problems: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return read(hint, value, place, problems)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        return _optional(arguments, value, place, problems)
    if origin is typing.Literal:
        return _one_of(arguments, value, place, problems)
    if origin is tuple:
        return _tuple(arguments, value, place, problems)
    if origin is dict:
        return _dict(arguments[1], value, place, problems)
    return _scalar(hint, value, place, problems)


def _optional(arguments: tuple[Any, ...], value: Any, place: str, problems: list[str]) -> Any:
    if value is None:
        return None
    choices = [argument for argument in arguments if argument is not type(None)]
    return _value(_closest(choices, value), value, place, problems)


def _closest(choices: list[Any], value: Any) -> Any:
    """Of several dataclasses the one whose fields differ least from the table's keys."""
    if len(choices) == 1 or not isinstance(value, Mapping):
        return choices[0]

    def different(choice: Any) -> int:
        return len({field.name for field in dataclasses.fields(choice)} ^ value.keys())

    return min(choices, key=different)


def _one_of(choices: tuple[Any, ...], value: Any, place: str, problems: list[str]) -> Any:
    if value not in choices:
        listed = ", ".join(map(str, choices))
        problems.append(f"{place} is {_show(value)}, expected one of: {listed}")
    return value


def _tuple(arguments: tuple[Any, ...], value: Any, place: str, problems: list[str]) -> Any:
    variadic = len(arguments) == 2 and arguments[1] is Ellipsis
    if not isinstance(value, list | tuple) or not (variadic or len(value) == len(arguments)):
        count = "" if variadic else f" of {len(arguments)}"
        problems.append(f"{place} is {_show(value)}, expected a list{count}")
        return None
    hints = [arguments[0]] * len(value) if variadic else arguments
    return tuple(
        _value(hint, item, f"{place}[{index}]", problems)
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _dict(hint: Any, value: Any, place: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{place} is {_show(value)}, expected a table")
        return None
    return {key: _value(hint, item, f"{place}.{key}", problems) for key, item in value.items()}


def _scalar(hint: Any, value: Any, place: str, problems: list[str]) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.float_info.max else value
    mistyped = not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    if mistyped or value != value:  # NaN satisfies no limit and passes every comparison
        names = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
        problems.append(f"{place} is {_show(value)}, expected {names.get(hint, hint.__name__)}")
        return None
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
