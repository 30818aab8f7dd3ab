"""evaluate, and published weights through export: a local file stands in for the server's."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import DenseNet121_Weights, densenet121

from densenet_deploy.bundle import open_bundle
from densenet_deploy.data import ASSETS
from tests.cli.conftest import Command
from tests.test_checkpoint import legacy_names, randomise

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = ASSETS / "fashion-mnist.safetensors"
TORCHVISION = ("--weights", "torchvision:IMAGENET1K_V1", "--model", "densenet121")
TIMM = ("--weights", "timm:densenet121.ra_in1k")
EXPORT = ("--precision", "fp32", "--target", "onnxruntime", "-q")


def test_without_an_argument_it_is_the_shipped_model_on_the_sample(command: Command) -> None:
    done = command("evaluate", "-q")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "weights: fashion-mnist.safetensors: 175,690 parameters"
    assert lines[1].startswith("top-1 9") and "sample, 1000 test images" in lines[1]


def test_the_larger_shipped_model(command: Command) -> None:
    done = command("evaluate", "fashion-mnist-100", "--json", "-q")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["weights"]["parameters"] == 768_730
    assert found["top1"] > 96  # of the sample, on which the smaller has 95.8


def test_a_file_of_another_tool(command: Command, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in load_file(SHIPPED).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "other.pth.tar")
    options = ("--model", "densenet-bc-40-12", "--data", "fashion-mnist", "-q")
    # its variant is that of colour images
    refused = command("evaluate", "--weights", tmp_path / "other.pth.tar", *options).refusal()
    assert "does not fit this architecture" in refused
    recipe = (
        'name = "x"\n[model]\nvariant = "densenet-bc-40-12"\n'
        f"weights = {json.dumps(str(tmp_path / 'other.pth.tar'))}\n[data]\ntest_images = 50\n"
    )
    (tmp_path / "x.toml").write_text(recipe)
    counted = json.loads(command("evaluate", tmp_path / "x.toml", "--json", "-q").out)
    assert counted["top1"] > 90 and (counted["images"], counted["crops"]) == (50, 1)
    found = counted["weights"]
    assert (found["wrapper"], found["prefix"]) == ("state_dict", "module.")
    assert counted["preprocessing"]["interpolation"] == "bilinear"


def test_weights_in_place_of_a_named_recipes(command: Command, tmp_path: Path) -> None:
    """Neither architecture nor images are said but by the recipe."""
    torch.save(load_file(SHIPPED), tmp_path / "other.pth")
    recipe = (
        'name = "x"\n[model]\nvariant = "densenet-bc-40-12"\nweights = "fashion-mnist"\n'
        "[data]\ntest_images = 50\n"
    )
    (tmp_path / "x.toml").write_text(recipe)
    options = ("--weights", tmp_path / "other.pth", "--json", "-q")
    counted = json.loads(command("evaluate", tmp_path / "x.toml", *options).out)
    assert counted["top1"] > 90 and counted["images"] == 50
    absent = ("--weights", tmp_path / "absent.pth", "-q")
    assert (
        "absent.pth does not exist" in command("evaluate", tmp_path / "x.toml", *absent).refusal()
    )


def test_weights_in_place_of_the_default_recipes(command: Command, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(SHIPPED.read_bytes())
    done = command("evaluate", "fashion-mnist", "--weights", weights, "-q")
    assert done.code == 0, done.err
    assert done.out.startswith("weights: mine.safetensors: 175,690 parameters\ntop-1 9")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand classes, two of which have an image."""
    root = tmp_path_factory.mktemp("imagenet")
    for index in range(1000):
        (root / "val" / f"n{index:08}").mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in (3, 500):
        pixels = random.integers(0, 256, (260, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "val" / f"n{index:08}" / "image.png")
    return root


@pytest.fixture
def published(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> torch.nn.Module:
    """A network in the form of torchvision's published file, at torchvision's own address."""
    model = randomise(densenet121())
    torch.save(legacy_names(model.state_dict()), tmp_path / "made.pth")
    digest = sha256((tmp_path / "made.pth").read_bytes()).hexdigest()
    file = (tmp_path / "made.pth").rename(tmp_path / f"densenet121-{digest[:8]}.pth")
    monkeypatch.setattr(DenseNet121_Weights.IMAGENET1K_V1.value, "url", file.as_uri())
    return model


def test_published_weights_are_fetched_and_evaluated(
    command: Command, published: torch.nn.Module, pictures: Path, empty_cache: Path
) -> None:
    options = (*TORCHVISION, "--data", "folder", "--data-dir", pictures, "-q")
    done = command("evaluate", *options, "--crops", "10")
    assert done.code == 0, done.err
    assert "7,978,856 parameters, 580 old names renamed, 121 counters missing" in done.out
    assert "(val images of imagenet" in done.out and "10 crops of each" in done.out
    assert len(list((empty_cache / "weights").iterdir())) == 1
    again = json.loads(command("evaluate", *options, "--json").out)
    assert again["images"] == 2 and again["weights"]["renamed"] == 580


def test_timms_name_says_the_model_and_its_preprocessing_ends_in_the_bundle(
    command: Command, empty_cache: Path, tmp_path: Path
) -> None:
    state = randomise(timm.create_model("densenet121", pretrained=False)).state_dict()
    (empty_cache / "weights").mkdir(parents=True)
    save_file(state, empty_cache / "weights" / "timm-densenet121.ra_in1k.safetensors")
    done = command("export", *TIMM, *EXPORT, "--out", tmp_path / "bundle", "--json")
    assert done.code == 0, done.err
    opened = open_bundle(tmp_path / "bundle")
    assert opened.manifest.preprocessing.interpolation == "bicubic"
    assert (opened.manifest.name, len(opened.manifest.labels)) == ("densenet121.ra_in1k", 1000)
    table = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert table["preprocessing"]["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    "options, problem",
    [
        (("--crops", "5"), "--crops 5; expected 1 or 10"),
        (("--crops", "10"), "10 crops of 28x28 from an image of 28x28"),
        (("--weights", "fashion-mnist"), "no labelled images. Name them with --data"),
        (("--model", "densenet-bc-10-4", "--data", "fashion-mnist"), "has no weights. Name them"),
        (("--data", "folder", "--weights", "fashion-mnist"), "no folder test or val"),
        (("--weights", "x.pth", "--data", "fashion-mnist"), "x.pth does not exist"),
        (
            ("--weights", "torchvision:IMAGENET1K_V1", "--data", "folder"),
            "does not say which architecture",
        ),
        (
            ("--weights", "timm:densenet121.x", "--data", "folder"),
            "timm has no weights 'densenet121.x'",
        ),
        (("--device", "abacus"), "device abacus: "),
        (("--weights", "fashion-mnist", "--data", "synthetic"), "no labelled images"),
    ],
)
def test_what_cannot_be_evaluated_is_explained(
    command: Command, options: tuple[str, ...], problem: str
) -> None:
    assert problem in command("evaluate", *options, "-q").refusal()


def test_a_folder_of_other_classes_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new("L", (30, 30)).save(tmp_path / "val" / "cat" / "image.png")
    options = ("--weights", "fashion-mnist", "--data", "folder", "--data-dir", tmp_path)
    refused = command("evaluate", *options, "-q").refusal()
    assert "have 1 classes; expected the network's 10" in refused


def test_without_a_network_the_place_for_the_file_is_named(
    command: Command, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        DenseNet121_Weights.IMAGENET1K_V1.value,
        "url",
        "http://127.0.0.1:1/densenet121-a639ec97.pth",
    )
    refused = command("export", *TORCHVISION, *EXPORT).refusal()
    assert str(empty_cache / "weights" / "densenet121-a639ec97.pth") in refused
