"""PyCUDA arrays on the GPU through a TensorRT engine, without a copy.

    pip install 'densenet-deploy[pycuda]'
    python examples/embed_pycuda.py BUNDLE [tensorrt|tensorrt-rtx]

An engine that does not fit this GPU is compiled anew from the bundle's graph.
"""

import sys

import numpy as np

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
        # The runner lives in the primary context of the device: pycuda.autoinit would make another
        # one, whose memory the runner cannot read. Needs a GPU to be imported at all.
        import pycuda.autoprimaryctx  # noqa: F401
        from pycuda import driver, gpuarray

        images = gpuarray.to_gpu(bundle.golden()[0])
        logits = gpuarray.empty((len(images), bundle.manifest.output.shape[1]), np.float32)
        stream = driver.Stream()
        runner.run_device({source: images}, {result: logits}, stream.handle)
        stream.synchronize()
        classes = logits.get().argmax(axis=1)
    print("classes of the golden images:", *classes)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except DeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
