"""Progress bars as a value: a stage is given `track`, and wraps its loop in it.

Library calls are silent by default; the command line passes `bar`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable and reports how far its consumer has come."""

    def __call__(
        self, items: Iterable[T], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[T]:
        """Yields the items unchanged; `total` and `start` count items."""
        ...


def silent(
    items: Iterable[T], description: str, total: int | None = None, start: int = 0
) -> Iterator[T]:
    """Reports nothing."""
    yield from items


def once(track: Track, description: str, action: Callable[[], T]) -> T:
    """Runs one long call that cannot tell how far it is, under a bar of a single step."""
    results = [run() for run in track([action], description, 1)]
    return results[0]


def bar(
    items: Iterable[T], description: str, total: int | None = None, start: int = 0
) -> Iterator[T]:
    """Draws a rich progress bar with elapsed and remaining time on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(description, total=total, completed=start)
        for item in items:
            yield item
            display.advance(task)
