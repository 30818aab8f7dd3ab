"""Entry point: collects the commands and turns errors into one sentence and an exit code."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from densenet_deploy import __version__
from densenet_deploy.cli import (
    building,
    caching,
    evaluating,
    figuring,
    inform,
    inspecting,
    produce,
    suites,
    training,
    tuning,
    use,
)
from densenet_deploy.cli.show import fail
from densenet_deploy.errors import DeployError, MissingDependencyError

app = typer.Typer(
    help="DenseNet from training to verified, measured deployment on NVIDIA GPUs and CPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    produce.run,
    produce.export,
    produce.quantize,
    tuning.tune,
    building.build,
    use.verify,
    use.bench,
    inspecting.inspect,
    suites.suite,
    use.report,
    use.predict,
    training.train,
    evaluating.evaluate,
    inform.models,
):
    app.command()(command)
app.add_typer(caching.cache, name="cache")
app.add_typer(inform.doctor, name="doctor")
app.add_typer(figuring.figure, name="figure")

_EXTRAS = {
    "torch": "export",
    "torchvision": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "onnxruntime": "ort",
    "openvino": "openvino",
}


def _version(value: bool) -> None:
    if value:
        typer.echo(f"densenet-deploy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options of every command."""


def _warn(message: Warning | str, *_place: Any, **_more: Any) -> None:
    """A warning is a sentence: where in the code it came from tells a user nothing."""
    typer.echo(f"warning: {message}", err=True)


def main() -> None:
    """Runs the command line. Exit 0 pass, 1 failed check, 2 usage or bad input, 130 Ctrl-C."""
    warnings.showwarning = _warn
    try:
        app()
    except DeployError as error:
        fail(error)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        fail(MissingDependencyError.of(error.name or "", extra, "this command"))
        sys.exit(2)
    except OSError as error:  # a place that cannot be read or written, a full disk
        fail(DeployError(f"{error.filename or 'a file'}: {error.strerror or error}"))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
