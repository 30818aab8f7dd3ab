"""Tables and one picture from a run's records: Markdown for people, the same rows everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.errors import DataError, MissingDependencyError
from densenet_deploy.files import replacing_file
from densenet_deploy.results import milliseconds

HEADER = (
    "precision",
    "backend",
    "top-1 %",
    "agreement %",
    "batch",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "images/s",
)
_LEAST_SPAN = 2.0  # percentage points on the picture's accuracy axis
METHOD = (
    "Latency is one request on the host, normalised images in to logits out, each backend in a "
    "process of its own. Warm-up ends when the median settles or after 2 s (then the p50 is marked "
    "with ~); no sample is dropped, and a percentile the sample cannot show is left out. fp16 on "
    "a CPU is half-precision weights computed in fp32; PyTorch's is autocast."
)


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracy beside speed."""

    precision: str
    backend: str
    top1: float | None
    agreement: float | None
    batch: int
    p50: float | None
    p90: float | None
    p99: float | None
    images_per_second: float
    steady: bool

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADER`."""
        return (
            self.precision,
            self.backend,
            "-" if self.top1 is None else f"{self.top1:.2f}",
            "-" if self.agreement is None else f"{self.agreement:.2f}",
            str(self.batch),
            ("" if self.steady else "~") + milliseconds(self.p50),
            milliseconds(self.p90),
            milliseconds(self.p99),
            f"{self.images_per_second:.0f}",
        )


def rows(records: dict[str, Any]) -> list[Row]:
    """Joins parity and measurements by precision and backend."""
    accuracy: dict[tuple[str, str], tuple[float | None, float | None]] = {}
    for parity in records.get("parity", ()):
        accuracy[parity["precision"], parity["backend"]] = (parity["top1"], parity["agreement"])
        reference = parity["reference"].split()[0]
        accuracy.setdefault(("fp32", reference), (parity["reference_top1"], 100.0))
    joined = []
    for item in records.get("measurements", ()):
        key = (item["precision"], item["backend"])
        top1, agreement = accuracy.get(key, (None, None))
        latency = {f"p{percent}": item[f"p{percent}_seconds"] for percent in (50, 90, 99)}
        joined.append(
            Row(
                *key,
                top1,
                agreement,
                item["batch"],
                **latency,
                images_per_second=item["images_per_second"],
                steady=item["steady"],
            )
        )
    return joined


def read_records(path: Path) -> dict[str, Any]:
    """Records written by a run or by `bench --out`.

    Raises:
        DataError: The file holds none.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        measured = rows(records)
        named = isinstance(records.get("bundle", {}), dict)
        _images(records), _machine(records.get("environment", {}))
        _environments(records.get("environments", {}))
        by_reason(records.get("skipped", ())), _consistency(records.get("consistency", ()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        measured, named = [], False
        reason = f" ({type(error).__name__})"
    else:
        reason = ""
    if not measured or not named:
        raise DataError(
            f"{path} holds no benchmark records{reason}",
            expected="a bundle, or a file written by bench --out",
        )
    table: dict[str, Any] = records
    return table


def markdown(records: dict[str, Any]) -> str:
    """The report as Markdown, without a title.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingDependencyError.of("jinja2", "report", "a report") from None
    template = Path(__file__).with_name("report.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    text: str = environment.from_string(template).render(
        images=_images(records),
        rows=rows(records),
        skipped=by_reason(records.get("skipped", ())),
        consistency=_consistency(records.get("consistency", ())),
        method=METHOD,
        machine=_machine(records.get("environment", {})),
        environments=_environments(records.get("environments", {})),
    )
    return text


def by_reason(skipped: Iterable[Mapping[str, str]]) -> list[tuple[str, str]]:
    """(names, reason) of backends that were not run: those with the same reason together."""
    names: dict[str, list[str]] = {}
    for item in skipped:
        names.setdefault(item["reason"], []).append(item["backend"])
    return [(", ".join(listed), reason) for reason, listed in names.items()]


def _consistency(checked: Sequence[Mapping[str, Any]]) -> str:
    """How many runners agree with themselves; empty where none was asked."""
    passed = sum(item["passed"] for item in checked)
    if not checked:
        return ""
    return (
        f"Self-consistency: {passed} of {len(checked)} graphs on their backends pass every rule "
        "that applies (equal rows, permuted and padded batches, batch sizes, repeats, threads)."
    )


def _images(records: dict[str, Any]) -> str:
    parity = records.get("parity", ())
    if not parity:
        return "Accuracy was not measured."
    first = parity[0]
    return f"Accuracy on {first['source']}, compared with {first['reference']}."


def _machine(environment: dict[str, Any]) -> str:
    gpus = "".join(f"{gpu['name']}{_driver(gpu)}, " for gpu in environment.get("gpus", ()))
    return (
        f"Measured on {gpus}{environment.get('cpu', 'an unknown processor')}, "
        f"{environment.get('cores', '?')} cores, {environment.get('system', '')}, "
        f"{_software(environment)}."
    )


def _driver(gpu: dict[str, Any]) -> str:
    return f" (driver {gpu['driver']})" if "driver" in gpu else ""


def _environments(environments: dict[str, Any]) -> list[str]:
    """A line for each backend that ran in an environment of its own."""
    return [f"{name} ran with {_software(found)}." for name, found in environments.items()]


def _software(environment: dict[str, Any]) -> str:
    """What ran: Python and its packages, or a C++ program, its compiler and its libraries."""
    language = {"Python": environment.get("python"), "compiled by": environment.get("compiler")}
    named = {**{k: v for k, v in language.items() if v}, **environment.get("packages", {})}
    return ", ".join(f"{name} {version}" for name, version in named.items())


def plot(records: dict[str, Any], path: Path, title: str) -> None:
    """Writes a PNG: median latency of each precision and backend against its accuracy.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError.of("matplotlib", "report", "the report's picture") from None
    points = rows(records)
    smallest = min((row.batch for row in points), default=1)
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labelled = any(row.top1 is not None for row in points)
    markers = {"fp32": "o", "fp16": "s", "int8": "^"}
    colours: dict[str, str] = {}
    for row in points:
        accuracy = row.top1 if labelled else row.agreement
        if row.batch != smallest or row.p50 is None or accuracy is None:
            continue
        colour = colours.setdefault(row.backend, f"C{len(colours)}")
        label, marker = f"{row.backend} {row.precision}", markers[row.precision]
        axes.scatter(1000 * row.p50, accuracy, s=60, color=colour, marker=marker, label=label)
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis("{x:g}")
    low, high = axes.get_ylim()
    if high - low < _LEAST_SPAN:  # a tenth of a point shall not look like a cliff
        middle = (low + high) / 2
        axes.set_ylim(middle - _LEAST_SPAN / 2, middle + _LEAST_SPAN / 2)
    axes.set_xlabel(f"median latency of batch {smallest}, ms (log scale)")
    axes.set_ylabel("top-1 accuracy, %" if labelled else "agreement with PyTorch fp32, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png")


def write(records: dict[str, Any], title: str, directory: Path) -> list[Path]:
    """Writes report.md and report.png into `directory`, and returns their paths.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text, picture = directory / "report.md", directory / "report.png"
    with replacing_file(text) as temporary:
        temporary.write_text(f"# {title}\n\n{markdown(records)}", encoding="utf-8")
    plot(records, picture, title)
    return [text, picture]


def insert(text: str, marker: str, content: str) -> str:
    """Replaces what stands between `<!-- MARKER:begin -->` and `<!-- MARKER:end -->`.

    Raises:
        DataError: The text has no such pair of markers.
    """
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise DataError("the document has no place for the table", expected=f"{begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{content.strip()}\n{end}", text)
