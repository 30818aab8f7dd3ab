"""verify, bench, predict and report, each once for real."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from densenet_deploy.bundle import Bundle, open_bundle, write_manifest
from densenet_deploy.cli import use
from densenet_deploy.data import ASSETS
from densenet_deploy.runtime import BACKENDS, why_unavailable
from densenet_deploy.runtime.runner import Runner
from tests.cli.conftest import Command
from tests.conftest import Finished

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_package_ships_a_bundle_of_its_weights() -> None:
    from safetensors.torch import load_file

    opened = open_bundle(use.SHIPPED)
    assert use.SHIPPED == ASSETS / "bundle"
    assert opened.precisions == ("fp32", "fp16", "int8")
    assert not opened.manifest.speed_only
    assert len(opened.manifest.labels) == 10 and opened.manifest.samples
    published = load_file(ASSETS / "fashion-mnist.safetensors")
    shipped = load_file(opened.file(opened.manifest.weights))
    assert published.keys() == shipped.keys()
    assert all(np.array_equal(published[name], shipped[name]) for name in published)


def test_verify_prints_a_line_for_each_graph(command: Command, fashion_bundle: Path) -> None:
    options = ("--backend", "onnxruntime", "--precision", "int8", "--precision", "fp16", "-q")
    done = command("verify", fashion_bundle, *options)
    assert (done.code, done.err) == (0, "")
    first, int8, fp16, *consistent = done.out.splitlines()
    assert first == "100 of Fashion-MNIST sample, 1000 test images, compared with pytorch fp32"
    assert int8.startswith("int8 on onnxruntime: top-1 ") and int8.endswith(": pass")
    assert fp16.startswith("fp16 on onnxruntime: top-1 ") and fp16.endswith(": pass")
    assert [line.partition(":")[0] for line in consistent] == [
        "int8 on onnxruntime",
        "fp16 on onnxruntime",
    ]
    for line in consistent:
        assert ": 7 consistency rules (does not apply: CUDA graph), " in line
        assert line.endswith(" s: pass")


def test_verify_fails_where_a_runner_contradicts_itself(
    command: Command, fashion_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last row that depends on the one before it; no test image notices in batches of 64."""
    real = Runner.run

    def wrong_at_two(self: Runner, feeds: Any) -> Any:
        answers = real(self, feeds)
        if len(feeds["images"]) == 2:
            answers["logits"] = answers["logits"][::-1]
        return answers

    monkeypatch.setattr(Runner, "run", wrong_at_two)
    options = ("--backend", "onnxruntime", "--precision", "fp32", "-q")
    done = command("verify", fashion_bundle, *options, "--json")
    told = json.loads(done.out)
    assert done.code == 1 and told["parity"][0]["passed"]
    (record,) = told["consistency"]
    assert not record["passed"] and record["failures"][0].startswith("batch sizes: differ by ")
    done = command("verify", fashion_bundle, *options)
    assert done.code == 1 and "FAIL: batch sizes: differ by " in done.out


no_gpu = pytest.mark.skipif(
    not why_unavailable("tensorrt-rtx"), reason="TensorRT-RTX runs here; tests/gpu checks it"
)


@no_gpu
def test_verify_falls_back_and_says_so_once(command: Command, fashion_bundle: Path) -> None:
    options = ("--backend", "tensorrt", "--precision", "int8", "-q")
    assert command("verify", fashion_bundle, *options).code == 2
    done = command("verify", fashion_bundle, *options, "--fallback", "rebuild,onnxruntime")
    assert done.code == 0
    ran = [line.partition(":")[0] for line in done.out.splitlines()[1:]]
    assert ran == ["int8 on onnxruntime"] * 2
    first, second, third = done.err.splitlines()
    assert first.startswith("tensorrt: tensorrt cannot run here: no CUDA device")
    assert second.startswith("rebuild: an engine for tensorrt could not run here: no CUDA")
    assert third == "int8 runs on onnxruntime"


@no_gpu
def test_predict_falls_back_in_the_order_asked_for(command: Command) -> None:
    sample = use.SHIPPED / open_bundle(use.SHIPPED).manifest.samples[0]
    expected = command("predict", "shipped", sample, "--backend", "openvino")
    options = ("--backend", "tensorrt-rtx", "--fallback", "rebuild,openvino,onnxruntime")
    done = command("predict", "shipped", sample, *options)
    assert (done.code, done.out) == (0, expected.out)
    assert done.err.splitlines()[-1] == "fp32 runs on openvino"
    assert "tensorrt-rtx cannot run here" in done.err


@pytest.mark.parametrize("program", ["verify", "predict"])
def test_an_unknown_fallback_is_refused(command: Command, program: str) -> None:
    sample = use.SHIPPED / open_bundle(use.SHIPPED).manifest.samples[0]
    arguments = (use.SHIPPED,) if program == "verify" else (use.SHIPPED, sample)
    refusal = command(program, *arguments, "--fallback", "onnxruntime,rebiuld").refusal()
    assert refusal.startswith("fallback 'rebiuld'; expected some of rebuild, pytorch, onnxruntime")


def test_verify_of_the_shipped_bundle_as_json(command: Command) -> None:
    """On every backend of this machine and every image the package ships."""
    done = command("verify", "--precision", "int8", "--json", "--quiet")
    told = json.loads(done.out)
    assert done.code == 0, told["parity"]
    here = [name for name in BACKENDS if name != "pytorch" and not why_unavailable(name)]
    pairs = [(record["backend"], record["precision"]) for record in told["parity"]]
    assert pairs == [(name, "int8") for name in here]
    assert all(record["images"] == 1000 for record in told["parity"])
    assert {item["backend"] for item in told["skipped"]} == {
        name for name in BACKENDS if why_unavailable(name)
    }
    assert all(record["top1"] > 90 for record in told["parity"])
    consistent = [(item["backend"], item["passed"]) for item in told["consistency"]]
    assert consistent == [(name, True) for name in here]


def test_bench_of_one_precision_on_every_backend(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "records.json"
    options = ("--precision", "fp16", "--batch", "2", "--seconds", "0.05", "--threads", "1")
    done = command("bench", *options, "--out", out, "--json", "-q")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert json.loads(out.read_text(encoding="utf-8")) == told
    here = [name for name in BACKENDS if name != "pytorch" and not why_unavailable(name)]
    assert [record["backend"] for record in told["measurements"]] == here
    for record in told["measurements"]:
        assert (record["precision"], record["batch"], record["threads"]) == ("fp16", 2, 1)
        assert len(record["latencies"]) == record["requests"] >= 10
        assert sum(record["latencies"]) >= 0.01
        assert record["images_per_second"] == pytest.approx(2 / record["mean_seconds"])
    skipped = {item["backend"]: item["reason"] for item in told["skipped"]}
    assert skipped.pop("pytorch") == "it is the fp32 reference"
    assert skipped == {name: reason for name in BACKENDS if (reason := why_unavailable(name))}
    assert told["bundle"]["manifest_sha256"] == open_bundle(use.SHIPPED).digest
    assert told["environment"]["packages"]["numpy"] == np.__version__

    done = command("report", out, "--out", tmp_path / "report")
    assert done.code == 0
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert f"# {told['bundle']['description']}\n" in text
    assert text.count("\n| fp16 | ") == len(here)
    with Image.open(tmp_path / "report" / "report.png") as image:
        assert image.format == "PNG"


def test_bench_prints_a_table_with_the_recorded_accuracy(
    command: Command, tiny_run: Finished
) -> None:
    options = ("--backend", "onnxruntime", "--precision", "int8", "--seconds", "0.02", "-q")
    done = command("bench", tiny_run.directory, *options)
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["A", "tiny", "net", "for", "tests"]
    assert lines[1][:2] == ["precision", "backend"]
    row = next(line for line in lines if line[:2] == ["int8", "onnxruntime"])
    recorded = json.loads((tiny_run.directory / "records.json").read_text())["parity"]
    agreement = next(
        item["agreement"]
        for item in recorded
        if (item["precision"], item["backend"]) == ("int8", "onnxruntime")
    )
    assert row[2:5] == ["-", f"{agreement:.2f}", "2"]  # labels, agreement, the recipe's batch
    assert float(row[-1]) > 0
    assert "accuracy as recorded in the bundle: synthetic images, seed 1" in done.out


def softmax(bundle: Bundle, precision: Any, names: list[str]) -> np.ndarray:
    """Probabilities from the graph and the pixels, by ONNX Runtime alone."""
    pixels = np.stack([np.asarray(Image.open(bundle.file(name))) for name in names])
    inputs = ((pixels / 255 - 0.2860) / 0.3530).astype(np.float32)[:, None]
    session = onnxruntime.InferenceSession(
        bundle.model(precision, "onnxruntime"), providers=["CPUExecutionProvider"]
    )
    exponentials = np.exp(session.run(None, {"images": inputs})[0].astype(np.float64))
    return exponentials / exponentials.sum(1, keepdims=True)


def test_predict_as_json(command: Command, bundle: Bundle) -> None:
    names = list(bundle.manifest.samples[:3])
    files = [bundle.file(name) for name in names]
    done = command("predict", bundle.path, *files, "--precision", "fp32", "--top", 10, "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert told["speed_only"] is False
    assert [item["image"] for item in told["predictions"]] == [str(file) for file in files]
    for item, expected in zip(told["predictions"], softmax(bundle, "fp32", names), strict=True):
        classes = item["classes"]
        assert [entry["index"] for entry in classes] == np.argsort(-expected).tolist()
        for entry in classes:
            assert entry["label"] == bundle.manifest.labels[entry["index"]]
            assert entry["probability"] == pytest.approx(expected[entry["index"]], abs=1e-5)
        assert sum(entry["probability"] for entry in classes) == pytest.approx(1)


def test_predict_names_what_is_in_the_picture(command: Command) -> None:
    opened = open_bundle(use.SHIPPED)
    trousers = next(name for name in opened.manifest.samples if "trouser" in name)
    done = command("predict", "shipped", opened.file(trousers), "--backend", "openvino")
    assert (done.code, done.err) == (0, "")
    answer = done.out.removeprefix(f"{opened.file(trousers)}: ")
    best, *others = answer.strip().split(", ")
    assert best.startswith("Trouser ") and best.endswith(" %")
    assert float(best.split()[1]) > 90
    assert len(others) == 2


def test_predict_reads_any_picture(command: Command, bundle: Bundle, tmp_path: Path) -> None:
    """Other sizes, colour, transparency, JPEG: what a user's folder holds."""
    with Image.open(bundle.file(bundle.manifest.samples[0])) as sample:
        sample.convert("RGBA").resize((56, 56), Image.Resampling.NEAREST).save(tmp_path / "a.png")
        sample.convert("RGB").resize((140, 140), Image.Resampling.NEAREST).save(tmp_path / "b.jpg")
    done = command("predict", bundle.path, tmp_path / "a.png", tmp_path / "b.jpg", "--json")
    assert done.code == 0
    for item in json.loads(done.out)["predictions"]:
        assert item["classes"][0]["label"] == "Ankle boot"


def test_predict_of_few_images_where_batches_are_large(command: Command, damaged: Path) -> None:
    manifest = dataclasses.replace(open_bundle(damaged).manifest, batch=(3, 3, 4))
    opened = write_manifest(damaged, manifest)
    files = [opened.file(name) for name in manifest.samples[:5]]
    together = json.loads(command("predict", damaged, *files, "--json").out)["predictions"]
    alone = json.loads(command("predict", damaged, files[4], "--json").out)["predictions"]
    assert [item["image"] for item in together] == [str(file) for file in files]
    assert alone[0]["classes"][0]["index"] == together[4]["classes"][0]["index"]


def test_predict_says_that_noise_means_nothing(command: Command, tiny_run: Finished) -> None:
    picture = tiny_run.directory / "samples" / "00-synthetic.png"
    done = command("predict", tiny_run.directory, picture, "--precision", "fp32", "--top", 2)
    assert done.code == 0
    assert "speed only: the weights are seeded noise" in done.out
    first = done.out.splitlines()[0].removeprefix(f"{picture}: ").split(", ")
    assert len(first) == 2 and first[0].split()[0].isdigit()  # no labels: the class number
    assert json.loads(command("predict", tiny_run.directory, picture, "--json").out)["speed_only"]


def test_report_of_a_bundle(command: Command, tiny_run: Finished, tmp_path: Path) -> None:
    done = command("report", tiny_run.directory, "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    for name in ("report.md", "report.png"):
        assert str(tmp_path / "out" / name) in done.out
    stored = (tiny_run.directory / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8") == stored


def test_report_into_a_document(command: Command, tiny_run: Finished, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("top\n<!-- results:begin -->\n<!-- results:end -->\nbottom\n")
    for _ in range(2):  # the second time replaces the first
        done = command("report", tiny_run.directory, "--into", document)
        assert (done.code, done.out) == (0, f"table: {document}\n")
    text = document.read_text(encoding="utf-8")
    assert text.startswith("top\n<!-- results:begin -->\n") and text.endswith("end -->\nbottom\n")
    assert text.count("| precision | backend |") == 1
    assert "# A tiny net" not in text, "the document has its own title"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_copied_bundle_works_where_it_is_put(
    command: Command, fashion_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fashion_bundle, tmp_path / "a b" / "ü")
    monkeypatch.chdir(tmp_path / "a b")
    done = command("predict", "ü", "ü/samples/00-ankle-boot.png", "--json")
    assert done.code == 0
    assert json.loads(done.out)["predictions"][0]["image"] == "ü/samples/00-ankle-boot.png"
