"""Turns: who is asked when, and when all are started anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from densenet_deploy.turns import Turns, take_turns


class Recorded:
    """A side that writes down when it is asked."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name, self.opened = log, name, f"{name}{len(log)}"

    def seconds(self) -> float:
        """The place of this sample in the log."""
        self.log.append(self.name)
        return len(self.log)


@contextlib.contextmanager
def recorded(log: list[str], name: str) -> Iterator[Recorded]:
    log.append(f"+{name}")
    try:
        yield Recorded(log, name)
    finally:
        log.append(f"-{name}")


@pytest.mark.parametrize(
    ("rounds", "block", "expected"),
    [
        (4, 1, "+a+b ab -b-a +b+a ba -a-b +a+b ab -b-a +b+a ba -a-b"),
        (4, 2, "+a+b abba -b-a +b+a abba -a-b"),
        (4, 4, "+a+b abbaabba -b-a"),
        (6, 3, "+a+b abbaab -b-a +b+a baabba -a-b"),
    ],
)
def test_every_second_round_and_launch_goes_backwards(
    rounds: int, block: int, expected: str
) -> None:
    log: list[str] = []
    take_turns([partial(recorded, log, name) for name in "ab"], rounds, block)
    assert "".join(log) == expected.replace(" ", "")


def test_what_is_kept_of_each_side() -> None:
    log: list[str] = []
    shown: list[Any] = []

    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        shown.append((description, total))
        yield from items

    found = take_turns([partial(recorded, log, name) for name in "ab"], 4, 2, track, "title")
    assert shown == [("title", 4)]
    assert found == [Turns(("a1", "a10"), (3, 6, 11, 14)), Turns(("b2", "b9"), (4, 5, 12, 13))]


def test_a_side_that_fails_ends_the_others() -> None:
    def broken() -> Any:
        raise OSError("broken")

    log: list[str] = []
    with pytest.raises(OSError, match="broken"):
        take_turns([partial(recorded, log, "a"), broken], 2, 1)
    assert log == ["+a", "-a"]
