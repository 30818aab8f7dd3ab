"""Rules applied one by one: where each one was applied, what it refused, and what it gained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from densenet_deploy.graph_costs import HEADER, Costs, costs_of
from densenet_deploy.progress import Track, silent
from densenet_deploy.rewrite import Refusal, Rule, rewrite

_NUMBER = re.compile(r"(?<!\.\.)(?<![\d,])\d+(?!\d|\.\.|,\d)")  # not one of a range


@dataclass(frozen=True)
class Step:
    """One rule, applied to the whole graph.

    Attributes:
        rule: Its name.
        applied: Where: names of nodes, or of values.
        refusals: Every candidate it left alone, with its reason.
        costs: Of the graph afterwards.
    """

    rule: str
    applied: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    costs: Costs

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def apply_rules(model: ir.Model, rules: Iterable[Rule], track: Track = silent) -> list[Step]:
    """Applies rules to `model` in place, one after another, and says what each one did."""
    steps = []
    for rule in track(list(rules), "Rewriting"):
        result = rewrite(model, [rule])
        [(name, applied)] = result.applied.items()
        steps.append(Step(name, applied, result.refusals, costs_of(model)))
    return steps


def grouped(names: Iterable[str]) -> str:
    """Names in few words: those that differ in one number become one, `layer1..6.norm`."""
    texts, count = list(dict.fromkeys(names)), -1
    while len(texts) != count:  # blocks of the same layers become one in turn
        count, texts = len(texts), _merged(texts)
    return ", ".join(texts)


def _merged(names: list[str]) -> list[str]:
    left, texts = names, []
    while left:
        best, text = [left[0]], left[0]
        for number in _NUMBER.finditer(left[0]):
            before, after = left[0][: number.start()], left[0][number.end() :]
            pattern = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
            found = {int(match[1]): match[0] for name in left if (match := pattern.fullmatch(name))}
            if len(found) >= max(2, len(best)):
                best, text = list(found.values()), f"{before}{_ranges(sorted(found))}{after}"
        texts.append(text)
        left = [name for name in left if name not in best]
    return texts


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def steps_summary(start: str, costs: Costs, steps: Sequence[Step]) -> list[str]:
    """Lines for people: a table of costs that begins with those called `start`, then the rules."""
    rows = [("", "", *HEADER), (start, "", *costs.cells())]
    rows += [(s.rule, f"x{len(s.applied)}", *s.costs.cells()) for s in steps]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines.append(f"nodes: {_nodes(costs, steps[-1].costs if steps else costs)}")
    for step in steps:
        lines += [f"{step.rule}: {grouped(step.applied)}"] if step.applied else []
        reasons: dict[str, list[str]] = {}
        for refusal in step.refusals:
            reasons.setdefault(refusal.reason, []).append(refusal.node)
        lines += [f"  refused {grouped(nodes)}: {text}" for text, nodes in reasons.items()]
    if steps and not any(step.refusals for step in steps):
        lines.append("nothing was refused")
    return lines


def _nodes(before: Costs, after: Costs) -> str:
    texts = []
    for name in sorted({*before.nodes, *after.nodes}):
        old, new = before.nodes.get(name, 0), after.nodes.get(name, 0)
        texts.append(f"{name} {old}" if old == new else f"{name} {old} -> {new}")
    return ", ".join(texts)
