"""What importing costs, and the doors of the heavy dependencies.

That imports point down is held by the import-linter contracts in pyproject.toml (`make check`).
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import densenet_deploy

PACKAGE = Path(densenet_deploy.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"}
TORCH_AND_ONNX = {"torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "safetensors"}
HEAVY = BACKENDS | TORCH_AND_ONNX | {"matplotlib", "jinja2", "numpy", "PIL", "rich", "typer"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import densenet_deploy; dir(densenet_deploy)")
    assert "densenet_deploy" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "module",
    [
        "bundle",
        "runtime",
        "runtime.select",
        "runtime.fallback",
        "runtime.tensorrt",
        "engine.build",
        "engine.inspected",
        "verify",
        "consistency",
        "classifier",
        "bench",
        "report",
        "suite",
        "interleaved",
        "cli.use",
        "cli.app",
    ],
)
def test_the_consume_side_loads_neither_torch_nor_onnx_nor_a_backend(module: str) -> None:
    loaded = loaded_by(f"import densenet_deploy.{module}")
    assert "numpy" in loaded
    assert not loaded & (TORCH_AND_ONNX | BACKENDS | {"matplotlib", "jinja2"})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_serving_host_answers_without_torch_and_onnx(backend: str, fashion_bundle: Path) -> None:
    """The whole way from a directory to logits, with the produce side made unimportable."""
    loaded = loaded_by(
        f"import sys; sys.modules.update(dict.fromkeys({sorted(TORCH_AND_ONNX)!r}))\n"
        "import pathlib, densenet_deploy as dd\n"
        f"bundle = dd.open_bundle(pathlib.Path({str(fashion_bundle)!r}))\n"
        f"with dd.open_runner(bundle, {backend!r}, 'int8', 1) as runner:\n"
        "    assert runner.logits(bundle.golden()[0]).shape == (4, 10)"
    )
    assert backend in loaded


def test_every_public_name_opens() -> None:
    names = densenet_deploy.__all__
    assert {"create_model", "run", "open_bundle", "open_runner", "compare", "measure"} <= set(names)
    for name in names:
        assert getattr(densenet_deploy, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = densenet_deploy.nonsense


@pytest.mark.parametrize("name", ["rewrite", "train", "bench", "quantize", "report", "verify"])
def test_every_stage_opens_as_a_module(name: str) -> None:
    stage = densenet_deploy.__getattr__(name)  # an attribute by itself once it was imported
    assert stage is import_module(f"densenet_deploy.{name}")


def imports(module: Path) -> Iterator[str]:
    """Top-level names a module imports, wherever in it and however: also by a literal name."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value).split(".")[0]


def importers(*names: str) -> set[str]:
    return {
        module.relative_to(PACKAGE).as_posix()
        for module in MODULES
        if set(imports(module)) & set(names)
    }


def dynamic_importers() -> set[str]:
    """Modules that import by a name which is computed."""
    return {
        module.relative_to(PACKAGE).as_posix()
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        and not isinstance(node.args[0], ast.Constant)
    }


def test_each_heavy_dependency_has_one_door() -> None:
    # The driver is asked without bindings, libraries of a wheel are loaded by their path, and the
    # C library's allocator has no other door.
    assert importers("ctypes") == {"_cuda.py", "_tensorrt.py", "allocator.py"}
    assert importers("pynvml") <= {"_nvml.py"}
    assert importers("cuda") == {"_cuda.py"}
    assert importers("openvino") == {"runtime/openvino.py"}
    assert importers("tensorrt", "tensorrt_rtx") <= {"_tensorrt.py"}
    # Two doors compute the names of modules; the other two import this package's own.
    doors = {"_cuda.py", "_tensorrt.py"}
    assert dynamic_importers() == {"__init__.py", "runtime/__init__.py"} | doors
    pictures = {"report.py", "pareto.py", "figures/drawing.py"}
    assert importers("matplotlib", "jinja2") == pictures


def test_the_scan_sees_every_kind_of_import(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import numpy as np\n"
        "def late():\n"
        "    import tensorrt.tools\n"
        "    from cuda.bindings import runtime\n"
        "    importlib.import_module('openvino.runtime')\n"
        "    __import__('torch')\n"
    )
    assert list(imports(module)) == ["numpy", "tensorrt", "cuda", "openvino", "torch"]
