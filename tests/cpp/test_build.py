"""The presets build without warnings, their own tests pass, and other projects find the library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpp.toolchain import ENVIRONMENT, PROJECT, compile_all, configure, run

EXAMPLES = PROJECT.parent / "examples" / "cpp"
BUNDLE = PROJECT.parent / "densenet_deploy" / "assets" / "bundle"


@pytest.mark.parametrize("preset", ["cpu", "asan"])
def test_its_own_tests_pass(preset: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(preset)
    command = ["ctest", "--preset", preset, "--parallel", "2"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"tests passed, 0 tests failed out of (\d+)", done.stdout)
    assert passed and int(passed[1]) > 60, done.stdout[-500:]
    assert "Skipped" not in done.stdout, done.stdout[-2000:]


@pytest.fixture(scope="module")
def installed(cpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix that the library and its program are installed to."""
    prefix = tmp_path_factory.mktemp("prefix")
    command = ["cmake", "--install", str(cpu), "--prefix", str(prefix)]
    subprocess.run(command, check=True, capture_output=True)
    return prefix


@pytest.fixture(scope="module")
def examples(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ examples, a project of their own that has the installed library alone."""
    folder = tmp_path_factory.mktemp("examples")
    source = Path(shutil.copytree(EXAMPLES, folder / "source"))
    configure(source, folder / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    compile_all(folder / "build")
    return folder / "build"


def test_an_installed_program_finds_its_library(installed: Path) -> None:
    done = run(installed / "bin" / "densenet-infer", "verify", BUNDLE, "--precision", "fp32")
    assert done.code == 0, done.err
    assert "fp32 on openvino: agreement 100.00 %" in done.out


def test_another_project_classifies_images(examples: Path) -> None:
    image = BUNDLE / "samples" / "06-coat.png"
    done = run(examples / "minimal", BUNDLE, image)
    assert done.code == 0, done.err
    assert re.fullmatch(r"Coat 99\.\d %\n", done.out)


def test_another_project_uses_several_threads(examples: Path) -> None:
    done = run(examples / "threads", BUNDLE)
    assert done.code == 0, done.err
    assert re.search(r"^\d+ images in \d+\.\d s with 4 threads: \d+ images/s$", done.out, re.M)


def test_the_examples_say_what_is_wrong(examples: Path, tmp_path: Path) -> None:
    done = run(examples / "minimal", tmp_path, tmp_path / "none.png")
    assert done.code == 2
    assert "is not a bundle" in done.err


def test_another_project_contains_the_sources(cpu: Path, tmp_path: Path) -> None:
    """With add_subdirectory, in C++20 and without a build type of its own."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(whole LANGUAGES CXX)\n"
        "set(CMAKE_CXX_STANDARD 20)\n"
        f"add_subdirectory({PROJECT} densenet_deploy)\n"
        f"add_executable(minimal {EXAMPLES / 'minimal.cpp'})\n"
        "target_link_libraries(minimal PRIVATE densenet_deploy::densenet_deploy)\n"
    )
    build = tmp_path / "build"
    options = [f"-DPython3_EXECUTABLE={sys.executable}", "-DDENSENET_DEPLOY_ONNXRUNTIME=OFF"]
    configure(tmp_path, build, *options)
    cache = (build / "CMakeCache.txt").read_text()
    assert re.search(r"^CMAKE_BUILD_TYPE:STRING=$", cache, re.M)
    compile_all(build)
    assert not (build / "densenet_deploy" / "app").exists()
    image = BUNDLE / "samples" / "06-coat.png"
    assert run(build / "minimal", BUNDLE, image).out.startswith("Coat 99")


def test_no_header_of_a_backend_leaks_into_ours(installed: Path) -> None:
    headers = sorted((installed / "include").rglob("*.hpp"))
    assert len(headers) > 10
    text = "".join(path.read_text(encoding="utf-8") for path in headers)
    included = set(re.findall(r"#include [<\"]([^>\"]+)", text))
    own = {name for name in included if name.startswith("densenet_deploy/")}
    assert own == {f"densenet_deploy/{path.name}" for path in headers} - {
        "densenet_deploy/densenet_deploy.hpp"
    }
    standard = included - own
    assert not {name for name in standard if "." in name or "/" in name}, standard


def test_every_header_compiles_alone(installed: Path, tmp_path: Path) -> None:
    for header in sorted((installed / "include" / "densenet_deploy").glob("*.hpp")):
        source = tmp_path / f"{header.stem}.cpp"
        source.write_text(f'#include "densenet_deploy/{header.name}"\n')
        command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
        command += ["-fsyntax-only", f"-I{installed / 'include'}", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{header.name}\n{done.stderr[:2000]}"


def test_the_library_shows_only_its_own_names(installed: Path) -> None:
    library = next((installed / "lib").rglob("libdensenet_deploy.so"))
    command = ["nm", "--dynamic", "--defined-only", "--demangle", str(library)]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    exported = [line.split(" ", 2)[2] for line in names.splitlines() if " T " in line]
    assert exported and all("densenet_deploy::" in name for name in exported), exported


def test_versions_are_the_packages(cpu: Path) -> None:
    import densenet_deploy

    done = run(cpu / "app" / "densenet-infer", "--version")
    assert done.out.strip() == densenet_deploy.__version__


def test_presets_are_the_documented_ones() -> None:
    presets = json.loads((PROJECT / "CMakePresets.json").read_text())
    assert [item["name"] for item in presets["configurePresets"]] == ["cpu", "gpu", "asan"]
