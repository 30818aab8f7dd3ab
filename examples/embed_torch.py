"""Torch tensors on the GPU through a TensorRT engine, without a copy.

    python examples/embed_torch.py BUNDLE [tensorrt|tensorrt-rtx]

An engine that does not fit this GPU is compiled anew from the bundle's graph.
"""

import sys

from densenet_deploy import open_bundle
from densenet_deploy.errors import BackendError, DeployError
from densenet_deploy.runtime import why_unavailable
from densenet_deploy.runtime.fallback import open_with_fallback


def main(path: str, backend: str = "tensorrt") -> None:
    if reason := why_unavailable(backend):
        raise BackendError(f"{backend} cannot run here: {reason}")
    bundle = open_bundle(path)
    source, result = bundle.manifest.input.name, bundle.manifest.output.name
    with open_with_fallback(bundle, backend, "fp16", fallback=("rebuild",)) as runner:
        import torch

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):  # all of it in the order of one stream
            images = torch.from_numpy(bundle.golden()[0]).cuda()
            logits = torch.empty((len(images), bundle.manifest.output.shape[1]), device="cuda")
            runner.run_device({source: images}, {result: logits}, stream.cuda_stream)
            classes = logits.argmax(dim=1).tolist()  # waits for the stream
    print("classes of the golden images:", *classes)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except DeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
