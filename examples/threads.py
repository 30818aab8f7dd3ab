"""Several threads over one runner: python examples/threads.py BUNDLE [BACKEND]

A runner may be called from any thread. On a GPU `contexts` says how many requests run at once,
each on a stream of its own; a CPU backend needs no such setting.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from densenet_deploy import open_bundle, open_runner
from densenet_deploy.engine_config import RunConfig
from densenet_deploy.errors import DeployError


def main(path: str, backend: str = "onnxruntime") -> None:
    bundle = open_bundle(path)
    images = bundle.manifest.preprocessing.normalise(bundle.sample_pixels())
    config = RunConfig(contexts=2)
    with open_runner(bundle, backend, "int8", config=config) as runner:
        requests = [images[row : row + 1] for row in range(len(images))]
        with ThreadPoolExecutor(max_workers=4) as pool:
            answers = np.concatenate(list(pool.map(runner.logits, requests)))
    for name, best in zip(bundle.manifest.samples, answers.argmax(axis=1), strict=True):
        print(f"{name}: {bundle.manifest.labels[best]}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except DeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
