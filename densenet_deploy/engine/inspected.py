"""The layers of an engine by whatever route there is: a GPU, a build log, or exported JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy._tensorrt import Backend
from densenet_deploy.engine.cache import default_cache, log_of
from densenet_deploy.engine.inspector import parse_inspector, read_engine
from densenet_deploy.engine.kernels import EngineLayers
from densenet_deploy.engine.layers import parse_build_log
from densenet_deploy.errors import BuildError, DeployError

KINDS = "an engine, its build log, or the engine inspector's JSON"
_RTX = b"vtrt"
_SUFFIXES = {".plan", ".engine", ".trt", ".rtx"}


@dataclass(frozen=True)
class Inspected:
    """Layers, and who says so.

    Attributes:
        layers: With sizes for one image where they depend on the batch.
        source: Where they come from, and what the sizes are of, as a clause.
    """

    layers: EngineLayers
    source: str

    def summary(self) -> str:
        """A table for people: a row for each DenseNet layer."""
        nodes = sum(len(layer.nodes) for layer in self.layers.layers)
        fused = f"{nodes} ONNX nodes run in {len(self.layers.layers)} kernels"
        return f"{self.layers.summary()}\n{fused}\nlayers by {self.source}"

    def kernels(self) -> str:
        """A line for each kernel: its DenseNet layer, types, megabytes, and what it fuses."""
        lines = []
        for layer in self.layers.layers:
            read, written = (
                "+".join(dict.fromkeys(tensor.dtype for tensor in side)) or "-"
                for side in (layer.inputs, layer.outputs)
            )
            moved = sum(tensor.bytes or 0 for tensor in (*layer.inputs, *layer.outputs)) / 1e6
            nodes = ", ".join(node.removeprefix(f"{layer.part}.") for node in layer.nodes)
            types = f"{read}>{written}"
            lines.append(
                f"{layer.part:34} {layer.role:11} {types:16} {moved:8.3f} MB  {nodes or layer.name}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes."""
        return {
            "source": self.source,
            **self.layers.to_dict(),
            "layers": list(self.layers.kernels()),
        }


def is_engine(path: Path) -> bool:
    """Whether a file is an engine, by its first bytes or its suffix."""
    with path.open("rb") as stream:
        return stream.read(len(_RTX)) == _RTX or path.suffix in _SUFFIXES


def inspect_engine(path: Path, log: Path | None = None, profile: int = 0) -> Inspected:
    """Finds the layers of an engine.

    Of an engine file: by the log given; else by the engine inspector, where there is a GPU and the
    engine fits it; else by the log that the build cache keeps of this very engine.

    Args:
        path: An engine that TensorRT or TensorRT-RTX wrote, a build log, or inspector's JSON.
        log: The engine's build log.
        profile: Of which optimization profile.

    Raises:
        BuildError: No route is open, or what was found cannot be read.
    """
    if path.is_dir():
        raise _directory(path)
    if log is not None or not is_engine(path):
        return _read_text(log or path, profile)
    plan = path.read_bytes()
    if plan[4:5] == b"{":
        raise BuildError(
            f"{path} starts with another program's header",
            expected="a plain engine, as TensorRT serialized it",
            remedy="take the header off, or build from ONNX with: densenet-deploy build",
        )
    backend: Backend = "tensorrt-rtx" if plan.startswith(_RTX) else "tensorrt"
    try:
        layers = read_engine(plan, backend, profile=profile)
        return _sized(layers, "the engine inspector, at the profile's optimal batch size")
    except DeployError as error:
        text = log_of(plan, default_cache())
        if text is None:
            raise BuildError(
                f"the layers of {path} cannot be read here: {error.found}",
                expected="its GPU, or its build log",
                remedy="build it again with `densenet-deploy build ... --log build.log`, and add "
                "`--log build.log`",
            ) from error
    return _sized(parse_build_log(text, profile), "the log that the build cache has of this engine")


def _directory(path: Path) -> BuildError:
    files = [*sorted(path.glob("engines/*")), *sorted(path.glob("*.onnx"))]
    such = f": {', '.join(map(str, files))}" if files else ""
    return BuildError(f"{path} is a directory", expected=KINDS, remedy=f"name a file in it{such}")


def _read_text(path: Path, profile: int) -> Inspected:
    text = path.read_text(encoding="utf-8", errors="replace")
    if text.lstrip().startswith("{"):
        return _sized(parse_inspector(text, profile), f"the engine inspector's JSON {path}")
    if "Layers:" not in text:
        remedy = "write a build log with: densenet-deploy build ... --log build.log"
        raise BuildError(f"{path} has no layer list", expected=KINDS, remedy=remedy)
    return _sized(parse_build_log(text, profile), f"the build log {path}")


def _sized(layers: EngineLayers, source: str) -> Inspected:
    one = layers.at_batch(1)
    return Inspected(one, source if one == layers else f"{source}; sizes of one image")
