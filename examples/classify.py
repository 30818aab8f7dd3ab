"""Classifies image files on the CPU: python examples/classify.py BUNDLE IMAGE...

Needs neither torch nor onnx: pip install 'densenet-deploy[ort]'
"""

import sys
from pathlib import Path

import numpy as np

from densenet_deploy import open_bundle, open_runner
from densenet_deploy.errors import DeployError


def main(path: str, *files: str) -> None:
    bundle = open_bundle(path)  # verifies every hash
    preprocessing, labels = bundle.manifest.preprocessing, bundle.manifest.labels
    pixels = np.stack([preprocessing.read(Path(file)) for file in files])
    images = preprocessing.normalise(pixels)  # float32 (N, C, H, W)
    with open_runner(bundle, "onnxruntime", "int8") as runner:
        logits = runner.logits(images)  # float32 (N, classes)
    for file, best in zip(files, logits.argmax(axis=1), strict=True):
        print(f"{file}: {labels[best]}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except DeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
