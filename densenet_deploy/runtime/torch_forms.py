"""The forms in which PyTorch runs a checkpoint. Data alone: serving hosts have no torch.

In half precision a form autocasts: PyTorch runs the checkpoint, not the bundle's fp16 graph.
"""

from __future__ import annotations

from dataclasses import dataclass

from densenet_deploy.recipe import Precision

CUDA_GRAPH = "reduce-overhead"  # the mode of torch.compile that captures each batch size


@dataclass(frozen=True)
class Form:
    """One way to run.

    Attributes:
        device: PyTorch's name for it.
        channels_last: Keep weights and activations as NHWC in memory.
        compile: Mode of torch.compile; empty for eager.
        precisions: That it has.
    """

    device: str
    channels_last: bool = False
    compile: str = ""
    precisions: tuple[Precision, ...] = ("fp32", "fp16")


FORMS = {
    "pytorch": Form("cpu", precisions=("fp32",)),  # the reference of all others
    "pytorch-cuda": Form("cuda"),
    "pytorch-cuda-channels-last": Form("cuda", channels_last=True),
    "pytorch-cuda-compile": Form("cuda", channels_last=True, compile=CUDA_GRAPH),
}
