"""densenet-infer on real bundles and images: Python's answers, Python's records, clear refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy import report
from densenet_deploy.bundle import Bundle, open_bundle
from densenet_deploy.classifier import classify
from densenet_deploy.data import ImageSet
from densenet_deploy.recipe import Precision
from densenet_deploy.results import Measurement, Parity
from densenet_deploy.runtime import open_runner
from densenet_deploy.verify import predict
from tests.cpp.toolchain import Finished, run

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def pngs(sample: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The 1,000 test images as files."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{index:04}.png" for index in range(len(sample[1]))]
    for path, pixels in zip(paths, sample[1].pixels, strict=True):
        Image.fromarray(pixels[:, :, 0]).save(path)
    assert len(paths) == 1000
    return paths


@pytest.fixture(params=["openvino", "onnxruntime"])
def program(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A backend, and densenet-infer with it."""
    fixture = "infer" if request.param == "openvino" else "infer_onnxruntime"
    return request.param, request.getfixturevalue(fixture)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_test_image_gets_pythons_class(
    program: tuple[str, Path],
    fashion_bundle: Path,
    bundle: Bundle,
    sample: tuple[ImageSet, ImageSet],
    pngs: list[Path],
    tmp_path: Path,
    precision: Precision,
) -> None:
    backend, infer = program
    logits, given = tmp_path / "logits.npy", tmp_path / "input.npy"
    options = ["--backend", backend, "--precision", precision, "--json"]
    options += ["--save-logits", str(logits), "--save-input", str(given)]
    done = run(infer, "classify", fashion_bundle, *pngs, *options)
    assert done.code == 0, done.err
    with open_runner(bundle, backend, precision) as runner:
        expected = predict(runner, sample[1].pixels)
    found = np.load(logits)
    assert found.shape == (1000, 10)
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    if precision == "fp32":
        assert np.abs(found - expected).max() <= 1e-4
    normalised = bundle.manifest.preprocessing.normalise(sample[1].pixels)
    assert np.array_equal(np.load(given), normalised)
    printed = [item["classes"][0]["index"] for item in done.json["predictions"]]
    assert printed == expected.argmax(1).tolist()


def test_classes_are_printed_as_python_prints_them(
    infer: Path, fashion_bundle: Path, bundle: Bundle
) -> None:
    images = [bundle.file(name) for name in bundle.manifest.samples[:3]]
    done = run(infer, "classify", fashion_bundle, *images, "--backend", "openvino", "--json")
    expected = classify(bundle, images, "openvino", "fp32")
    assert done.json["speed_only"] is False
    for item, image, classes in zip(done.json["predictions"], images, expected, strict=True):
        assert item["image"] == str(image)
        assert [one["label"] for one in item["classes"]] == [one.label for one in classes]
        for one, other in zip(item["classes"], classes, strict=True):
            assert abs(one["probability"] - other.probability) < 1e-5
    plain = run(infer, "classify", fashion_bundle, images[0], "--top", "1")
    assert plain.out.startswith(f"{images[0]}: Ankle boot 9")


def test_verify_has_pythons_records(infer: Path, fashion_bundle: Path, bundle: Bundle) -> None:
    done = run(infer, "verify", fashion_bundle, "--json")
    assert done.code == 0, done.err
    parity = done.json["parity"]
    assert [item["precision"] for item in parity] == list(PRECISIONS)
    fields = {*Parity.__dataclass_fields__, "passed"}
    for item in parity:
        assert set(item) == fields
        assert item["passed"] is True and item["images"] == len(bundle.golden()[0])
    skipped = {item["backend"] for item in done.json["skipped"]}
    assert skipped == {"tensorrt", "tensorrt-rtx", "onnxruntime"}


def test_verify_takes_other_images(
    infer: Path,
    fashion_bundle: Path,
    bundle: Bundle,
    sample: tuple[ImageSet, ImageSet],
    tmp_path: Path,
) -> None:
    """On Python's logits of 100 images, and then on ones that are wrong for two."""
    images = bundle.manifest.preprocessing.normalise(sample[1].pixels[:100])
    with open_runner(bundle, "onnxruntime", "fp32") as runner:
        logits = np.concatenate([runner.logits(images[:50]), runner.logits(images[50:])])
    given, expected = tmp_path / "images.npy", tmp_path / "logits.npy"
    np.save(given, images)
    options = ["--precision", "fp32", "--input", given, "--expected", expected, "--json"]
    np.save(expected, logits)
    right = run(infer, "verify", fashion_bundle, *options)
    assert right.code == 0 and right.json["parity"][0]["max_abs"] < 1e-4
    logits[[3, 50]] = -logits[[3, 50]]
    np.save(expected, logits)
    wrong = run(infer, "verify", fashion_bundle, *options)
    assert wrong.code == 1
    assert wrong.json["parity"][0]["agreement"] == 98
    assert "agreement 98.00 %, required 100 %" in wrong.json["parity"][0]["failures"]


def test_bench_has_pythons_records(
    infer: Path, fashion_bundle: Path, bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "cpp.json"
    ballast = bytearray(600 << 20)  # a child must not count its parent's memory
    options = ["--batch", "1,3", "--seconds", "0.1", "--threads", "1", "--out", out]
    done = run(infer, "bench", fashion_bundle, *options)
    assert done.code == 0, done.err
    assert "peak memory of this process: " in done.out
    records = json.loads(out.read_text())
    derived = {"requests", "mean_seconds", "images_per_second"}
    derived |= {f"p{percent}_seconds" for percent in (50, 90, 99)}
    for item in records["measurements"]:
        assert set(item) == {*Measurement.__dataclass_fields__, *derived}
        assert item["requests"] == len(item["latencies"]) >= 10
        assert item["mean_seconds"] == pytest.approx(np.mean(item["latencies"]), rel=1e-3)
        if item["p50_seconds"]:
            middle = np.percentile(item["latencies"], 50, method="inverted_cdf")
            assert item["p50_seconds"] == pytest.approx(middle, rel=1e-3)
    assert len(records["measurements"]) == 2 * len(PRECISIONS)
    assert records["bundle"]["recipe_digest"] == open_bundle(fashion_bundle).manifest.recipe_digest
    assert (
        records["bundle"]["graphs_sha256"]
        == open_bundle(fashion_bundle).identity()["graphs_sha256"]
    )
    assert records["bundle"]["manifest_sha256"] == open_bundle(fashion_bundle).digest
    assert 20 << 20 < records["process"]["peak_memory_bytes"] < 500 << 20 < len(ballast)
    assert len(report.rows(report.read_records(out))) == 6
    markdown = report.markdown(records)
    assert "| int8 | openvino |" in markdown and "densenet-infer 0.1.0" in markdown
    assert list(tmp_path.iterdir()) == [out]


def test_sample_answers_line_by_line(infer: Path, fashion_bundle: Path, bundle: Bundle) -> None:
    image = bundle.file(bundle.manifest.samples[0])
    for images in ([], [str(image)]):
        command = [str(infer), "sample", str(fashion_bundle), *images, "--threads", "1"]
        done = subprocess.run(command, input="\n\n", capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        opening, *seconds = map(json.loads, done.stdout.splitlines())
        assert set(opening) == {"load_seconds", "steady", "requests"}
        assert len(seconds) == 2 and all(0 < value < 1 for value in seconds)


def refused(done: Finished, *parts: str) -> None:
    assert done.code == 2
    assert done.err.startswith("error: "), done.err
    for part in parts:
        assert part in done.err


def test_bad_input_is_refused_with_a_reason(
    infer: Path, fashion_bundle: Path, bundle: Bundle, tmp_path: Path
) -> None:
    image = bundle.file(bundle.manifest.samples[0])
    own = fashion_bundle
    refused(run(infer, "classify", tmp_path, image), "is not a bundle", "densenet-deploy run")
    refused(run(infer, "classify", own, tmp_path / "none.png"), "does not exist. Check the path.")
    refused(run(infer, "classify", own, own / "manifest.json"), "neither PNG nor JPEG")
    refused(
        run(infer, "classify", own, image, "--backend", "tensorrt"),
        "tensorrt cannot run here: this build of the library lacks it and has openvino",
    )
    refused(run(infer, "classify", own, image, "--backend", "cuda"), "unknown backend 'cuda'")
    refused(run(infer, "verify", own, "--precision", "bf16"), "unknown precision 'bf16'")
    refused(run(infer, "verify", own, "--input", image), "one of --input and --expected")
    refused(run(infer, "bench", own, "--batch", "65"), "batch size 65; expected 1 to 64")
    refused(run(infer, "bench", own, "--out", tmp_path / "no" / "x.json"), "cannot be written")
    refused(run(infer, "bench", own, "--seconds=-1"), "expected a positive number")


def test_usage_errors_exit_with_2(infer: Path, fashion_bundle: Path) -> None:
    for arguments in ([], ["classify"], ["bench", fashion_bundle, "--batch", "0"], ["fly"]):
        done = run(infer, *arguments)
        assert done.code == 2 and done.err, arguments
    assert run(infer, "--help").code == 0


def test_a_failed_run_leaves_earlier_outputs_alone(
    infer: Path, damaged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "records.json"
    out.write_text("earlier")
    (damaged / "fp32.onnx").write_bytes(b"")
    refused(run(infer, "bench", damaged, "--out", out), "fp32.onnx has 0 bytes")
    assert out.read_text() == "earlier"


def test_a_bundle_of_seeded_weights_says_so(
    infer: Path, tiny_run: Finished, tmp_path: Path
) -> None:
    assert tiny_run.code == 0, tiny_run.err
    image = tiny_run.directory / open_bundle(tiny_run.directory).manifest.samples[0]
    done = run(infer, "classify", tiny_run.directory, image)
    assert "speed only" in done.out
    assert run(infer, "verify", tiny_run.directory).code == 0


@pytest.mark.parametrize("command", ["classify", "verify", "bench"])
def test_sanitizers_find_nothing(
    asan: Path, fashion_bundle: Path, bundle: Bundle, command: str
) -> None:
    images = [bundle.file(name) for name in bundle.manifest.samples]
    options = {"classify": images, "verify": [], "bench": ["--seconds", "0.05", "--batch", "1,3"]}
    done = run(asan / "app" / "densenet-infer", command, fashion_bundle, *options[command])
    assert done.code == 0, done.err


def test_the_shipped_folder_is_only_read(infer: Path, fashion_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(fashion_bundle, tmp_path / "bundle"))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in copy.rglob("*"))
    run(infer, "verify", copy, cwd=tmp_path)
    after = sorted((path.name, path.stat().st_mtime_ns) for path in copy.rglob("*"))
    assert before == after and list(tmp_path.iterdir()) == [copy]
