"""Turns: who is asked when, and when all are started anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from densenet_deploy import turns
from densenet_deploy.turns import Turns, take_turns


class Recorder:
    """Stands in for `Worker`: writes down who was asked for what."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __call__(self, module: str, task: str) -> Any:
        log = self.log
        assert module == "module"

        class Worker:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: Any) -> None:
                log.append(f"end {task}")

            def ask(self, request: Any) -> Any:
                log.append(f"open {task}" if request else task)
                return (request, len(log)) if request else float(len(log))

        return Worker()


def test_orders_are_reversed_and_blocks_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(turns, "Worker", Recorder(log))
    shown: list[Any] = []

    def track(
        items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        shown.append((description, total))
        yield from items

    found = take_turns("module", [("a", "A"), ("b", "B")], 4, 2, track, "title")
    first = ["open a", "open b", "a", "b", "b", "a", "end b", "end a"]
    second = ["open b", "open a", "a", "b", "b", "a", "end a", "end b"]
    assert log == [*first, *second]
    assert shown == [("title", 2)]
    assert found == [
        Turns((("A", 1), ("A", 10)), (3, 6, 11, 14)),
        Turns((("B", 2), ("B", 9)), (4, 5, 12, 13)),
    ]
