"""Batches of any size in any profiles, and who waits for whom."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.batches import pieces, tightest
from densenet_deploy.runtime.pool import Pool

PROFILE = st.lists(st.integers(1, 80), min_size=3, max_size=3).map(lambda x: tuple(sorted(x)))


@given(st.integers(1, 200), st.lists(PROFILE, min_size=1, max_size=4))
def test_every_row_runs_once_where_it_fits(rows: int, profiles: list[tuple[int, int, int]]) -> None:
    parts = list(pieces(rows, profiles))
    covered = [row for part in parts for row in range(part.start, part.start + part.rows)]
    assert covered == list(range(rows))
    most = max(high for *_, high in profiles)
    assert len(parts) == -(-rows // most)  # no more requests than the largest profile asks for
    for part in parts:
        low, _, high = profiles[part.profile]
        assert low <= part.batch <= high and part.rows <= part.batch
        for least, _, largest in profiles:  # no profile pads less, or is tighter at equal padding
            if largest >= part.rows:
                padding = max(least - part.rows, 0)
                assert (part.batch - part.rows, high) <= (padding, largest)


@pytest.mark.parametrize("rows", range(1, 71))
def test_batch_buckets(rows: int) -> None:
    """One to seventy rows in 1, 2 to 8 and 9 to 32, written down by hand."""
    buckets = ((1, 1, 1), (2, 4, 8), (9, 16, 32))
    last = rows % 32
    found = [(part.profile, part.batch) for part in pieces(rows, buckets)]
    bucket = 0 if last == 1 else 1 if last <= 8 else 2
    assert found == [(2, 32)] * (rows // 32) + ([(bucket, last)] if last else [])


def test_profiles_of_equal_width_differ_in_what_they_are_tuned_for() -> None:
    assert [tightest(rows, ((1, 2, 16), (1, 12, 16))) for rows in (1, 3, 11, 16)] == [0, 0, 1, 1]
    assert tightest(3, ((4, 4, 8), (5, 5, 6))) == 0  # one row of padding rather than two


def test_nothing_is_lent_twice() -> None:
    pool, held, most = Pool("ab"), set(), []

    def use(turn: int) -> None:
        with pool.lend() as item:
            assert item not in held
            held.add(item)
            most.append(len(held))
            time.sleep(0.002)
            held.remove(item)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(60)))
    assert max(most) == 2


def test_an_error_gives_the_item_back() -> None:
    pool = Pool("a")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), pool.lend():
            raise ZeroDivisionError


def test_closing_waits_for_what_is_lent_and_turns_waiters_away() -> None:
    pool, refused, lent = Pool("a"), [], threading.Event()

    def hold() -> None:
        with pool.lend():
            lent.set()
            time.sleep(0.1)

    def wait() -> None:
        try:
            with pool.lend():
                pass
        except BackendError as error:
            refused.append(str(error))

    holder, waiter = threading.Thread(target=hold), threading.Thread(target=wait)
    holder.start()
    lent.wait()
    waiter.start()
    time.sleep(0.02)
    assert pool.close() == ["a"] and pool.close() == []
    waiter.join(5)
    assert refused == ["the runner was closed meanwhile."]
