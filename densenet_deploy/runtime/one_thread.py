"""Runs a function on one thread of its own, whoever calls it.

CUDA graphs belong to the thread that captured them, in ONNX Runtime as in torch.compile: another
thread would capture its own, or fail. One thread also means one request at a time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import BackendError
from densenet_deploy.runtime.runner import Array, Infer


def check_contexts(config: RunConfig, backend: str) -> None:
    """Refuses a backend on one thread several requests at once.

    Raises:
        BackendError: They are asked for.
    """
    if config.contexts != 1:
        raise BackendError(
            f"{backend} cannot run {config.contexts} requests at once", expected="contexts = 1"
        )


class OneThread:
    """An `Infer` that calls another one on its own thread, and waits.

    Args:
        infer: Called on that thread alone.
    """

    def __init__(self, infer: Infer) -> None:
        self._infer = infer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="densenet-deploy-runner")

    def __call__(self, images: Array) -> Array:
        logits: Array = self._thread.submit(self._infer, images).result()
        return logits

    def close(self) -> None:
        """Waits for what runs and ends the thread; later calls raise RuntimeError."""
        self._thread.shutdown()
