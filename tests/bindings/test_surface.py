"""The checker itself: it knows what is known of TensorRT's versions, and catches mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.bindings.checked import Dims, checked, checked_module, simulated
from tests.bindings.signatures import parse
from tests.bindings.surface import Surface


def at_least(surface: Surface, major: int) -> bool:
    """TensorRT of this major version or newer; TensorRT-RTX counts as 11, whose API it has."""
    return surface.backend == "tensorrt-rtx" or int(surface.version.split(".")[0]) >= major


def test_the_version_is_the_one_asked_for(surface: Surface, request: pytest.FixtureRequest) -> None:
    asked = request.node.callspec.params["surface"]
    assert surface.version == asked or (asked == "rtx" and surface.backend == "tensorrt-rtx")


def test_strongly_typed_is_one_in_10_and_zero_in_11(surface: Surface) -> None:
    member = surface.enum("NetworkDefinitionCreationFlag")["STRONGLY_TYPED"]
    assert int(member) == (0 if at_least(surface, 11) else 1)


def test_enum_integers_of_11(surface: Surface) -> None:
    integers = {"VERSION_COMPATIBLE": (13, 12), "STRIP_PLAN": (19, 18), "REFIT_IDENTICAL": (20, 19)}
    for name, (before, since) in integers.items():
        expected = since if at_least(surface, 11) else before
        assert int(surface.enum("BuilderFlag")[name]) == expected, name


@pytest.mark.parametrize(
    "gone",
    [
        "BuilderFlag.FP16",
        "BuilderFlag.INT8",
        "IInt8Calibrator",
        "IBuilderConfig.int8_calibrator",
        "ITensor.set_dynamic_range",
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    ],
)
def test_what_11_removed(surface: Surface, gone: str) -> None:
    assert surface.has(gone) is not at_least(surface, 11)


def test_the_type_of_a_tensor_is_read_only_in_11(surface: Surface) -> None:
    assert surface.members["ITensor.dtype"].readable == "DataType"
    assert bool(surface.members["ITensor.dtype"].writable) is not at_least(surface, 11)


def test_what_10_0_lacks_and_what_only_rtx_has(surface: Surface) -> None:
    for name in ("IBuilderConfig.tiling_optimization_level", "BuilderFlag.EDITABLE_TIMING_CACHE"):
        assert surface.has(name) is (surface.version != "10.0.1")
    for name in ("ComputeCapability.SM120", "IRuntimeCache.serialize"):
        assert surface.has(name) is (surface.backend == "tensorrt-rtx")


def test_every_signature_is_read(surface: Surface) -> None:
    """No method is let through because its signature was not found or not understood."""
    methods = {path: m for path, m in surface.members.items() if m.kind == "method"}
    untold = {path.rpartition(".")[2] for path, m in methods.items() if not m.signatures}
    assert untold == {"__init__"}
    for signature in (s for method in methods.values() for s in method.signatures):
        between = signature.text.partition("(")[2].rpartition(") -> ")[0]
        assert (between.count(":") >= 2) is bool(signature.bindable.parameters), signature


def test_defaults_quotes_and_brackets_in_a_signature() -> None:
    text = (
        "f(self: C, a: List[Tuple[int, bool]], b: str = 'x, y', c: E = <E.STATIC: 0>, *args) -> int"
    )
    parameters = parse(text, of_object=True).bindable.parameters
    assert {name: p.annotation for name, p in parameters.items()} == {
        "a": "List[Tuple[int, bool]]",
        "b": "str",
        "c": "E",
        "args": "object",
    }
    assert [name for name, p in parameters.items() if p.default is not p.empty] == ["b", "c"]


def enum_of(surface: Surface, path: str) -> Any:
    name, _, member = path.rpartition(".")
    return surface.enum(name)[member]


GOOD: list[tuple[str, str, Callable[[Surface], tuple[Any, ...]], dict[str, Any]]] = [
    ("IExecutionContext", "set_input_shape", lambda s: ("image", (1, 3)), {}),
    ("IExecutionContext", "set_input_shape", lambda s: ("image", Dims((1, 3))), {}),
    ("IExecutionContext", "execute_async_v3", lambda s: (), {"stream_handle": 7}),
    ("IOptimizationProfile", "set_shape", lambda s: ("image", (1,), [2], (3,)), {}),
    ("IBuilderConfig", "set_flag", lambda s: (enum_of(s, "BuilderFlag.TF32"),), {}),
    ("IBuilderConfig", "add_optimization_profile", lambda s: (checked(0, s, PROFILE),), {}),
    ("ICudaEngine", "create_execution_context", lambda s: (), {}),
    ("Builder", "create_network", lambda s: (), {}),
    ("Runtime", "deserialize_cuda_engine", lambda s: (b"plan",), {}),
    ("Refitter", "set_named_weights", lambda s: ("w", np.zeros(3)), {}),
]
BAD: list[tuple[str, str, Callable[[Surface], tuple[Any, ...]], dict[str, Any]]] = [
    ("IExecutionContext", "set_inputshape", lambda s: ("image", (1, 3)), {}),  # a typo
    ("IExecutionContext", "set_input_shape", lambda s: ("image",), {}),  # too few
    ("IExecutionContext", "set_input_shape", lambda s: ("image", (1,), 0), {}),  # too many
    ("IExecutionContext", "set_input_shape", lambda s: (0, (1, 3)), {}),  # an index, not a name
    ("IExecutionContext", "set_input_shape", lambda s: ("image", 3), {}),  # no shape
    ("IExecutionContext", "execute_async_v3", lambda s: (), {"stream": 7}),  # a wrong keyword
    ("IExecutionContext", "execute_async_v3", lambda s: (None,), {}),
    ("IExecutionContext", "execute_async_v3", lambda s: (7.0,), {}),
    ("IExecutionContext", "set_tensor_address", lambda s: (b"image", 7), {}),
    ("IOptimizationProfile", "set_shape", lambda s: ("image", ("a",), (2,), (3,)), {}),
    ("IBuilderConfig", "set_flag", lambda s: (6,), {}),  # an integer for an enum
    ("IBuilderConfig", "set_flag", lambda s: (enum_of(s, "DataType.INT8"),), {}),  # another enum
    ("IBuilderConfig", "add_optimization_profile", lambda s: (checked(0, s, "Builder"),), {}),
    ("IHostMemory", "__init__", lambda s: (), {}),  # no constructor
    ("Builder", "__init__", lambda s: (None,), {}),  # no logger
    ("Runtime", "deserialize_cuda_engine", lambda s: ("plan",), {}),
]
PROFILE = "IOptimizationProfile"


@pytest.mark.parametrize(("cls", "method", "arguments", "keywords"), GOOD)
def test_a_right_call_passes(
    surface: Surface, cls: str, method: str, arguments: Any, keywords: dict[str, Any]
) -> None:
    assert surface.check_call(cls, method, arguments(surface), keywords)


@pytest.mark.parametrize(("cls", "method", "arguments", "keywords"), BAD)
def test_a_wrong_call_is_caught(
    surface: Surface, cls: str, method: str, arguments: Any, keywords: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError, match=rf"{surface.version} .*{cls}.{method}"):
        surface.check_call(cls, method, arguments(surface), keywords)


class ICudaEngine:
    """A simulation of four names, one of which returns what the real one does not."""

    num_io_tensors = 2
    refittable = True

    def get_tensor_name(self, index: int) -> str:
        return "image"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1, 3)

    def get_tensor_mode(self, name: str) -> int:
        return 1


@pytest.fixture
def engine(surface: Surface) -> Any:
    return checked(ICudaEngine(), surface, "ICudaEngine")


def test_a_proxy_lets_through_what_is_real(engine: Any) -> None:
    assert engine.num_io_tensors == 2
    assert engine.get_tensor_name(0) == "image"
    assert tuple(engine.get_tensor_shape("image")) == (1, 3)
    assert isinstance(simulated(engine), ICudaEngine)


def test_a_proxy_refuses_what_is_not(engine: Any) -> None:
    assert not hasattr(engine, "num_bindings")  # gone since 10.0
    with pytest.raises(AttributeError, match="no 'num_io_tensors' to write"):
        engine.num_io_tensors = 3
    with pytest.raises(NotImplementedError, match="simulated ICudaEngine lacks 'num_layers'"):
        _ = engine.num_layers
    with pytest.raises(AssertionError, match="get_tensor_name"):
        engine.get_tensor_name("0")
    with pytest.raises(AssertionError, match="returns 1, the real one TensorIOMode"):
        engine.get_tensor_mode("image")


def test_shapes_and_enums_behave_as_in_the_bindings(surface: Surface, engine: Any) -> None:
    shape = engine.get_tensor_shape("image")
    assert shape == (1, 3)
    assert shape[1:] == (3,)
    with pytest.raises(TypeError):
        _ = shape == engine.get_tensor_shape("image")
    with pytest.raises(TypeError):
        _ = (2,) + shape  # noqa: RUF005
    with pytest.raises(TypeError):
        _ = 1 << surface.enum("BuilderFlag")["TF32"]


def test_the_module_has_the_names_of_the_version(surface: Surface) -> None:
    trt = checked_module(surface, [ICudaEngine])
    assert trt.__version__ == surface.version
    assert trt.float32 is trt.DataType.FLOAT
    assert trt.ILogger.ERROR is trt.ILogger.Severity.ERROR is trt.Logger.Severity.ERROR
    assert hasattr(trt, "IInt8Calibrator") is not at_least(surface, 11)
    assert trt.Logger(trt.Logger.WARNING)
    with pytest.raises(AssertionError, match=r"has no ICudaEngin$"):
        checked_module(surface, [type("ICudaEngin", (), {})])
    with pytest.raises(AssertionError, match="no constructor"):
        trt.ICudaEngine()


def test_a_subclass_overrides_what_is_there_and_makes_its_base(surface: Surface) -> None:
    trt = checked_module(surface)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self, made: bool) -> None:
            if made:
                trt.IProgressMonitor.__init__(self)

        def step_complete(self, phase: str, step: int) -> bool:
            return True

    assert Monitor(made=True).step_complete("Building", 0)
    with pytest.raises(TypeError, match="must be called when overriding"):
        Monitor(made=False)
    with pytest.raises(NotImplementedError, match="phase_finish"):
        Monitor(made=True).phase_finish("Building")
    with pytest.raises(AssertionError, match="never calls a method 'step_completed'"):
        type("Wrong", (trt.IProgressMonitor,), {"step_completed": lambda self, phase, step: True})
    with pytest.raises(AssertionError, match=r"step_complete\(.*too many positional"):
        type("Wrong", (trt.IProgressMonitor,), {"step_complete": lambda self, phase: True})
