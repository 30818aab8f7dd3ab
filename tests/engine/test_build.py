"""Real TensorRT-RTX builds of tiny graphs; TensorRT-RTX compiles without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from densenet_deploy import _cuda, _tensorrt, errors
from densenet_deploy.engine import failure
from densenet_deploy.engine.build import build_engine, build_widest, engine_version
from densenet_deploy.engine_config import BuildConfig

trt = pytest.importorskip("tensorrt_rtx")
CONFIG = BuildConfig(profiles=((1, 2, 4),), compute_capabilities=("8.6",))


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A temp dir of its own for every build, which has to leave it empty."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def graph(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: tuple[Any, ...] = ("n", 3, 8, 8),
    dtype: int = onnx.TensorProto.FLOAT,
    more_inputs: dict[str, tuple[Any, ...]] | None = None,
) -> bytes:
    """Serialized model from `x` to `y`."""
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    for name, dims in (more_inputs or {}).items():
        inputs.append(helper.make_tensor_value_info(name, dtype, dims))
    output = helper.make_tensor_value_info("y", dtype, None)
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    body = helper.make_graph(nodes, "tiny", inputs, [output], initializers)
    opset = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(body, opset_imports=opset, ir_version=10).SerializeToString())


def weight(dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(dtype)


def conv_relu(half: bool = False, **options: Any) -> bytes:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    dtype = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    return graph(nodes, {"w": weight(np.float16 if half else np.float32)}, dtype=dtype, **options)


def quantized_conv(scale_is_input: bool = False, int32_bias: bool = False) -> bytes:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="dq_weight", axis=0),
        helper.make_node(
            "Conv", ["xd", "wd", *["bd"] * int32_bias], ["y"], name="conv", pads=[1, 1, 1, 1]
        ),
    ]
    constants: dict[str, Any] = {
        "s": np.float32(0.02),
        "z": np.int8(0),
        "w": (weight() * 30).astype(np.int8),
        "ws": np.full(4, 0.03, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    if int32_bias:
        nodes.insert(3, helper.make_node("DequantizeLinear", ["b", "s"], ["bd"], name="dq_bias"))
        constants["b"] = np.arange(4, dtype=np.int32)
    if scale_is_input:
        del constants["s"]
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return graph(nodes, arrays, more_inputs={"s": ()} if scale_is_input else None)


@pytest.mark.parametrize(
    "model", [conv_relu(), conv_relu(half=True), quantized_conv()], ids=["fp32", "fp16", "int8"]
)
def test_builds_an_engine_with_a_dynamic_batch(model: bytes) -> None:
    assert build_engine(model, CONFIG).startswith(b"vtrt")


def test_one_engine_for_several_compute_capabilities() -> None:
    config = BuildConfig(profiles=((1, 2, 4),), compute_capabilities=("7.5", "8.0", "8.9", "12.0"))
    several = build_engine(conv_relu(half=True), config)
    assert several.startswith(b"vtrt")
    assert len(several) > len(build_engine(conv_relu(half=True), CONFIG))


def matrix_product(half: bool) -> bytes:
    dtype = np.float16 if half else np.float32
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(dtype)
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm")
    return graph([gemm], {"w": weights}, shape=("n", 8), dtype=kind)


def test_optional_targets_are_added_where_the_graph_allows() -> None:
    half = build_widest(matrix_product(half=True), CONFIG)
    assert (half.plan[:4], half.compute_capabilities) == (b"vtrt", ("7.5", "8.6"))
    single = build_widest(matrix_product(half=False), CONFIG)
    assert (single.plan[:4], single.compute_capabilities) == (b"vtrt", ("8.6",))
    assert (single.version, single.cached, single.timing_cache) == (trt.__version__, False, "")
    with pytest.raises(errors.BuildError, match="parse"):
        build_widest(b"not an onnx file", CONFIG)


def test_reads_a_file_with_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model_from_string(conv_relu())
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('shadows the library')")
    assert build_engine(Path("m.onnx"), CONFIG).startswith(b"vtrt")
    with pytest.raises(errors.GraphError, match=r"no file .*absent\.onnx"):
        build_engine(Path("absent.onnx"), CONFIG)


def test_a_crash_of_the_builder_is_an_error_here() -> None:
    with pytest.raises(errors.BuildError) as caught:
        build_engine(quantized_conv(scale_is_input=True), CONFIG)
    first, *log = str(caught.value).splitlines()
    assert first == (
        "the tensorrt-rtx builder was killed by SIGSEGV at {ForeignNode[tmp_weight_1...conv]} "
        "(known cause: a quantization scale that is not a constant); the end of its log:"
    )
    assert len(log) == 12 and log[0].startswith("  verbose: ")


def under_memory_limit(monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    """From now on, children may use no more than that beside what loading the library takes."""
    import resource

    program = (
        "import densenet_deploy.engine.process, tensorrt_rtx as t, re, pathlib;"
        "t.Builder(t.Logger());"
        "print(re.search(r'VmPeak:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    idle = int(subprocess.check_output([sys.executable, "-c", program])) * 1024
    limit, real = idle + megabytes * 2**20, subprocess.Popen

    def limited(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        def lower() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        return real(*arguments, preexec_fn=lower, **options)

    monkeypatch.setattr(subprocess, "Popen", limited)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are per system")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("megabytes", "message"),
    [
        (100, r"cannot parse the model: std::bad_alloc"),
        (260, r"cannot build the engine: .*(bad_alloc|OutOfMemory).* at \{ForeignNode\[wide\]\}"),
    ],
    ids=["parser", "builder"],
)
def test_a_builder_out_of_memory_names_the_layer(
    megabytes: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real limit for weights of 38 MB; what strikes the parser has no layer yet."""
    wide = np.random.default_rng(0).random((1024, 1024, 3, 3), dtype=np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="wide", pads=[1, 1, 1, 1])]
    model = graph(nodes, {"w": wide}, shape=("n", 1024, 8, 8))
    under_memory_limit(monkeypatch, megabytes)
    with pytest.raises(errors.BuildError, match=message) as caught:
        build_engine(model, CONFIG)
    assert "expected enough memory. Free memory, or need less" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("verbose: Parsing node: features.conv0 [Conv]", "features.conv0 [Conv]"),
        ("verbose: =============== Computing costs for conv1 + relu", "conv1 + relu"),
        (
            "verbose: --------------- Timing Runner: conv2 + relu2 (CaskConvolution[0x80000009])",
            "conv2 + relu2",
        ),
        ("verbose: Searching for input: x", "features.stem [Conv]"),
    ],
)
def test_the_last_layer_that_the_log_announces(line: str, place: str, tmp_path: Path) -> None:
    """Lines as TensorRT 10 and 11 and TensorRT-RTX write them."""
    log = tmp_path / "log"
    log.write_text(f"info: start\nverbose: Parsing node: features.stem [Conv]\n{line}\nlast")
    found = str(failure.died("tensorrt", -9, log)).splitlines()[0]
    assert f"was killed by SIGKILL at {place} (known cause: too little memory);" in found
    error = errors.BuildError("Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
    assert f"Requested size was 9 bytes.) at {place}; expected enough memory. Free memory" in str(
        failure.with_place(error, log)
    )
    other = errors.BuildError("no such operator")
    assert failure.with_place(other, log) is other


@pytest.mark.parametrize("model", [b"not an onnx file", conv_relu()[:-40], b""])
def test_corrupt_bytes(model: bytes) -> None:
    with pytest.raises(errors.BuildError, match=r"cannot parse the model|at least one output"):
        build_engine(model, CONFIG)


def test_parser_errors_name_the_node() -> None:
    with pytest.raises(errors.BuildError) as caught:
        build_engine(quantized_conv(int32_bias=True), CONFIG)
    assert "'dq_bias' (DequantizeLinear)" in str(caught.value)
    assert "type Int32" in str(caught.value)


def test_unknown_compute_capability() -> None:
    config = BuildConfig(profiles=((1, 2, 4),), compute_capabilities=("8.6", "9.0"))
    with pytest.raises(errors.BuildError, match=r"'9\.0'; expected one of 7\.5, 8\.0.* 12\.1"):
        build_engine(conv_relu(), config)


def test_batch_outside_a_static_dimension() -> None:
    model = conv_relu(shape=(2, 3, 8, 8))
    with pytest.raises(errors.BuildError, match=r"static batch size 2, .* asks for 1,2,4"):
        build_engine(model, CONFIG)
    assert build_engine(model, BuildConfig(profiles=((2, 2, 2),), compute_capabilities=("8.6",)))


def test_only_the_batch_may_be_dynamic() -> None:
    with pytest.raises(errors.BuildError, match=r"'x' has shape .* only dimension 0"):
        build_engine(conv_relu(shape=("n", 3, "h", "w")), CONFIG)


def test_the_log_is_kept_where_asked(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    assert build_engine(conv_relu(), CONFIG, log=log) == build_engine(conv_relu(), CONFIG)
    text = log.read_text(encoding="utf-8")
    assert "verbose: Layers:\n" in text and "[ONNX Layer: conv]" in text
    with pytest.raises(errors.BuildError, match="parse"):
        build_engine(b"not an onnx file", CONFIG, log=log)
    assert "error: " in log.read_text(encoding="utf-8"), "that of the failed build"
    with pytest.raises(errors.BuildError, match="SIGSEGV"):
        build_engine(quantized_conv(scale_is_input=True), CONFIG, log=log)
    assert log.stat().st_size
    build_widest(matrix_product(half=False), CONFIG, log=log)
    assert "[ONNX Layer: gemm]" in log.read_text(encoding="utf-8"), "that of the last attempt"


class Recorder:
    """A track that keeps what it saw, and may stop like a user who presses Ctrl-C."""

    def __init__(self, interrupt: bool = False) -> None:
        self.items: list[Any] = []
        self.description, self.interrupt = "", interrupt

    def __call__(
        self, items: Iterable[Any], description: str, total: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        self.description = description
        for item in items:
            self.items.append(item)
            if self.interrupt:
                raise KeyboardInterrupt
            yield item


def test_progress_is_reported() -> None:
    track = Recorder()
    build_engine(conv_relu(), CONFIG, track)
    assert "tensorrt-rtx" in track.description
    assert len(track.items) > 20 and "Building engine" in track.items


def test_an_interrupt_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    children = []
    real = subprocess.Popen

    def spy(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        children.append(real(*arguments, **options))
        return children[0]

    monkeypatch.setattr(subprocess, "Popen", spy)
    with pytest.raises(KeyboardInterrupt):
        build_engine(conv_relu(), CONFIG, Recorder(interrupt=True))
    assert children[0].returncode is not None


def test_tensorrt_without_a_gpu() -> None:
    if not _cuda.why_no_device():
        pytest.skip("this machine has a GPU")
    expected = r"tensorrt is not installed|cannot run here: no CUDA device"
    for call in (lambda: build_engine(conv_relu(), BuildConfig("tensorrt")), load_tensorrt):
        with pytest.raises(errors.BackendError, match=expected) as caught:
            call()
        assert "use the backend tensorrt-rtx" in caught.value.remedy


def load_tensorrt() -> Any:
    return _tensorrt.load("tensorrt")


@pytest.mark.parametrize(
    ("version", "message"), [("8.6.1", "8.6.1 is too old"), ("11.4.0", "cannot run here: no CUDA")]
)
def test_tensorrt_is_checked_before_use(
    version: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__=version))
    monkeypatch.setattr(_cuda, "why_no_device", lambda: "no CUDA device")
    with pytest.raises(errors.BackendError, match=message):
        load_tensorrt()


def test_missing_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(errors.MissingDependencyError, match=r"densenet-deploy\[rtx\]"):
        _tensorrt.load("tensorrt-rtx")


def test_an_error_of_the_child_keeps_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('libnvinfer is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(errors.BackendError, match="cannot be imported: libnvinfer is broken"):
        build_engine(conv_relu(), CONFIG)


def test_logger_sorts_by_severity(capsys: pytest.CaptureFixture[str]) -> None:
    severity = trt.ILogger.Severity
    logger = _tensorrt.collecting_logger(trt, sys.stdout)
    for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "VERBOSE"):
        logger.log(severity.__members__[name], name)
    assert (logger.errors, logger.warnings) == (["INTERNAL_ERROR", "ERROR"], ["WARNING"])
    assert list(logger.tail) == capsys.readouterr().out.splitlines()
    assert logger.tail[-1] == "verbose: VERBOSE"


def test_engine_version() -> None:
    assert engine_version("tensorrt-rtx") == trt.__version__


def test_import_is_light() -> None:
    program = (
        "import sys, densenet_deploy.engine.build, densenet_deploy.engine.process;"
        "heavy = {'tensorrt', 'tensorrt_rtx', 'onnx', 'torch', 'cuda'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    root = str(Path(errors.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
