from __future__ import annotations

import string
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy import schema


@dataclass(frozen=True)
class Inner:
    low: int
    high: int = 10

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} exceeds high {self.high}")


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    share: float
    active: bool
    colour: Literal["red", "green"]
    pair: tuple[int, str]
    sizes: tuple[float, ...]
    inner: Inner
    limits: dict[str, float]
    free: dict[str, Any]
    note: str | None = None
    listed: tuple[Inner, ...] = ()
    extra: dict[str, Inner] = field(default_factory=dict)


numbers = st.floats(allow_nan=False)
inners = st.tuples(st.integers(), st.integers()).map(lambda p: Inner(min(p), max(p)))
outers = st.builds(
    Outer,
    name=st.text(),
    count=st.integers(),
    share=numbers,
    active=st.booleans(),
    colour=st.sampled_from(["red", "green"]),
    pair=st.tuples(st.integers(), st.text()),
    sizes=st.lists(numbers).map(tuple),
    inner=inners,
    limits=st.dictionaries(st.text(), numbers),
    free=st.dictionaries(st.text(), st.integers() | st.text()),
    note=st.none() | st.text(),
    listed=st.lists(inners, max_size=3).map(tuple),
    extra=st.dictionaries(st.text(), inners, max_size=3),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
FIELDS = list(Outer.__dataclass_fields__)


def valid() -> dict[str, Any]:
    return {
        "name": "n",
        "count": 3,
        "share": 0.5,
        "active": True,
        "colour": "red",
        "pair": [1, "one"],
        "sizes": [1.0, 2.5],
        "inner": {"low": 1},
        "limits": {"fp16": 0.1},
        "free": {},
    }


def listed(value: Any) -> Any:
    """Tuples as lists, the way TOML and JSON decode them."""
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


def read(table: Any, where: str = "") -> tuple[Outer | None, list[str]]:
    problems: list[str] = []
    return schema.read(Outer, table, where, problems), problems


@given(outers)
def test_any_valid_table_is_read_back(outer: Outer) -> None:
    assert read(listed(asdict(outer))) == (outer, [])


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(), values) | values)
def test_any_table_is_read_or_explained(table: Any) -> None:
    outer, problems = read(table)
    assert (outer is None) == bool(problems)
    assert all(problem.strip() for problem in problems)


@given(st.sampled_from(FIELDS), values)
def test_what_is_read_has_the_declared_types(name: str, value: Any) -> None:
    outer, _ = read(valid() | {name: value})
    if outer is None:
        return
    assert type(outer.name) is str
    assert type(outer.count) is int
    assert type(outer.share) is float
    assert type(outer.active) is bool
    assert outer.colour in ("red", "green")
    assert [type(item) for item in outer.pair] == [int, str]
    assert type(outer.sizes) is tuple and all(type(item) is float for item in outer.sizes)
    assert type(outer.inner) is Inner and type(outer.inner.low) is type(outer.inner.high) is int
    assert all(type(item) is float for item in outer.limits.values())
    assert outer.note is None or type(outer.note) is str
    assert all(type(item) is Inner for item in (*outer.listed, *outer.extra.values()))


@given(st.sets(st.sampled_from(FIELDS[:8]), min_size=1), st.sets(st.sampled_from("xyz")))
def test_every_problem_is_reported_at_once(wrong: set[str], unknown: set[str]) -> None:
    table = valid() | dict.fromkeys(wrong, object()) | dict.fromkeys(unknown, 1)
    outer, problems = read(table)
    assert outer is None
    assert len(problems) == len(wrong) + len(unknown)
    for name in wrong:
        assert any(problem.startswith(f"{name} is ") for problem in problems)
    for name in unknown:
        assert any(problem.startswith(f"unknown key {name!r}") for problem in problems)


@given(st.text(string.ascii_lowercase, min_size=1).filter(lambda key: key not in FIELDS))
def test_unknown_key_lists_the_valid_ones(key: str) -> None:
    _, (problem,) = read(valid() | {key: 1}, "[outer]")
    assert problem.startswith(f"unknown key {key!r} in [outer]")
    assert problem.endswith(f"valid keys: {', '.join(FIELDS)}")


def test_misspelt_key_suggests_the_right_one() -> None:
    _, (problem,) = read(valid() | {"colours": "red"})
    assert "unknown key 'colours' in the file (did you mean 'colour'?)" in problem


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"count": True}, "count is True, expected an integer"),
        ({"count": 1.0}, "count is 1.0, expected an integer"),
        ({"share": "0.5"}, "share is '0.5', expected a number"),
        ({"share": True}, "share is True, expected a number"),
        ({"share": float("nan")}, "share is nan, expected a number"),
        ({"share": 10**309}, f"share is 1{'0' * 56}..., expected a number"),
        ({"active": 1}, "active is 1, expected true or false"),
        ({"colour": "blue"}, "colour is 'blue', expected one of: red, green"),
        ({"colour": ["red"]}, "colour is ['red'], expected one of: red, green"),
        ({"pair": [1]}, "pair is [1], expected a list of 2"),
        ({"pair": [1, 2]}, "pair[1] is 2, expected a string"),
        ({"sizes": 1.0}, "sizes is 1.0, expected a list"),
        ({"sizes": [1, "2"]}, "sizes[1] is '2', expected a number"),
        ({"inner": 4}, "inner is 4, expected a table"),
        ({"inner": {}}, "inner low is missing"),
        ({"inner": {"low": 11}}, "inner: low 11 exceeds high 10"),
        ({"limits": {"fp16": None}}, "limits.fp16 is None, expected a number"),
        ({"note": 1}, "note is 1, expected a string"),
        ({"listed": [{"low": 1}, {}]}, "listed[1] low is missing"),
        ({"extra": {"a": {"low": "1"}}}, "extra.a low is '1', expected an integer"),
    ],
)
def test_problem_names_place_value_and_expectation(change: dict[str, Any], problem: str) -> None:
    assert read(valid() | change) == (None, [problem])
    assert read(valid() | change, "[run]") == (None, [f"[run] {problem}"])


def test_defaults_fill_what_is_absent_and_integers_become_numbers() -> None:
    outer, problems = read(valid() | {"share": 2, "sizes": [3]})
    assert problems == []
    assert outer is not None
    assert outer.inner == Inner(1, 10)
    assert (outer.note, outer.listed, outer.extra) == (None, (), {})
    assert (type(outer.share), outer.share) == (float, 2.0)
    assert [(type(size), size) for size in outer.sizes] == [(float, 3.0)]


def test_missing_keys_are_all_named() -> None:
    _, problems = read({})
    assert problems == [f"{name} is missing" for name in FIELDS[:10]]


@dataclass(frozen=True)
class _Round:
    radius: int
    colour: str = "red"


@dataclass(frozen=True)
class _Square:
    side: int
    tilt: float
    colour: str = "red"


@dataclass(frozen=True)
class _Drawn:
    shape: _Round | _Square
    frame: _Round | _Square | None = None


def test_a_union_is_read_as_the_closest_of_its_classes() -> None:
    problems: list[str] = []
    square, circle = {"side": 2, "tilt": 1}, {"radius": 3, "colour": "blue"}
    found = schema.read(_Drawn, {"shape": square, "frame": circle}, "", problems)
    assert found == _Drawn(_Square(2, 1.0), _Round(3, "blue")) and problems == []
    assert schema.read(_Drawn, {"shape": circle, "frame": None}, "", []) == _Drawn(
        _Round(3, "blue")
    )
    assert schema.read(_Drawn, {"shape": {"side": 2, "tilts": 1}}, "", problems) is None
    assert problems == [
        "unknown key 'tilts' in shape (did you mean 'tilt'?); valid keys: side, tilt, colour",
        "shape tilt is missing",
    ]
    assert schema.read(_Drawn, {"shape": 4}, "", problems) is None
    assert problems[-1] == "shape is 4, expected a table"
