"""Published weights: real torchvision and timm say what they are, a local server sends them."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torchvision import models

from densenet_deploy import checkpoint, public_weights
from densenet_deploy.errors import CheckpointError, MissingDependencyError
from densenet_deploy.model import create_model
from densenet_deploy.public_weights import PublicWeights, describe, fetch
from tests.test_checkpoint import legacy_names, logits_of, randomise

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS = ("densenet121", "densenet161", "densenet169", "densenet201")
TIMM = ("densenet121.ra_in1k", *(f"{name}.tv_in1k" for name in VARIANTS))


# --- what a name means


@pytest.mark.parametrize("name", VARIANTS)
def test_torchvisions_weights_come_with_its_transforms_and_classes(name: str) -> None:
    theirs = models.get_model_weights(name)["IMAGENET1K_V1"]
    found = describe("torchvision:IMAGENET1K_V1", name)
    assert found.name == f"torchvision:{theirs}"
    assert found == describe(found.name)  # which says the model too
    assert found.url == theirs.url and found.file.startswith(f"{name}-{found.sha256}.")
    assert len(found.sha256) == 8
    assert found.labels == tuple(theirs.meta["categories"])
    assert found.labels[207] == "golden retriever"
    image = photograph(500, 375)
    expected = theirs.transforms()(image).numpy()
    assert_prepared(found, image, expected)


@pytest.mark.parametrize("name", TIMM)
def test_timms_weights_come_with_its_transforms(name: str) -> None:
    theirs = timm.create_model(name, pretrained=False)
    transform = create_transform(**resolve_model_data_config(theirs))
    found = describe(f"timm:{name}")
    assert (found.name, found.model) == (f"timm:{name}", name.partition(".")[0])
    assert found.url == f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
    assert found.preprocessing.interpolation == "bicubic"
    assert len(found.labels) == 1000
    image = photograph(341, 480)
    assert_prepared(found, image, transform(image).numpy())


def test_timms_name_without_a_tag_is_its_default() -> None:
    assert describe("timm:densenet121").name == "timm:densenet121.ra_in1k"
    assert describe("timm:densenet121", "densenet121") == describe("timm:densenet121.ra_in1k")


def assert_prepared(found: PublicWeights, image: Image.Image, expected: np.ndarray) -> None:
    prepared = found.preprocessing.normalise(found.preprocessing.geometry(image)[None])[0]
    np.testing.assert_allclose(prepared, expected, rtol=0, atol=1e-6)


def photograph(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "name, model, problem",
    [
        ("torchvision:IMAGENET1K_V1", "", "does not say which architecture"),
        ("torchvision:IMAGENET1K_V9", "densenet121", "'IMAGENET1K_V9' of densenet121; expected on"),
        ("torchvision:IMAGENET1K_V1", "densenet264", "torchvision has no weights of densenet264"),
        ("torchvision:DenseNet121_Weights.IMAGENET1K_V1", "densenet169", "weights of densenet121;"),
        ("torchvision:", "densenet121", "no weights ''"),
        ("timm:densenet121.tv_in1k", "densenet169", "weights of densenet121; expected those of"),
        ("timm:densenet121.none", "", "published ones: densenet121.ra_in1k, densenet121.tv_in1k"),
        ("timm:densenet264d.untrained", "", "'densenet264d.untrained'; expected one of its"),
        ("timm:nonsense", "", "none of this model"),
        ("timm:", "", "does not say which architecture"),
    ],
)
def test_names_that_mean_nothing_are_explained(name: str, model: str, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        describe(name, model)


@given(st.sampled_from(["timm", "torchvision"]), st.text(max_size=30), st.sampled_from(["", "a"]))
def test_any_name_means_something_or_is_refused(source: str, rest: str, model: str) -> None:
    name = f"{source}:{rest}"
    assert public_weights.is_public(name)
    try:
        assert describe(name, model).name.startswith(source)
    except CheckpointError as error:
        assert len(str(error)) > 20


@pytest.mark.parametrize("name", ["fashion-mnist", "timm", "work/timm:x", "C:\\model.pth", ""])
def test_other_names_are_files(name: str) -> None:
    assert not public_weights.is_public(name)


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(MissingDependencyError, match=r"'densenet-deploy\[timm\]'"):
        describe("timm:densenet121.ra_in1k")


# --- fetching


@dataclass
class Server:
    """Files by their path, over HTTP; `headers` go with every answer."""

    address: str
    files: dict[str, bytes]
    headers: dict[str, str]
    cut: int = 0  # bytes that are promised and not sent
    asked: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            content = serving.files.get(self.path, b"")
            self.answer(content[: len(content) - serving.cut])

        def answer(self, content: bytes) -> None:
            serving.asked += 1
            whole = serving.files.get(self.path)
            self.send_response(404 if whole is None else 200)
            self.send_header("Content-Length", str(len(whole or b"")))
            for name, value in serving.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        serving = Server(f"http://127.0.0.1:{http.server_port}", {}, {})
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield serving
        http.shutdown()


CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def weights(url: str, sha256: str = DIGEST[:8]) -> PublicWeights:
    published = describe("torchvision:IMAGENET1K_V1", "densenet121")
    return replace(published, url=url, file="weights.pth", sha256=sha256)


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    server.files["/weights.pth"] = CONTENT
    wanted = weights(f"{server.address}/weights.pth")
    seen: list[int | None] = []

    def track(items: Any, _: str, total: int | None = None, start: int = 0) -> Iterator[Any]:
        seen.append(total)
        yield from items

    folder = tmp_path / "new" / "folder"
    path = fetch(wanted, folder, track)
    assert path.read_bytes() == CONTENT
    assert seen == [3]  # MiB
    assert fetch(wanted, folder) == path
    assert server.asked == 1
    assert [file.name for file in folder.iterdir()] == ["weights.pth"]


def test_by_default_it_lies_in_the_users_cache(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "published").write_bytes(CONTENT)
    path = fetch(weights((tmp_path / "published").as_uri()))
    assert path == own_cache / "densenet-deploy" / "weights" / "weights.pth"
    path.unlink()


def test_another_file_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/weights.pth"] = CONTENT[:-1] + b"!"
    with pytest.raises(CheckpointError, match=f"SHA-256 .*expected one that begins .*{DIGEST[:8]}"):
        fetch(weights(f"{server.address}/weights.pth"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_breaks_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/weights.pth"], server.cut = CONTENT, 1_000_000
    with pytest.raises(CheckpointError, match="could not be fetched"):
        fetch(weights(f"{server.address}/weights.pth"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(CONTENT[:100])
    with pytest.raises(CheckpointError, match=r"weights\.pth has SHA-256 .*Delete it"):
        fetch(weights("http://127.0.0.1:1/weights.pth"), tmp_path)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x", "http://host.invalid/x", "file:///none/x", "nonsense://x", "x"]
)
def test_without_a_network_it_says_where_to_put_the_file(tmp_path: Path, url: str) -> None:
    place = str(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"could not be fetched from {url} .*put the file at"):
        fetch(weights(url), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        fetch(weights(url), tmp_path)
    assert place in str(caught.value)
    (tmp_path / "weights.pth").write_bytes(CONTENT)
    assert str(fetch(weights(url), tmp_path)) == place


def test_a_server_that_has_no_such_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not be fetched .*Not Found"):
        fetch(weights(f"{server.address}/weights.pth"), tmp_path)


# --- Hugging Face's server says the hash


@pytest.fixture
def hub(server: Server) -> Server:
    server.files["/timm/densenet121.ra_in1k/resolve/main/model.safetensors"] = CONTENT
    server.headers |= {"X-Repo-Commit": "0" * 40, "X-Linked-Etag": f'"{DIGEST}"'}
    return server


def on(hub: Server) -> PublicWeights:
    """Published weights whose server this is."""
    published = describe("timm:densenet121.ra_in1k")
    return replace(published, url=published.url.replace("https://huggingface.co", hub.address))


def test_timms_file_is_fetched_through_the_hub(hub: Server, tmp_path: Path) -> None:
    path = fetch(on(hub), tmp_path)
    assert path == tmp_path / "timm-densenet121.ra_in1k.safetensors"
    assert path.read_bytes() == CONTENT
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.name}.sha256"}
    hub.files.clear()
    assert fetch(on(hub), tmp_path) == path


def test_timms_file_is_checked_whenever_it_is_used(hub: Server, tmp_path: Path) -> None:
    path = fetch(on(hub), tmp_path)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match=rf"has SHA-256 .*{DIGEST}.*Delete it"):
        fetch(on(hub), tmp_path)
    (tmp_path / f"{path.name}.sha256").unlink()  # as if it was put there by hand
    assert fetch(on(hub), tmp_path) == path


def change_content(server: Server) -> None:
    server.files = {name: content[::-1] for name, content in server.files.items()}


def say_no_hash(server: Server) -> None:
    server.headers["X-Linked-Etag"] = '"0123456789"'


def lose_the_file(server: Server) -> None:
    server.files.clear()


@pytest.mark.parametrize(
    "change, problem",
    [
        (change_content, f"has SHA-256 .*{DIGEST}"),
        (say_no_hash, "the server does not say the file's SHA-256"),
        (lose_the_file, "could not be fetched .*404"),
    ],
)
def test_what_the_hub_does_wrong_is_explained(
    hub: Server, tmp_path: Path, change: Callable[[Server], None], problem: str
) -> None:
    change(hub)
    with pytest.raises(CheckpointError, match=problem):
        fetch(on(hub), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- and the weights are theirs


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("legacy", [False, True], ids=["today's names", "published names"])
def test_logits_are_torchvisions(tmp_path: Path, name: str, legacy: bool) -> None:
    theirs = randomise(models.get_model(name, weights=None))
    state = theirs.state_dict()
    torch.save(legacy_names(state) if legacy else state, tmp_path / "weights.pth")
    ours = create_model(name, (3, 64, 64))
    report = checkpoint.load_weights(tmp_path / "weights.pth", ours)
    assert report and report.parameters == sum(p.numel() for p in theirs.parameters())
    assert bool(report.renamed) == bool(report.missing_counters) == legacy
    assert_same_logits(logits_of(ours), logits_of(theirs))


@pytest.mark.parametrize("name", [TIMM[0], "densenet161.tv_in1k"])
def test_logits_are_timms(tmp_path: Path, name: str) -> None:
    theirs = randomise(timm.create_model(name, pretrained=False))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = create_model(name.partition(".")[0], (3, 64, 64))
    report = checkpoint.load_weights(tmp_path / "model.safetensors", ours)
    assert not (report.renamed or report.missing_counters or report.prefix)
    assert_same_logits(logits_of(ours), logits_of(theirs))


def assert_same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert 0.1 < float(theirs.std()) < 100
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
