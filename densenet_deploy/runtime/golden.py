"""Does a loaded engine still answer as the bundle promises?"""

from __future__ import annotations

import numpy as np

from densenet_deploy import schema
from densenet_deploy.bundle import Bundle
from densenet_deploy.errors import BackendError
from densenet_deploy.recipe import VerifyConfig
from densenet_deploy.runtime.runner import Runner


def check_golden(runner: Runner, bundle: Bundle, what: str) -> None:
    """Runs the bundle's golden input and holds the output against its recipe's tolerance.

    Args:
        runner: Of that bundle.
        bundle: Has the golden input and PyTorch's fp32 logits of it.
        what: What has just been done to the runner, as a clause.

    Raises:
        BackendError: The logits are farther from PyTorch's than the recipe allows.
    """
    problems: list[str] = []
    contract = schema.read(VerifyConfig, bundle.manifest.recipe.get("verify", {}), "", problems)
    if contract is None:
        raise BackendError.collect("the manifest's recipe has no readable tolerances", problems)
    tolerance = contract.tolerances[runner.precision]
    images, expected = bundle.golden()
    found = runner.logits(images)
    agreement = 100 * float((found.argmax(1) == expected.argmax(1)).mean())
    cosine = float(np.vdot(found, expected) / np.linalg.norm(found) / np.linalg.norm(expected))
    distance = float(np.abs(found - expected).max())
    if not agreement >= tolerance.agreement:
        problems.append(f"agreement {agreement:.2f} %, required {tolerance.agreement} %")
    if not cosine >= tolerance.cosine:
        problems.append(f"cosine {cosine:.6f}, required {tolerance.cosine}")
    if tolerance.max_abs and not distance <= tolerance.max_abs:
        problems.append(f"max |d logit| {distance:.3g}, allowed {tolerance.max_abs}")
    if problems:
        subject = f"{what}, and its answers to the golden input are not the bundle's"
        raise BackendError.collect(subject, problems)
