"""Things that one caller uses at a time, lent to several threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition
from typing import Generic, TypeVar

from densenet_deploy.errors import BackendError

Item = TypeVar("Item")


class Pool(Generic[Item]):
    """Lends what was returned last, which is warmest, and makes callers wait while all is lent.

    Args:
        items: What there is; at least one.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = list(items)
        self._free = list(items)
        self._open = True
        self._changed = Condition()

    @contextmanager
    def lend(self) -> Iterator[Item]:
        """One item for the duration of the block.

        Raises:
            BackendError: The pool is closed, or is being closed while this waits.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free or not self._open)
            if not self._open:
                raise BackendError("the runner was closed meanwhile")
            item = self._free.pop()
        try:
            yield item
        finally:
            with self._changed:
                self._free.append(item)
                self._changed.notify_all()

    def close(self) -> list[Item]:
        """Lends nothing more, waits until all is returned, and gives it back for freeing.

        Closing again gives nothing.
        """
        with self._changed:
            self._open = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == len(self._items))
            items, self._items, self._free = self._items, [], []
            return items
