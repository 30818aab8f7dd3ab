"""What a rule reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class Refused(Exception):
    """Why a pattern does not hold; raised while matching, before anything has changed."""


@dataclass(frozen=True)
class Refusal:
    """A candidate that a rule left alone."""

    rule: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule} at {self.node}: {self.reason}"


@dataclass
class Outcome:
    """Applications and refusals of one rule over one graph."""

    rule: str
    applied: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How often the rule was applied."""
        return len(self.applied)

    def apply(self, node: str | None) -> None:
        """Records that the candidate at `node` was rewritten."""
        self.applied.append(node or "an unnamed node")

    def refuse(self, node: str | None, reason: str) -> None:
        """Records why the candidate at `node` stays as it is."""
        self.refusals.append(Refusal(self.rule, node or "an unnamed node", reason))

    @contextmanager
    def attempt(self, node: str | None) -> Iterator[None]:
        """Records what is done inside as one application, or why it was `Refused`."""
        try:
            yield
        except Refused as refused:
            self.refuse(node, str(refused))
        else:
            self.apply(node)
