"""Errors a user can meet: one shallow tree, each says what was found, expected and to be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class DeployError(Exception):
    """Base of all errors raised on bad input or a missing capability.

    Attributes:
        exit_code: What the command line exits with.

    Args:
        found: What was found, as a clause that can start a sentence.
        expected: What would have been right.
        remedy: What the reader can do about it, as an imperative.
    """

    exit_code = 2

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found, self.expected, self.remedy = found, expected, remedy
        message = found
        if expected:
            message += f"; expected {expected}"
        if remedy:
            message += f". {remedy[0].upper()}{remedy[1:]}"
        super().__init__(message + ("" if message.endswith((".", "\n")) else "."))

    @classmethod
    def collect(cls, subject: str, problems: Sequence[str]) -> Self:
        """One error that reports several problems of the same subject together."""
        if len(problems) == 1:
            return cls(f"{subject}: {problems[0]}")
        listed = "".join(f"\n  - {problem}" for problem in problems)
        return cls(f"{subject}: {len(problems)} problems{listed}\n")


class RecipeError(DeployError):
    """A recipe, suite or option is not what its schema says."""


class DataError(DeployError):
    """An image or data set is missing or malformed."""


class CheckpointError(DeployError):
    """A weights file is missing, damaged or belongs to another architecture."""


class TrainingError(DeployError):
    """A training cannot go on: a process is lost, or the numbers are."""


class GraphError(DeployError):
    """An ONNX file cannot be read, or a graph lacks what a stage needs."""


class BuildError(DeployError):
    """An engine could not be built; carries the end of the builder's own log."""


class BundleError(DeployError):
    """A bundle is damaged, tampered with or of another schema version."""


class BackendError(DeployError):
    """A backend cannot run here, or refused a model or an input."""


class MissingDependencyError(DeployError):
    """An optional dependency is needed for what was asked."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> Self:
        """`package`, which the extra `extra` installs, is needed for `purpose`."""
        return cls(
            f"{purpose} needs {package}, which is not installed",
            remedy=f"install it with: pip install 'densenet-deploy[{extra}]'",
        )


class CheckFailedError(DeployError):
    """An artefact works but does not meet its acceptance contract."""

    exit_code = 1
