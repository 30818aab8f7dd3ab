"""How a batch of any size runs in an engine's optimization profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from densenet_deploy.engine_config import Profile


@dataclass(frozen=True)
class Piece:
    """Rows that run together.

    Attributes:
        start: First row.
        rows: Rows of the caller's.
        profile: Index of the optimization profile.
        batch: Rows the engine computes: those, and copies of the last one where it needs more.
    """

    start: int
    rows: int
    profile: int
    batch: int


def pieces(rows: int, profiles: Sequence[Profile]) -> Iterator[Piece]:
    """Cuts a batch into what single requests can hold, and picks the profile of each.

    Pieces are as large as any profile allows. Each runs in the tightest profile that holds it, and
    is padded where it is smaller than every profile, or than those that are large enough.

    Args:
        rows: Of the batch; at least one.
        profiles: (min, opt, max) of each profile.
    """
    most = max(high for *_, high in profiles)
    for start in range(0, rows, most):
        count = min(most, rows - start)
        profile = tightest(count, profiles)
        yield Piece(start, count, profile, max(count, profiles[profile][0]))


def tightest(rows: int, profiles: Sequence[Profile]) -> int:
    """Index of the profile for this many rows: least padding first, then the least maximum.

    Of profiles that are equal in both, the one tuned for the closest size.
    """

    def cost(index: int) -> tuple[int, int, int]:
        low, best, high = profiles[index]
        return max(low - rows, 0), high, abs(best - rows)

    return min((index for index in range(len(profiles)) if profiles[index][2] >= rows), key=cost)
