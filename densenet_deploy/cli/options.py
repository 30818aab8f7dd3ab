"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from densenet_deploy.errors import RecipeError
from densenet_deploy.progress import Track, bar, silent
from densenet_deploy.recipe import PRECISIONS, DataConfig, DataName, Precision

DEFAULT_RECIPE = "fashion-mnist"
RecipeArgument = Annotated[str, typer.Argument(help="Recipe name or .toml file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
DataDirectory = Annotated[
    str,
    typer.Option(
        "--data-dir",
        metavar="DIRECTORY",
        help="Directory of the data set (default: its usual places).",
    ),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache", help="Compile anew; neither use nor fill any cache, kernel times included."
    ),
]
Full = Annotated[
    bool, typer.Option("--full", help="Use the whole data set, not the sample that is shipped.")
]


Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        metavar="<fp32|fp16|int8>",
        help="Only this one; repeatable (default: all there are).",
    ),
]


def precisions(names: list[str] | None) -> tuple[Precision, ...]:
    """Checked `--precision` values; empty where none were given.

    Raises:
        RecipeError: Not a precision.
    """
    for name in names or ():
        if name not in PRECISIONS:
            raise RecipeError(f"--precision {name!r}", expected=f"one of {', '.join(PRECISIONS)}")
    return tuple(names or ())  # type: ignore[arg-type]


Architecture = Annotated[
    str, typer.Option("--model", help="Architecture, see `densenet-deploy models`.")
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        help="Checkpoint: .safetensors, a torch state dict, or a published name such as "
        "torchvision:IMAGENET1K_V1 or timm:densenet121.ra_in1k.",
    ),
]


def tracker(quiet: bool) -> Track:
    """The progress reporter a command passes on."""
    return silent if quiet else bar


def integers(text: str, option: str, count: int | None = None) -> tuple[int, ...]:
    """`1,8,64` as integers.

    Raises:
        RecipeError: Not integers, or not `count` of them.
    """
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or (count and len(values) != count):
        wanted = f"{count} integers" if count else "integers"
        raise RecipeError(f"{option} {text!r}", expected=f"{wanted} separated by commas")
    return values


def batch_bounds(text: str) -> tuple[int, int, int]:
    """`MIN,OPT,MAX` as three integers."""
    low, best, high = integers(text, "--batch", 3)
    return low, best, high


def whole(data: DataConfig, full: bool, directory: str) -> DataConfig:
    """`--full` and `--data-dir` applied to a recipe's data set."""
    if not (full or directory):
        return data
    test_images = 0 if full else data.test_images
    directory = directory or data.directory
    return replace(data, sample=False, directory=directory, test_images=test_images)


def data_config(name: DataName | None, directory: str) -> DataConfig | None:
    """`--data` and `--data-dir` together; None where neither was given.

    Raises:
        RecipeError: A directory without a data set's name.
    """
    if name is None and directory:
        raise RecipeError(
            f"--data-dir {directory} without --data", remedy="name the data set, such as folder"
        )
    return None if name is None else DataConfig(name=name, directory=directory)


def checked(change: Any) -> Any:
    """Runs `change`, and reports a value a config dataclass refuses as a usage error."""
    try:
        return change()
    except ValueError as error:
        raise RecipeError(str(error)) from None


def default_out(name: str) -> Path:
    """Where a command writes when it is not told."""
    return Path("work") / name
