"""PyTorch eager in fp32: the reference the other backends are compared with."""

from __future__ import annotations

import torch

from densenet_deploy import checkpoint
from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BundleError
from densenet_deploy.model import DenseNet
from densenet_deploy.recipe import Precision, RunConfig
from densenet_deploy.runtime.runner import Array, Runner


def open_model(
    bundle: Bundle, backend: str, precision: Precision, threads: int, config: RunConfig
) -> Runner:
    """Loads the checkpoint; see `densenet_deploy.runtime.open_runner`."""
    path = bundle.file(bundle.manifest.weights)
    info = checkpoint.read_info(path)
    if info is None:
        raise BundleError(f"{path} does not say which architecture it belongs to")
    model = DenseNet(info.spec)
    checkpoint.load_weights(path, model)
    model.eval()
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def infer(images: Array) -> Array:
        return model(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return Runner(bundle, backend, precision, infer, lambda: torch.set_num_threads(before))
