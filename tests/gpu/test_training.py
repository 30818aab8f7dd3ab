"""Training on a device: skipped elsewhere, with the reason."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from densenet_deploy import _cuda, train
from densenet_deploy.batches import ImagesInMemory
from densenet_deploy.data import ImageSet
from densenet_deploy.distributed import join
from densenet_deploy.model import DenseNet, create_model
from densenet_deploy.preprocess import FASHION_MNIST
from densenet_deploy.train_config import TrainConfig

_REASON = _cuda.why_no_device() or ("" if torch.cuda.is_available() else "torch sees no GPU")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_REASON), reason=_REASON or "a GPU is here")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_network_learns_the_sample(
    tmp_path: Path, sample: tuple[ImageSet, ImageSet], precision: Any
) -> None:
    config = TrainConfig(epochs=8, batch_size=16, shift=1, precision=precision)
    model = create_model("densenet-bc-10-4", FASHION_MNIST.input_shape, seed=0)
    images = ImagesInMemory(sample[0], FASHION_MNIST)
    with join("cuda") as here:
        records = train.train(
            model, config, images, sample[1].take(300), FASHION_MNIST, tmp_path, processes=here
        )
    assert next(model.parameters()).device.type == "cuda"
    assert records[-1]["loss"] < 0.6 * records[0]["loss"]
    assert records[-1]["evaluation_top1"] > 50


def test_recomputing_changes_nothing_but_memory() -> None:
    naive = create_model("densenet-bc-40-12", seed=0).cuda().double()
    assert isinstance(naive, DenseNet)
    efficient = copy.deepcopy(naive)
    efficient.memory_efficient = True
    images = torch.randn(8, 3, 32, 32, dtype=torch.double, device="cuda")
    labels = torch.arange(8, device="cuda")
    peaks = []
    for network in (naive, efficient):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        functional.cross_entropy(network(images), labels).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    for one, other in zip(naive.parameters(), efficient.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-10)
    for (name, one), other in zip(naive.named_buffers(), efficient.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=name)
    assert peaks[1] < 0.6 * peaks[0], peaks


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_together(tmp_path: Path) -> None:
    """NCCL, BatchNorm over both, on the sample the package ships."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'name = "small"\n[model]\nvariant = "densenet-bc-10-4"\nweights = ""\n'
        '[data]\nname = "fashion-mnist"\n[train]\nepochs = 1\nsync_batchnorm = true\n'
    )
    command = [sys.executable, "-m", "densenet_deploy.cli.app", "train", recipe, "--out", tmp_path]
    done = subprocess.run(
        [*map(str, command), "--processes", "2", "--device", "cuda", "-q", "--json"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evaluation_top1"] > 50
