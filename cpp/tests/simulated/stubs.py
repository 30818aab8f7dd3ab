"""Writes a C++ header in which every virtual function of TensorRT's runtime objects is an error.

    python stubs.py INCLUDE_DIR OUTPUT

The simulation overrides the ones that the backend calls; any other call ends the test.
"""

import re
import sys
from pathlib import Path

CLASSES = ("VRuntime", "VCudaEngine", "VExecutionContext")
FUNCTION = re.compile(
    r"virtual (?P<type>.+?)(?P<name>\w+)\((?P<arguments>[^()]*)\) (?P<const>const )?noexcept = 0;"
)


def stub(header: str, name: str) -> str:
    """The class `Stub<name>`, made from the declaration of `name`."""
    found = re.search(rf"class {name} : public VRoot\n{{\npublic:\n(.*?)\n}};", header, re.DOTALL)
    assert found, f"no class {name}"
    body = re.sub(r"//[^\n]*", "", found[1]).replace("TRT_NODISCARD ", "")
    body = re.sub(r"#if ENABLE_FEATURE\w*.*?#endif", "", body, flags=re.DOTALL)
    declared = body.count("virtual ")
    functions = list(FUNCTION.finditer(re.sub(r"\s+", " ", body)))
    assert len(functions) == declared, f"{len(functions)} of {declared} functions of {name} read"
    lines = [
        f"  {f['type']}{f['name']}({f['arguments']}) {f['const'] or ''}noexcept override "
        f'{{ unexpected("{name}::{f["name"]}"); }}'
        for f in functions
    ]
    return "\n".join([f"struct Stub{name} : nvinfer1::apiv::{name} {{", *lines, "};"])


def main(include: str, output: str) -> None:
    header = (Path(include) / "NvInferImpl.h").read_text(encoding="utf-8")
    parts = ["#pragma once", "#include <NvInferRuntime.h>", "using namespace nvinfer1;"]
    parts += ["[[noreturn]] void unexpected(const char* call);"]
    Path(output).write_text("\n".join(parts + [stub(header, name) for name in CLASSES]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
