"""Tables and sentences of the documents against the records that they quote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from densenet_deploy import published_results
from densenet_deploy.spec import variant

ROOT = Path(__file__).parents[1]
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def record(name: str) -> dict[str, Any]:
    path = ROOT / "benchmarks" / "results" / "epyc-2-cores" / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def table(page: str, header: str) -> list[list[str]]:
    """Cells of the table with this header, row by row; an empty cell is the one above it."""
    lines = page[page.index(f"| {header}") :].split("\n\n")[0].splitlines()[2:]
    rows: list[list[str]] = []
    for line in lines:
        cells = [cell.strip().replace("*", "") for cell in line.strip("|").split("|")]
        rows.append([cell or rows[-1][column] for column, cell in enumerate(cells)])
    return rows


def interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def test_training_memory() -> None:
    found = record("training-memory")
    held = {(one["model"], one["mode"]): one["held_bytes"] for one in found["points"]}
    names = {"densenet-bc-100-12": "BC L=100 k=12", "densenet-bc-190-40": "BC L=190 k=40"}
    assert table(TRAINING, "network, batch | held, naive") == [
        [
            f"{names[one['model']]}, {one['batch']}",
            *(f"{held[one['model'], mode] / 1e6:.0f} MB" for mode in ("naive", "memory-efficient")),
            f"{one['held_ratio']:.3f}",
            f"{one['peak_rss_ratio']:.2f}",
            interval(one["seconds_ratio"]),
        ]
        for one in found["comparisons"]
    ]


def test_training_memory_against_depth() -> None:
    found = record("training-memory")
    depths = {one["model"] for one in found["sweep"]}
    points = [one for one in found["points"] if one["model"] in depths]
    layers = [one["depth"] for one in points]

    def span(mode: str, key: str) -> str:
        values = [one[key] / 1e6 for one in points if one["mode"] == mode]
        return f"{min(values):.0f} to {max(values):.0f}"

    times = [one["seconds_ratio"] for one in found["sweep"]]
    medians = [time["median"] for time in times]
    sentences = (
        f"From {min(layers)} to {max(layers)} layers (k = 12) what naive training holds rises from "
        f"{span('naive', 'held_bytes')} MB",
        f"what memory-efficient training holds from {span('memory-efficient', 'held_bytes')};",
        f"the peak of a step rises from {span('naive', 'peak_rss_bytes')} MB, and from "
        f"{span('memory-efficient', 'peak_rss_bytes')}.",
        f"A step takes {min(medians):.2f} to {max(medians):.2f} of the naive one's time, by "
        f"{times[0]['pairs']} pairs for each depth",
    )
    page = " ".join(TRAINING.split())
    assert all(sentence in page for sentence in sentences), sentences


def test_training_speed() -> None:
    found = {
        (one["model"], one["batch"], one["precision"], one["candidate"]): one
        for one in record("training-speed")["comparisons"]
    }
    networks = {"DenseNet-121": "densenet121", "BC-100-12": "densenet-bc-100-12"}
    modes = {"plain modules": "naive", "torchvision": "torchvision"}
    quoted = 0
    for network, precision, baseline, *cells in table(TRAINING, "network, batch | precision"):
        name, batch = network.split(", ")
        for candidate, cell in zip(("naive", "memory-efficient"), cells, strict=True):
            one = found.get((networks[name], int(batch), precision, candidate))
            assert cell == (interval(one["speedup"]) if one else "-"), (network, precision)
            assert one is None or one["baseline"] == modes[baseline]
            quoted += one is not None
    assert quoted == len(found)


def test_densenets_and_resnets() -> None:
    """Errors of DenseNets are table 3's, of ResNets figure 3's."""
    published = published_results.load()
    residuals = next(one for one in published.figure3.series if one.name == "ResNet")
    reported = {point.model: point.error for point in residuals.points}
    reported |= {row.model: row.top1.single_crop for row in published.table3.rows}
    found = {
        (one["model"], one["batch"], one["candidate"], one["baseline"]): interval(one["speedup"])
        for one in record("resnet-cpu")["comparisons"]
    }
    quoted = 0
    for dense, residual, errors, parameters, macs, batch, *cells in table(
        BENCHMARKS, "DenseNet | R"
    ):
        if named := residual.endswith("pre-activation"):
            names = (f"densenet-{dense.lower()}", "resnet-preact-b-74")
        else:
            names = (f"densenet{dense}", f"resnet{residual}")
        ours, theirs = map(variant, names)
        assert parameters == f"{ours.parameters / theirs.parameters:.2f}", names
        assert macs == f"{ours.macs / theirs.macs:.2f}", names
        assert named or errors == " : ".join(f"{reported[name]:.1f}" for name in names)
        rival = "ResNet-74 pre-act" if named else f"ResNet-{residual}"
        for backend, cell in zip(("onnxruntime", "openvino"), cells, strict=True):
            sides = (f"DenseNet on {backend}", f"{rival} on {backend}")
            assert cell == found[names[0], int(batch), *sides], (names, batch)
            quoted += 1
    assert quoted == len(found)


def test_little_data() -> None:
    found = record("small-data")["recipes"]
    rows = table(BENCHMARKS, "network | parameters | MACs | top-1 %")
    assert [row[1:] for row in rows] == [
        [
            f"{one['parameters']:,}",
            f"{one['macs'] / 1e6:.1f} M",
            ", ".join(f"{run['top1']:.2f}" for run in one["runs"]),
            f"{one['mean_top1']:.2f} ± {one['std_top1']:.2f}",
        ]
        for one in found
    ]
    least = min(run["log"][-1]["train_top1"] for one in found for run in one["runs"])
    assert f"All reach at least {least:.2f} % on the training images" in BENCHMARKS


def test_memory_of_inference() -> None:
    peaks = {
        (one["model"], one["backend"], one["batch"], one["fixed"]): one["peak_rss_bytes"] / 1e6
        for one in record("inference-memory")["inferred"]
    }
    quoted = 0
    for backend, axis, *cells in table(BENCHMARKS, "backend | batch axis"):
        for batch, cell in zip((1, 8, 32), cells, strict=True):
            key = (backend.replace(" ", "").lower(), batch, axis == "fixed")
            both = (f"{peaks[model, *key]:.0f}" for model in ("densenet121", "resnet50"))
            assert cell == " : ".join(both), key
            quoted += 2
    assert quoted == len(peaks)
