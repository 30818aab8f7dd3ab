"""PyTorch: the fp32 reference the other backends are compared with, and their rivals on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from densenet_deploy import checkpoint
from densenet_deploy.bundle import Bundle
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError, BundleError
from densenet_deploy.model import Network, build_network
from densenet_deploy.recipe import Precision
from densenet_deploy.runtime.one_thread import OneThread, check_contexts
from densenet_deploy.runtime.runner import Array, Infer, Runner
from densenet_deploy.runtime.torch_forms import CUDA_GRAPH, FORMS, Form


def open_model(
    bundle: Bundle, backend: str, precision: Precision, threads: int, config: RunConfig
) -> Runner:
    """Loads the checkpoint; see `densenet_deploy.runtime.open_runner`."""
    form = FORMS[backend]
    cuda_graph = form.compile == CUDA_GRAPH and config.cuda_graph
    if form.compile:
        check_contexts(config, backend)
        form = form if cuda_graph else replace(form, compile="default")
    device = _device(form, config, backend)
    model = _load(bundle)
    with ExitStack() as stack:  # undone here on an error, else when the runner closes
        _set_threads(threads, stack)
        if device.type == "cuda":
            _compute_exactly(stack)
        infer = forward(model, form, device, half=precision == "fp16")
        if form.compile:  # its CUDA graphs belong to one thread
            alone = OneThread(infer)
            stack.callback(alone.close)
            infer = alone
        release = stack.pop_all().close
        return Runner(bundle, backend, precision, infer, release, cuda_graph=cuda_graph)


def forward(model: torch.nn.Module, form: Form, device: torch.device, half: bool) -> Infer:
    """A function from normalised images to logits, which waits for the device.

    Args:
        model: In evaluation mode; it is moved.
        form: How it runs.
        device: Where.
        half: Autocast to float16.
    """
    layout = torch.channels_last if form.channels_last else torch.contiguous_format
    model = model.to(device=device).to(memory_format=layout)
    run: Callable[..., Any] = model
    if form.compile:
        # Each batch size is compiled for itself, and fullgraph makes too many of them an error
        # where torch would go on without compiling.
        run = torch.compile(_own_code(model), mode=form.compile, dynamic=False, fullgraph=True)

    @torch.inference_mode()
    def infer(images: Array) -> Array:
        batch = torch.from_numpy(images).to(device).contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.float16, enabled=half):
            logits = run(batch)
        # A CUDA graph writes its next answer into the same memory: `cpu` copies and waits.
        return logits.float().cpu().numpy()  # type: ignore[no-any-return]

    return infer


def _own_code(model: torch.nn.Module) -> Callable[..., Any]:
    """The model as a function with a code object of its own.

    torch counts what it has compiled by code object, and would take all runners of a process for
    one: the shapes of the first would be too many for the second.
    """

    def run(batch: torch.Tensor) -> Any:
        return model(batch)

    run.__code__ = run.__code__.replace()
    return run


def _device(form: Form, config: RunConfig, backend: str) -> torch.device:
    if form.device != "cuda":
        return torch.device(form.device)
    if not torch.cuda.is_available():
        raise BackendError(
            f"PyTorch {torch.__version__} for CUDA {torch.version.cuda} finds no device",
            expected="a build of torch that fits the driver",
        )
    if config.device >= torch.cuda.device_count():
        raise BackendError(
            f"device {config.device}", expected=f"less than {torch.cuda.device_count()}"
        )
    return torch.device("cuda", config.device)


def _load(bundle: Bundle) -> Network:
    path = bundle.file(bundle.manifest.weights)
    info = checkpoint.read_info(path)
    if info is None:
        raise BundleError(f"{path} does not say which architecture it belongs to")
    model = build_network(info.spec)
    checkpoint.load_weights(path, model)
    return model.eval()


def _set_threads(threads: int, stack: ExitStack) -> None:
    before = torch.get_num_threads()
    stack.callback(torch.set_num_threads, before)
    if threads:
        torch.set_num_threads(threads)


def _compute_exactly(stack: ExitStack) -> None:
    """No TF32, which convolutions use by default; of the exact algorithms the fastest."""
    backends = torch.backends
    for module, name, value in (
        (backends.cudnn, "allow_tf32", False),
        (backends.cuda.matmul, "allow_tf32", False),
        (backends.cudnn, "benchmark", True),
    ):
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)
