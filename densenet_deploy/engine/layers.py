"""What a builder made of a graph: an engine's layer list, tied back to DenseNet layers.

TensorRT-RTX compiles without a GPU and says in its log which kernels it will run and in which
types, so fusion is tested everywhere. `build_engine(..., log=path)` writes such a log;
`inspector` reads the same from an engine on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from densenet_deploy.engine.kernels import BITS, EngineLayers, Layer, Tensor
from densenet_deploy.errors import BuildError

__all__ = ["EngineLayers", "Layer", "Tensor", "onnx_nodes", "parse_build_log", "tie"]

_START = re.compile(r"^.*\bLayers:$", re.MULTILINE)
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*)\], "
    r"Constants: \[.*\], Outputs: \[(?P<outputs>.*)\], TacticName: (?P<kernel>.*?), "
    r"StreamId: \d+.*?, Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(
    r" \{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[\d,-]*)\], Strides: [^{}]*?"
    r"Datatype: (?P<dtype>\w+), Format: [^{}]*\}(?:,| *$)"
)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[]|\s*$)")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_GRAPH = re.compile(r"_myl(\d+)_\d+$")
_OF_WEIGHTS = re.compile(r"\.weight\b|QuantizeLinear")
_PART = re.compile(r"(.*?\b(?:denselayer|transition)\d+|features\.\w+|[^.]+).*")


def parse_build_log(text: str, profile: int = 0) -> EngineLayers:
    """Reads the layer list out of a detailed, verbose build log of TensorRT-RTX.

    Args:
        text: The whole log of one build.
        profile: Of which optimization profile; each has kernels of its own.

    Raises:
        BuildError: There is none, there are several, or a line of it cannot be read.
    """
    starts = list(_START.finditer(text))
    if len(starts) != 1:
        raise _malformed(f"the build log has {len(starts)} layer lists", "exactly one")
    body, ended, _ = text[starts[0].end() :].partition("\n\nI/O Tensors:")
    if not ended:
        raise _malformed("the layer list of the build log has no end", "`I/O Tensors:` after it")
    first = text.count("\n", 0, starts[0].end()) + 2
    lines = enumerate(body.split("\n")[1:], first)
    rows = [_layer(line, f"line {number} of the build log") for number, line in lines]
    if not any(row.inputs or row.outputs for row in rows):
        raise _malformed("the layer list of the build log is empty", "at least one layer")
    return tie(rows, profile)


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """ONNX nodes that a builder's metadata names."""
    return tuple(_NODE.findall(metadata))


def tie(rows: Sequence[Layer], profile: int) -> EngineLayers:
    """The working layers of one optimization profile, tied to modules and DenseNet layers.

    Args:
        rows: Layers in the order they run, as a builder or inspector lists them.
        profile: Which profile's.

    Raises:
        BuildError: The engine has no such profile.
    """
    profiles = _profiles(rows)
    if profile not in profiles:
        count = len(set(profiles))
        raise BuildError(
            f"the engine has no optimization profile {profile}",
            expected="0" if count == 1 else f"0 to {count - 1}",
        )
    order: dict[str, int] = {}  # of the DenseNet layers, by first appearance
    found = []
    for row, belongs in zip(rows, profiles, strict=True):
        if belongs == profile and (row.inputs or row.outputs):
            module = _module(row)
            names = {_PART.sub(r"\1", node) for node in ([module] if module else row.nodes)}
            for name in sorted(names, key=_natural):
                order.setdefault(name, len(order))
            part = max(names, key=order.__getitem__, default="(unnamed)")
            found.append(replace(row, module=module, part=part))
    return EngineLayers(tuple(found))


def _profiles(rows: Sequence[Layer]) -> list[int]:
    """The optimization profile of each layer.

    Names bear a mark but in profile 0; a generated kernel may bear none, while the others of the
    compiler's graph it is part of do.
    """
    marks: list[int] = []
    graphs: dict[str, int] = {}
    for row in rows:
        names = (row.name, *(tensor.name for tensor in (*row.inputs, *row.outputs)))
        found = (int(mark) for name in names for mark in _PROFILE.findall(name))
        marks.append(max(found, default=0))
        if graph := _GRAPH.search(row.name):
            graphs[graph[1]] = max(graphs.get(graph[1], 0), marks[-1])
    graph_of = [_GRAPH.search(row.name) for row in rows]
    return [
        max(mark, graphs[graph[1]] if graph else 0)
        for mark, graph in zip(marks, graph_of, strict=True)
    ]


def _module(row: Layer) -> str:
    """The node a layer is named after; TensorRT joins the names of all it fuses with ` + `."""
    nodes = [node for node in row.nodes if not _OF_WEIGHTS.search(node)]
    for part in row.name.split(" + "):
        if found := [node for node in nodes if part.startswith(node)]:
            return max(found, key=len)
    return ""


def _layer(line: str, place: str) -> Layer:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise _malformed(f"{place} is {line[:80]!r}", "a layer with name, type and tensors")
    inputs, outputs = (_tensors(match[side], place) for side in ("inputs", "outputs"))
    nodes = onnx_nodes(match["metadata"])
    return Layer(match["name"], match["kind"], match["kernel"], inputs, outputs, nodes)


def _tensors(text: str, place: str) -> tuple[Tensor, ...]:
    tensors, position = [], 0
    while text[position:].strip():
        match = _TENSOR.match(text, position)
        if match is None or match["dtype"] not in BITS:
            found = f"{place} has the tensor {text[position : position + 160]!r}"
            raise _malformed(found, f"dimensions and a type of {', '.join(sorted(BITS))}")
        shape = tuple(int(size) for size in match["shape"].split(",") if size)
        tensors.append(Tensor(match["name"], match["dtype"], shape))
        position = match.end()
    return tuple(tensors)


def _malformed(found: str, expected: str) -> BuildError:
    remedy = "build one engine with `build_engine(..., log=path)` and read the whole of that log"
    return BuildError(found, expected=expected, remedy=remedy)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(digits or 0), other) for digits, other in re.findall(r"(\d+)|(\D+)", text)]
