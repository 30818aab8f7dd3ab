"""What a builder that failed was doing: its exit status and its log, as one error."""

from __future__ import annotations

import re
import signal
from collections import deque
from pathlib import Path

from densenet_deploy.errors import BuildError

LOG_LINES = 12
LOG_WIDTH = 240
KNOWN_CAUSES = {
    "SIGSEGV": "a quantization scale that is not a constant",
    "SIGKILL": "too little memory",
}
_OUT_OF_MEMORY = re.compile(r"bad_alloc|out ?of ?memory|Cannot allocate memory", re.IGNORECASE)
_LESS_MEMORY = (
    "free memory, or need less: fewer profiles and compute capabilities at a time, a smaller "
    "largest batch, a workspace limit"
)
# What parser and builder announce before they work on it, in a verbose log
_PLACES = re.compile(
    r"Parsing node: (?P<node>.+ \[\w+\])$"
    r"|Computing costs for (?P<costs>.+?)( =+)?$"
    r"|Timing Runner: (?P<runner>.+) \(\w+\[\w+\]\)$"
)


def died(backend: str, status: int, log: Path) -> BuildError:
    """The error of a builder whose process ended with a status other than 0."""
    lines = _lines(log)
    found = f"the {backend} builder {_ended(status, _at(lines))}"
    end = "".join(f"\n  {line[:LOG_WIDTH]}" for line in deque(lines, maxlen=LOG_LINES)) + "\n"
    if any(map(_OUT_OF_MEMORY.search, lines)):
        found += f": out of memory. {_LESS_MEMORY.capitalize()}"
    return BuildError(f"{found}; the end of its log:{end}")


def with_place(error: BuildError, log: Path) -> BuildError:
    """An error the builder reported; one about memory names the layer it ran out at."""
    if not _OUT_OF_MEMORY.search(error.found):
        return error
    found = error.found.rstrip(". \n") + _at(_lines(log))
    return BuildError(found, expected="enough memory", remedy=_LESS_MEMORY)


def _ended(status: int, place: str) -> str:
    if status > 0:
        return f"ended with exit status {status}{place}"
    name = signal.Signals(-status).name
    cause = f" (known cause: {KNOWN_CAUSES[name]})" if name in KNOWN_CAUSES else ""
    return f"was killed by {name}{place}{cause}"


def _at(lines: list[str]) -> str:
    """The node or layer that was last announced, as a clause; empty if the log names none."""
    found = [match for line in lines if (match := _PLACES.search(line))]
    return f" at {next(filter(None, found[-1].groupdict().values()))}" if found else ""


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()
