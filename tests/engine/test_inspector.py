"""The engine inspector's JSON of both generations against real build logs, and asking for it.

TensorRT-RTX writes in its build log the fields that an inspector has in JSON, so a real log, made
JSON by other means, has to give the same layers. The layers of TensorRT itself are made by hand in
the form its tools document.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from typing import Any

import pytest

from densenet_deploy import _cuda
from densenet_deploy.engine.inspector import parse_inspector, read_engine
from densenet_deploy.engine.layers import parse_build_log
from densenet_deploy.errors import BackendError, BuildError
from tests.bindings.checked import checked_module
from tests.bindings.surface import Surface
from tests.engine.test_layers import BLOCK, MODULES, build_log

WORDS = {"Float": "FP32", "Half": "FP16", "Int8": "Int8"}


def json_of_log(text: str, separate: bool) -> str:
    """A real log's layers as JSON: of TensorRT 11 and RTX, or (not separate) of TensorRT 10."""
    layers = []
    for line in text.splitlines():
        if line.startswith("Name: "):
            layers.append({key: value for key, value in _fields(line)})
    for layer in layers:
        for side in ("Inputs", "Outputs"):
            for tensor in layer[side]:
                if not separate:
                    datatype, layout = tensor.pop("Datatype"), tensor.pop("Format")
                    tensor["Format/Datatype"] = f"{layout.split(') ')[1]} {WORDS[datatype]}"
    names = [{"Name": "images", "IOMode": "Input"}] if separate else ["images", "logits"]
    return json.dumps({"Layers": layers, "I/O Tensors" if separate else "Bindings": names})


def _fields(line: str) -> list[tuple[str, Any]]:
    single = r"(Name|LayerType|TacticName|Metadata): (.*?)(?:, (?=LayerType|TacticName|StreamId)|$)"
    heads = re.sub(r"(Inputs|Constants|Outputs): \[( \{.*?\})?\],? ", "", line)
    found: list[tuple[str, Any]] = [(key, value) for key, value in re.findall(single, heads)]
    for side in ("Inputs", "Outputs"):
        body = re.search(rf"{side}: \[( \{{.*?\}})?\], [A-Z]", line)
        assert body is not None
        found.append((side, [_tensor(one) for one in re.findall(r"\{ (.*?) \}", body[1] or "")]))
    return found


def _tensor(text: str) -> dict[str, Any]:
    fields = dict(
        re.findall(r"(Name|Dimensions|Datatype|Format): (\[.*?\]|.*?)(?:, (?=[A-Z])|$)", text)
    )
    return fields | {"Dimensions": json.loads(fields["Dimensions"]), "Location": "Device"}


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("weights", ["tensor", "channel", ""])
def test_same_layers_as_the_real_build_log(weights: str, separate: bool) -> None:
    pytest.importorskip("tensorrt_rtx")
    log = build_log(weights)
    found = parse_inspector(json_of_log(log, separate))
    assert found == parse_build_log(log)
    assert [layer.module for layer in found.of("convolution").layers] == MODULES


def tensor(name: str, sentence: str, *shape: int) -> dict[str, Any]:
    dimensions = list(shape or (1, 64, 8, 8))
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": dimensions,
        "Format/Datatype": sentence,
    }


def layer(name: str, kind: str, source: Any, target: Any, metadata: str = "") -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [source],
        "Outputs": [target],
        "ParameterType": "Convolution" if "Conv" in kind else kind,
        "TacticName": f"sm80_{kind}",
        "TacticValue": "0x1",
        "StreamId": 0,
        "Metadata": metadata,
    }


FP32, FP16 = "Row major linear FP32", "Channel major FP16 format where channel % 8 == 0"
INT8 = "Thirty-two wide channel vectorized row major Int8 format"
LAYER = f"{BLOCK}.denselayer1"
NODES = (f"{LAYER}.conv1.weight.dq", f"{LAYER}.conv1", f"{LAYER}.relu2")
METADATA = "\x1e".join(f"[ONNX Layer: {node}]" for node in NODES)
FUSED = " + ".join((f"{LAYER}.conv1.weight", *NODES))
TENSORRT = {
    "Layers": [
        layer("images.q", "Reformat", tensor("images", FP32), tensor("a", INT8))
        | {"Origin": "QDQ"},
        layer(FUSED, "CaskConvolution", tensor("a", INT8), tensor("b", INT8), METADATA),
        layer(
            f"Reformatting CopyNode for Input Tensor 0 to {LAYER}.pool",
            "Reformat",
            tensor("b", INT8),
            tensor("c", "Row major Int8 format"),
        ),
        layer(f"PWN({LAYER}.add)", "PointWiseV2", tensor("d", FP16), tensor("e", FP16)),
        layer("{ForeignNode[x...y]}", "Myelin", tensor("e", FP16), tensor("f", FP32, 1, 10)),
    ],
    "Bindings": ["images", "f"],
}


def test_tensorrts_own_layers() -> None:
    found = parse_inspector(json.dumps(TENSORRT)).layers
    roles = ["quantize", "convolution", "move", "float", "float"]
    assert [layer.role for layer in found] == roles
    convolution = found[1]
    assert convolution.module == f"{LAYER}.conv1" and convolution.part == LAYER
    assert convolution.nodes == NODES
    assert convolution.reads_int8 and convolution.outputs[0].bytes == 64 * 8 * 8
    assert [layer.part for layer in found[2:]] == [LAYER, LAYER, "(unnamed)"], "by their names"
    assert found[0].inputs[0].bytes == 4 * found[0].outputs[0].bytes  # type: ignore[operator]


def test_without_metadata_a_layer_is_tied_by_its_name() -> None:
    bare = copy.deepcopy(TENSORRT)
    del bare["Layers"][1]["Metadata"]  # type: ignore[attr-defined]
    convolution = parse_inspector(json.dumps(bare)).layers[1]
    assert (convolution.module, convolution.part) == (f"{LAYER}.conv1", LAYER)


def test_weights_of_the_compiler_are_no_activations() -> None:
    table = copy.deepcopy(TENSORRT)
    weights = tensor("__mye2267dconst_myl0", "Int8", 64, 64, 1, 1)
    table["Layers"][1]["Inputs"].append(weights)  # type: ignore[attr-defined]
    assert parse_inspector(json.dumps(table)) == parse_inspector(json.dumps(TENSORRT))


def test_a_layer_that_does_nothing_is_no_kernel() -> None:
    table = copy.deepcopy(TENSORRT)
    renamed = tensor("a [reshaped]", INT8)
    table["Layers"].insert(1, layer("noop", "NoOp", tensor("a", INT8), renamed))
    table["Layers"][2]["Inputs"] = [renamed]  # type: ignore[index]
    assert parse_inspector(json.dumps(table)) == parse_inspector(json.dumps(TENSORRT))


def test_layers_of_other_profiles_are_told_apart() -> None:
    other = layer(
        "fc [profile 1]", "MatrixMultiply", tensor("f [profile 1]", FP16), tensor("g", FP16)
    )
    table = json.dumps({"Layers": [*TENSORRT["Layers"], other]})
    assert parse_inspector(table) == parse_inspector(json.dumps(TENSORRT))
    assert [one.name for one in parse_inspector(table, 1).layers] == ["fc [profile 1]"]
    with pytest.raises(BuildError, match="no optimization profile 2; expected 0 to 1"):
        parse_inspector(table, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Layers": ["features.conv0", "logits"]}', "only the names.*profiling_verbosity"),
        ('{"Layers": []}', "tells nothing of its layers.*profiling_verbosity"),
        ("Layers", "is not JSON"),
        ("[" * 10**6, "is not JSON"),
        ('{"Bindings": []}', "has no list of layers"),
        ('{"Layers": [{"LayerType": "kgen"}]}', "a layer has the name None"),
        ('{"Layers": [{"Name": "a", "Inputs": "b"}]}', "the tensors of layer 'a' are b"),
        ('{"Layers": [{"Name": "a", "Inputs": [{"Name": "b"}]}]}', "layer 'a' has the tensor"),
        (
            json.dumps({"Layers": [{"Name": "a", "Inputs": [tensor("b", "Row major FP12")]}]}),
            "layer 'a' has the tensor",
        ),
        (
            json.dumps(
                {"Layers": [{"Name": "a", "Inputs": [tensor("b", "N/A due to dynamic shapes")]}]}
            ),
            "types of layer 'a' depend on the batch size.*--shapes to trtexec",
        ),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        parse_inspector(text)


class EngineInspector:
    execution_context: Any = None

    def get_engine_information(self, format: Any) -> str:
        assert format.name == "JSON"
        shape, profile = self.execution_context._shapes["images"], self.execution_context._profile
        mark = f" [profile {profile}]" if profile else ""
        source = tensor(f"images{mark}", FP32, *shape)
        item = layer(f"conv{mark}", "CaskConvolution", source, tensor("logits", FP32))
        return json.dumps({"Layers": [item], "Bindings": ["images", "logits"]})


class IExecutionContext:
    def __init__(self, accepts: bool) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._profile, self._accepts = 0, accepts

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return stream_handle != 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return self._accepts


class ICudaEngine:
    num_io_tensors, num_optimization_profiles = 2, 2

    def __init__(self, surface: Surface, accepts: bool) -> None:
        self._surface, self._accepts = surface, accepts

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self._accepts)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._surface.enum("TensorIOMode")
        return mode.INPUT if name == "images" else mode.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name == "images"
        return [(batch + 10 * profile_index, 3, 8, 8) for batch in (1, 2, 4)]


class Stream:
    handle = 7

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *stop: object) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def gpu(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Real names over a simulated engine: plan `good`, `shy` (refuses shapes) or none."""
    used: list[int] = []

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            if serialized_engine in (b"good", b"shy"):
                return ICudaEngine(surface, serialized_engine == b"good")
            self._logger.log(surface.enum("ILogger.Severity").ERROR, "Version tag does not match")
            return None

    module = checked_module(surface, [Runtime])
    monkeypatch.setitem(sys.modules, surface.backend.replace("-", "_"), module)
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "")
    monkeypatch.setattr(_cuda, "use_device", used.append)
    monkeypatch.setattr(_cuda, "current_device", lambda: 1)
    monkeypatch.setattr(_cuda, "Stream", Stream)
    return used


def test_an_engine_is_read_at_its_optimal_batch_size(surface: Surface, gpu: list[int]) -> None:
    (found,) = read_engine(b"good", surface.backend, device=1).layers
    assert (found.inputs[0].shape, gpu) == ((2, 3, 8, 8), [1])
    (found,) = read_engine(b"good", surface.backend, profile=1).layers
    assert found.inputs[0].shape == (12, 3, 8, 8) and found.name == "conv [profile 1]"
    with pytest.raises(BuildError, match="no optimization profile 2; expected 0 to 1"):
        read_engine(b"good", surface.backend, profile=2)


def test_an_engine_that_does_not_run(surface: Surface, gpu: list[int]) -> None:
    with pytest.raises(BackendError, match="cannot be loaded: Version tag does not match"):
        read_engine(b"other", surface.backend)
    with pytest.raises(BackendError, match="the engine does not run in profile 0"):
        read_engine(b"shy", surface.backend)


def test_no_gpu_is_said_before_anything_is_made(
    surface: Surface, gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "no CUDA device")
    with pytest.raises(BackendError, match="no CUDA device"):
        read_engine(b"good", surface.backend)
    assert gpu == []
