"""What TensorRT's engine inspector tells of an engine: its JSON, and asking for it on a GPU.

The JSON is also what `trtexec --exportLayerInfo` writes. TensorRT 10 describes a tensor's layout
and type in one sentence (`Format/Datatype`), TensorRT 11 and TensorRT-RTX have a field for each.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import ModuleType
from typing import Any

from densenet_deploy import _cuda, _tensorrt
from densenet_deploy.engine.kernels import BITS, EngineLayers, Layer, Tensor
from densenet_deploy.engine.layers import onnx_nodes, tie
from densenet_deploy.errors import BackendError, BuildError

_NAMES = {name.lower(): name for name in BITS} | {
    "fp32": "Float",
    "fp16": "Half",
    "bf16": "BFloat16",
}
_TYPE = re.compile(rf"\b({'|'.join(_NAMES)})\b", re.IGNORECASE)
_CONSTANT = re.compile(r"__mye\d+_?d?_?const")  # the compiler's weights, which are no activations
_COPY = re.compile(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ (?:to|from) ")
_FUSED = re.compile(r"^(?:PWN|POINTWISE)\((.*)\)$")
_DETAILED = 'build it with build.profiling_verbosity = "detailed"'


def parse_inspector(text: str, profile: int = 0) -> EngineLayers:
    """Reads the engine inspector's JSON.

    Args:
        text: `IEngineInspector.get_engine_information(LayerInformationFormat.JSON)`.
        profile: Of which optimization profile.

    Raises:
        BuildError: It is not such JSON, has no details, or a layer cannot be read.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"the layer information is not JSON ({error})") from None
    listed = table.get("Layers") if isinstance(table, dict) else None
    if not isinstance(listed, list):
        raise _malformed("the layer information has no list of layers")
    detailed = [item for item in listed if isinstance(item, dict)]
    if not detailed:
        found = f"the engine tells {'only the names' if listed else 'nothing'} of its layers"
        raise BuildError(found, expected="types and shapes too", remedy=_DETAILED)
    return tie(_without_aliases([_layer(item) for item in detailed]), profile)


def read_engine(
    plan: bytes, backend: _tensorrt.Backend, device: int = 0, profile: int = 0
) -> EngineLayers:
    """Layers of an engine, by the inspector, at the optimal batch size of a profile.

    Args:
        plan: The serialized engine.
        backend: What built it.
        device: Index of the GPU.
        profile: Of which optimization profile.

    Raises:
        BackendError: There is no GPU here, or the engine does not fit it or the backend's version.
        MissingDependencyError: TensorRT-RTX is not installed.
        BuildError: As `parse_inspector`.
    """
    trt = _tensorrt.load(backend)
    if reason := _cuda.why_no_device():
        raise BackendError(f"the engine inspector cannot run here: {reason}", expected="a GPU")
    with _cuda.on_device(device):
        return parse_inspector(_information(trt, plan, profile), profile)


def _information(trt: ModuleType, plan: bytes, profile: int) -> str:
    """The inspector's JSON, with the shapes of a context in place of dynamic ones."""
    logger = _tensorrt.collecting_logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError.collect("the engine cannot be loaded", logger.errors or [*logger.tail])
    if not 0 <= profile < engine.num_optimization_profiles:
        raise BuildError(
            f"the engine has no optimization profile {profile}",
            expected=f"0 to {engine.num_optimization_profiles - 1}",
        )
    context = engine.create_execution_context()
    if context is None or not _set_shapes(trt, engine, context, profile):
        refused = f"the engine does not run in profile {profile}"
        raise BackendError.collect(refused, logger.errors or [*logger.tail])
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _set_shapes(trt: ModuleType, engine: Any, context: Any, profile: int) -> bool:
    """Puts a context into a profile at its optimal shapes; whether TensorRT accepts all of that."""
    if profile:
        with _cuda.Stream() as stream:
            if not context.set_optimization_profile_async(profile, stream.handle):
                return False
            stream.synchronize()
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            _, best, _ = engine.get_tensor_profile_shape(name, profile)
            if not context.set_input_shape(name, tuple(best)):
                return False
    return True


def _layer(item: dict[str, Any]) -> Layer:
    name = item.get("Name")
    if not isinstance(name, str):
        raise _malformed(f"a layer has the name {name!r}")
    inputs, outputs = (_tensors(item.get(side, ()), name) for side in ("Inputs", "Outputs"))
    own = _COPY.sub("", name)
    nodes = onnx_nodes(str(item.get("Metadata", ""))) or _named(own)
    kind, kernel = str(item.get("LayerType", "")), str(item.get("TacticName", ""))
    return Layer(own, kind, kernel, inputs, outputs, nodes)


def _without_aliases(layers: list[Layer]) -> list[Layer]:
    """Leaves out layers that only give a tensor another name; its readers get the first name."""
    first: dict[str, str] = {}
    working = []
    for layer in layers:
        inputs = tuple(replace(one, name=first.get(one.name, one.name)) for one in layer.inputs)
        if layer.kind == "NoOp" and inputs:
            first |= {tensor.name: inputs[0].name for tensor in layer.outputs}
        else:
            working.append(replace(layer, inputs=inputs))
    return working


def _named(name: str) -> tuple[str, ...]:
    """What a layer without metadata computes: it is named after all it fuses."""
    if name.startswith(("__my", "{ForeignNode")):
        return ()
    return tuple(_FUSED.sub(r"\1", part) for part in name.split(" + "))


def _tensors(listed: Any, layer: str) -> tuple[Tensor, ...]:
    if not isinstance(listed, list | tuple) or not all(isinstance(one, dict) for one in listed):
        raise _malformed(f"the tensors of layer {layer!r} are {str(listed)[:80]}")
    activations = (one for one in listed if not _CONSTANT.match(str(one.get("Name", ""))))
    return tuple(_tensor(one, layer) for one in activations)


def _tensor(item: dict[str, Any], layer: str) -> Tensor:
    said = str(item.get("Datatype") or item.get("DataType") or item.get("Format/Datatype", ""))
    found, shape = _TYPE.search(said), item.get("Dimensions")
    if found is None and "dynamic" in said:
        raise BuildError(
            f"the types of layer {layer!r} depend on the batch size",
            expected="layer information for one batch size",
            remedy="pass --shapes to trtexec, or inspect the engine itself on its GPU",
        )
    if found is None or not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise _malformed(f"layer {layer!r} has the tensor {str(item)[:160]}")
    return Tensor(str(item.get("Name", "")), _NAMES[found[1].lower()], tuple(shape))


def _malformed(found: str) -> BuildError:
    return BuildError(
        found,
        expected="what TensorRT's engine inspector says as JSON",
        remedy="write it with: trtexec --loadEngine=... --exportLayerInfo=layers.json",
    )
