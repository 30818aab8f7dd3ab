from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import densenet as torchvision_densenet

from densenet_deploy import checkpoint
from densenet_deploy.checkpoint import CheckpointInfo, LoadReport
from densenet_deploy.errors import CheckpointError
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.preprocess import CIFAR10, FASHION_MNIST
from densenet_deploy.spec import DenseNetSpec

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "densenet-bc-10-4"
INFO = CheckpointInfo(
    create_model(NAME, (1, 28, 28)).spec,
    FASHION_MNIST,
    ("T-shirt/top", "Trouser", "größe"),
    {"config": {"epochs": 3}, "final": {"loss": 0.25}, "notes": ["a", 1]},
)


def trained(seed: int = 0) -> DenseNet:
    """A model whose BatchNorm statistics and counters are no longer the initial ones."""
    model = create_model(NAME, (1, 28, 28), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(8, 1, 28, 28, generator=generator))
    return model


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every tensor of `model` drawn anew, BatchNorm's statistics among them; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 0.02, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def logits_of(model: torch.nn.Module) -> Tensor:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits: Tensor = model.eval()(images)
    return logits


def legacy_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As torchvision's published files name them: `denselayer1.norm.1.weight`, no counters."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def fresh() -> DenseNet:
    return create_model(NAME, (1, 28, 28), seed=99)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- our own files


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_and_header_come_back(tmp_path: Path, layout: torch.memory_format) -> None:
    path, model = tmp_path / "model.safetensors", trained()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint.save(path, model.to(memory_format=layout), INFO)  # type: ignore[call-overload]
    loaded = fresh()
    assert not equal(loaded.state_dict(), expected)
    checkpoint.load_weights(path, loaded)
    assert equal(loaded.state_dict(), expected)
    assert checkpoint.read_info(path) == INFO


def test_file_is_plain_safetensors_with_a_json_header(tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", trained()
    checkpoint.save(path, model, INFO)
    assert equal(load_file(path), dict(model.state_dict()))
    with safe_open(path, framework="pt") as tensors:
        header = json.loads(tensors.metadata()["densenet_deploy"])
    assert header["spec"]["growth_rate"] == 4
    assert header["preprocessing"]["mean"] == [0.286]
    assert header["labels"] == ["T-shirt/top", "Trouser", "größe"]
    assert header["training"] == INFO.training


def test_header_alone_is_enough_to_rebuild_the_network(tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", trained()
    checkpoint.save(path, model, INFO)
    info = checkpoint.read_info(path)
    assert info is not None
    rebuilt = DenseNet(info.spec).eval()
    checkpoint.load_weights(path, rebuilt)
    images = torch.randn(2, *info.preprocessing.input_shape)
    assert torch.equal(rebuilt(images), model.eval()(images))


def test_saving_replaces_an_earlier_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, trained(0), INFO)
    newer = replace(INFO, preprocessing=CIFAR10)
    checkpoint.save(path, trained(1), newer)
    loaded = fresh()
    checkpoint.load_weights(path, loaded)
    assert equal(loaded.state_dict(), trained(1).state_dict())
    assert checkpoint.read_info(path) == newer
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_loaded_weights_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", fresh()
    checkpoint.save(path, trained(), INFO)
    checkpoint.load_weights(path, model)
    path.write_bytes(b"\0" * path.stat().st_size)  # a mapped file would show this
    assert equal(model.state_dict(), trained().state_dict())


# --- files of other tools


def test_foreign_safetensors_has_no_header_but_loads(tmp_path: Path) -> None:
    path, model = tmp_path / "other.safetensors", fresh()
    save_file(dict(trained().state_dict()), path, metadata={"format": "pt"})
    assert checkpoint.read_info(path) is None
    checkpoint.load_weights(path, model)
    assert equal(model.state_dict(), trained().state_dict())


def test_torch_file_has_no_header_but_loads(tmp_path: Path) -> None:
    path, model = tmp_path / "model.pth", fresh()
    torch.save(trained().state_dict(), path)
    assert checkpoint.read_info(path) is None
    checkpoint.load_weights(path, model)
    assert equal(model.state_dict(), trained().state_dict())


class PublishedWeights:
    """A .pth under torchvision's own loader, which modernises the names in place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get_state_dict(self, **_: Any) -> dict[str, Tensor]:
        return torch.load(self.path, weights_only=True)


def test_names_of_torchvisions_published_files_are_understood(tmp_path: Path) -> None:
    # densenet121-a639ec97.pth says denselayer1.norm.1.weight and holds no counters
    spec = DenseNetSpec(4, (2, 2), 8, "imagenet", True, 0.5, (3, 32, 32), 5)
    source, ours = DenseNet(spec), DenseNet(spec)
    theirs = torchvision_densenet.DenseNet(4, (2, 2), 8, num_classes=5)
    published = legacy_names(source.state_dict())
    assert "features.denseblock2.denselayer1.conv.2.weight" in published
    torch.save(published, tmp_path / "published.pth")
    checkpoint.load_weights(tmp_path / "published.pth", ours)
    torchvision_densenet._load_state_dict(
        theirs, PublishedWeights(tmp_path / "published.pth"), progress=False
    )
    assert equal(ours.state_dict(), theirs.state_dict())
    assert equal(ours.state_dict(), source.state_dict())


def test_missing_counters_are_forgiven(tmp_path: Path) -> None:
    # torch before 0.4.1 did not write them
    state = {k: v for k, v in trained().state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    model = fresh()
    checkpoint.load_weights(tmp_path / "old.pth", model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_half_precision_weights_become_fp32(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in trained().state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    model = fresh()
    checkpoint.load_weights(tmp_path / "half.pth", model)
    assert model.classifier.weight.dtype == torch.float32
    assert torch.equal(model.classifier.weight, state["classifier.weight"].float())


# --- tensors that do not fit


def without(state: dict[str, Tensor]) -> None:
    del state["features.conv0.weight"]


def with_one_more(state: dict[str, Tensor]) -> None:
    state["features.conv9.weight"] = torch.zeros(1)


def misshapen(state: dict[str, Tensor]) -> None:
    state["features.conv0.weight"] = torch.zeros(8, 3, 3, 3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "change, problem",
    [
        (without, "1 missing: features.conv0.weight."),
        (with_one_more, "1 unexpected: features.conv9.weight."),
        (misshapen, "1 misshapen: features.conv0.weight ((8, 3, 3, 3), expected (8, 1, 3, 3))."),
    ],
)
def test_tensor_that_does_not_fit_is_named(
    tmp_path: Path, suffix: str, change: Callable[[dict[str, Tensor]], None], problem: str
) -> None:
    path, state, model = tmp_path / f"model{suffix}", dict(trained().state_dict()), fresh()
    change(state)
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    with pytest.raises(CheckpointError, match=re.escape(problem)) as caught:
        checkpoint.load_weights(path, model)
    assert "check --model" in str(caught.value).lower()
    assert equal(model.state_dict(), fresh().state_dict())  # nothing was half loaded


def test_weights_of_another_network_name_some_of_many_problems(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, trained(), INFO)
    with pytest.raises(CheckpointError, match=r"\d\d+ missing: \S+, \S+ and others; \d+ m") as e:
        checkpoint.load_weights(path, create_model("densenet-bc-40-12"))
    assert len(str(e.value)) < 800


# --- damage and malice


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    for read in (checkpoint.read_info, lambda path: checkpoint.load_weights(path, fresh())):
        with pytest.raises(CheckpointError, match=f"{name} does not exist"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("kept", [0, 1, 7, 100, -1])
def test_truncated_file_is_named(tmp_path: Path, name: str, kept: int) -> None:
    path, model = tmp_path / name, trained()
    (checkpoint.save(path, model, INFO) if "safe" in name else torch.save(model.state_dict(), path))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=f"{name} is not a (valid|loadable)"):
        checkpoint.load_weights(path, fresh())


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("intact") / "model.safetensors"
    checkpoint.save(path, trained(), INFO)
    return path.read_bytes()


@settings(max_examples=150)
@given(st.integers(0, 2**31), st.integers(1, 255))
def test_any_damage_to_the_header_is_explained_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, intact: bytes, place: int, flip: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    content = bytearray(intact)
    (size,) = struct.unpack("<Q", content[:8])
    content[place % (8 + size)] ^= flip
    path.write_bytes(content)
    for read in (checkpoint.read_info, lambda path: checkpoint.load_weights(path, fresh())):
        try:
            read(path)
        except CheckpointError as error:
            assert "damaged.safetensors" in str(error)


def header_file(path: Path, header: str) -> None:
    save_file(dict(trained().state_dict()), path, metadata={"densenet_deploy": header})


@pytest.mark.parametrize(
    "header, problem",
    [
        ("{", "header is not JSON"),
        ("1" * 5000, "header is not JSON"),
        ("[" * 100_000, "header is not JSON"),
        ("[]", "header is [], expected a table"),
        ("{}", "header spec is missing; header preprocessing is missing; header labels"),
    ],
    ids=["syntax", "5,000 digits", "100,000 brackets", "list", "empty"],
)
def test_malformed_header_is_explained(tmp_path: Path, header: str, problem: str) -> None:
    header_file(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=re.escape(problem)):
        checkpoint.read_info(tmp_path / "model.safetensors")


def test_header_with_an_impossible_network_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, trained(), INFO)
    with safe_open(path, framework="pt") as tensors:
        header = json.loads(tensors.metadata()["densenet_deploy"])
    header["spec"]["input_shape"] = [1, 2, 2]
    header_file(path, json.dumps(header))
    with pytest.raises(CheckpointError, match=r"spec: input_shape \(1, 2, 2\) is too small"):
        checkpoint.read_info(path)


class Trap:
    """Makes a directory where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "torch before 1.6", "pickle"])
def test_pickled_code_is_refused_and_not_executed(tmp_path: Path, writer: str) -> None:
    path, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    state = dict(trained().state_dict()) | {"trap": Trap(sprung)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError, match=r"trap\.pth is not a loadable torch state dict"):
        checkpoint.load_weights(path, fresh())
    assert not sprung.exists()
    if writer != "pickle":  # the trap is a real one
        torch.load(path, weights_only=False)
        assert sprung.exists()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"state_dict": {}, "epoch": 3},
        {"state_dict": {"weight": 1}},
        {"state_dict": {"model": {"weight": torch.zeros(1)}}},
        {"model": [torch.zeros(1)]},
        {1: torch.zeros(1)},
        torch.zeros(3),
        {"features.conv0.weight": torch.zeros(8, 1, 3, 3, device="meta")},
        {"features.conv0.weight": torch.zeros(8, 1, 3, 3).to_sparse()},
        {"features.conv0.weight": torch.zeros(8, 1, 3, 3, dtype=torch.complex64)},
    ],
    ids=[
        *("list", "nothing", "empty", "no tensor", "two deep", "list in it", "numbered", "tensor"),
        *("no data", "sparse", "complex"),
    ],
)
def test_torch_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="holds no plain state dict; expected name to tensor"):
        checkpoint.load_weights(tmp_path / "model.pth", fresh())


# --- the report


def report_of(path: Path, content: Any) -> LoadReport:
    torch.save(content, path)
    model = fresh()
    report = checkpoint.load_weights(path, model)
    assert equal(model.state_dict(), trained().state_dict())
    return report


def test_a_plain_file_needs_nothing_done(tmp_path: Path) -> None:
    report = report_of(tmp_path / "model.pth", trained().state_dict())
    parameters = sum(parameter.numel() for parameter in fresh().parameters())
    assert report == LoadReport("model.pth", parameters)
    assert report and report.problems() == ""
    assert report.summary() == f"model.pth: {parameters:,} parameters"


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_state_dicts_are_understood(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state: dict[str, Any] = {prefix + name: t for name, t in trained().state_dict().items()}
    content = {wrapper: state, "epoch": 3, "optimizer": {"lr": [0.1]}} if wrapper else state
    report = report_of(tmp_path / "model.pth", content)
    assert (report.wrapper, report.prefix) == (wrapper, prefix)
    assert (repr(wrapper) in report.summary()) == bool(wrapper)
    assert (repr(prefix) in report.summary()) == bool(prefix)


def test_real_wrappers_names_are_understood(tmp_path: Path) -> None:
    parallel = torch.nn.DataParallel(trained())
    assert report_of(tmp_path / "one.pth", parallel.state_dict()).prefix == "module."
    compiled = torch.compile(trained())
    assert report_of(tmp_path / "two.pth", compiled.state_dict()).prefix == "_orig_mod."


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    state = {
        f"module.{name}" if "conv" in name else name: tensor
        for name, tensor in trained().state_dict().items()
    }
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"does not fit this architecture: \d+ missing"):
        checkpoint.load_weights(tmp_path / "model.pth", fresh())


def test_old_names_and_missing_counters_are_counted(tmp_path: Path) -> None:
    state = trained().state_dict()
    torch.save({"state_dict": legacy_names(state)}, tmp_path / "old.pth")
    report = checkpoint.load_weights(tmp_path / "old.pth", fresh())
    counters = tuple(sorted(name for name in state if name.endswith("num_batches_tracked")))
    assert report.missing_counters == counters and not report.missing
    assert len(report.renamed) == len([n for n in state if "denselayer" in n]) - len(
        [n for n in counters if "denselayer" in n]
    )
    assert set(report.renamed) <= set(legacy_names(state)) - set(state)
    table = report.to_dict()
    assert (table["renamed"], table["missing_counters"]) == (len(report.renamed), len(counters))
    assert json.loads(json.dumps(table))["file"] == "old.pth"
    assert f"{len(report.renamed)} old names renamed, {len(counters)} counters" in report.summary()


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    state = trained().state_dict()
    torch.save(state | legacy_names(state), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"holds features\.\S+ twice"):
        checkpoint.load_weights(tmp_path / "model.pth", fresh())


def test_report_counts_what_does_not_fit() -> None:
    report = LoadReport(
        "x.pth", 5, missing=("b", "a"), unexpected=tuple("cdef"), misshapen=(("d", (1,), (2, 3)),)
    )
    assert not report
    assert report.problems() == (
        "2 missing: b, a; 4 unexpected: c, d and others; 1 misshapen: d ((1,), expected (2, 3))"
    )
    assert not LoadReport("x", 1, unexpected=("c",)) and LoadReport("x", 1, missing_counters=("n",))
