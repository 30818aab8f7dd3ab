"""Recipes: one TOML file is one deployable artefact and its acceptance contract.

Every stage's configuration is a frozen dataclass, here or (of engines and of training) in
`engine_config` and `train_config`; a stage sees its own and nothing else.
Values are checked once, when the file is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from densenet_deploy import schema
from densenet_deploy.engine_config import BuildConfig, check_batch
from densenet_deploy.errors import RecipeError
from densenet_deploy.train_config import TrainConfig

Precision = Literal["fp32", "fp16", "int8"]
DataName = Literal["fashion-mnist", "cifar10", "cifar100", "svhn", "folder", "synthetic"]
Target = Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]
CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]
ConcatPolicy = Literal["equalized", "shared", "per-producer", "after-bn-relu"]
Policy = Literal["auto", ConcatPolicy]
WeightScales = Literal["per-channel", "per-channel-mul", "per-tensor"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TARGETS: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx", "onnxruntime", "openvino")
CPU_TARGETS: tuple[Target, ...] = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class ModelConfig:
    """Which network, with which weights.

    Attributes:
        variant: Architecture name, see `densenet-deploy models`.
        input_shape: (channels, height, width).
        classes: Number of classes.
        weights: Name of a shipped checkpoint or of published weights (`torchvision:IMAGENET1K_V1`),
            a path, or empty for seeded random weights.
        seed: Seed of the random weights.
    """

    variant: str = "densenet-bc-40-12"
    input_shape: tuple[int, int, int] = (1, 28, 28)
    classes: int = 10
    weights: str = ""
    seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """Which images calibrate, test and train.

    Attributes:
        name: Data set; `synthetic` is seeded noise, for speed only.
        directory: Where the data set lies; empty searches its usual places.
        sample: Calibrate and test on the sample the package ships (Fashion-MNIST only); training
            always reads the whole data set.
        test_images: Test images to read; 0 for all.
        train_images: Training images to use, always the same ones, drawn at random; 0 for all.
        interpolation: Of image files, where they are resized.
    """

    name: DataName = "fashion-mnist"
    directory: str = ""
    sample: bool = True
    test_images: int = 0
    train_images: int = 0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if min(self.test_images, self.train_images) < 0:
            raise ValueError("test_images and train_images must not be negative")


@dataclass(frozen=True)
class ExportConfig:
    """How the ONNX graph is made.

    Attributes:
        target: What the graphs are lowered for.
        also: Targets that get graphs of their own beside them.
        batch: (min, opt, max) batch size the artefact promises.
        opset: ONNX opset version, 20 or newer.
        fuse: Apply the exact rewrites.
    """

    target: Target = "tensorrt"
    also: tuple[Target, ...] = ()
    batch: tuple[int, int, int] = (1, 8, 64)
    opset: int = 20
    fuse: bool = True

    def __post_init__(self) -> None:
        check_batch(self.batch)
        if self.target in self.also or len(set(self.also)) < len(self.also):
            raise ValueError("also must name other targets than target, each once")
        if self.opset < 20:
            raise ValueError(f"opset {self.opset} must be 20 or newer")


@dataclass(frozen=True)
class QuantizeConfig:
    """How INT8 is made.

    Attributes:
        images: Training images that calibrate.
        seed: Draws them from the training images.
        batch_size: Images per calibration step.
        method: How much of the observed values a range covers.
        percentile: For that method: the share of values below the upper end, in percent.
        policy: Scales of a dense block's concatenation. `equalized`: one, after an exact rewrite
            has given all channels the same range; `shared`: one as it is; `per-producer`: one for
            each value written into it; `after-bn-relu`: it stays in floating point; `auto`: the
            fastest within the budget.
        weights: Scales of a weight; empty for what serves the target.
        bias_correction: Let biases absorb the mean error of rounded weights.
        keep_float: Convolutions that stay in floating point: names, or the modules they are in.
        budget: Share of selection images whose top-1 class may change, in percent, for `auto`.
    """

    images: int = 512
    seed: int = 0
    batch_size: int = 64
    method: CalibrationMethod = "mse"
    percentile: float = 99.99
    policy: Policy = "equalized"
    weights: Literal["", WeightScales] = ""
    bias_correction: bool = True
    keep_float: tuple[str, ...] = ()
    budget: float = 0.5

    def __post_init__(self) -> None:
        if self.images < 0 or self.batch_size < 1 or self.seed < 0:
            raise ValueError("images and seed must not be negative and batch_size must be positive")
        if not 50 < self.percentile <= 100 or not 0 <= self.budget <= 100:
            raise ValueError("percentile must be in (50, 100] and budget in [0, 100]")


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost against PyTorch fp32 on the same images.

    Attributes:
        top1_drop: Largest allowed loss of top-1 accuracy, in percentage points.
        agreement: Least share of images with the same top-1 class, in percent.
        max_abs: Largest absolute logit difference; 0 to not check.
        cosine: Least cosine similarity of all logits.
    """

    top1_drop: float = 0.5
    agreement: float = 98.0
    max_abs: float = 0.0
    cosine: float = 0.99


def _tolerances() -> dict[str, Tolerance]:
    return {
        "fp32": Tolerance(top1_drop=0.0, agreement=100.0, max_abs=1e-3, cosine=0.999999),
        "fp16": Tolerance(top1_drop=0.2, agreement=99.5, max_abs=0.25, cosine=0.9999),
        "int8": Tolerance(top1_drop=0.5, agreement=98.0, cosine=0.99),
    }


@dataclass(frozen=True)
class VerifyConfig:
    """The acceptance contract: a tolerance for each precision.

    A precision that is left out keeps its default tolerance.
    """

    tolerances: dict[str, Tolerance] = field(default_factory=_tolerances)

    def __post_init__(self) -> None:
        unknown = self.tolerances.keys() - set(PRECISIONS)
        if unknown:
            raise ValueError(f"unknown precision {', '.join(sorted(unknown))} in tolerances")
        object.__setattr__(self, "tolerances", _tolerances() | self.tolerances)


@dataclass(frozen=True)
class BenchConfig:
    """What is timed.

    Attributes:
        batch_sizes: Images per request.
        seconds: Duration of each timed run after warm-up.
        threads: CPU threads of each backend; 0 for all cores.
    """

    batch_sizes: tuple[int, ...] = (1, 8)
    seconds: float = 2.0
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError("batch_sizes must be positive, and at least one")
        if not 0 < self.seconds < math.inf:
            raise ValueError("seconds must be positive and finite")
        if self.threads < 0:
            raise ValueError("threads must not be negative")


@dataclass(frozen=True)
class Recipe:
    """One deployable artefact."""

    name: str
    description: str = ""
    precisions: tuple[Precision, ...] = PRECISIONS
    model: ModelConfig = ModelConfig(weights="fashion-mnist")  # the shipped one
    data: DataConfig = DataConfig()
    train: TrainConfig = field(default_factory=TrainConfig)
    export: ExportConfig = ExportConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    build: BuildConfig = field(default_factory=BuildConfig)
    verify: VerifyConfig = VerifyConfig()
    bench: BenchConfig = BenchConfig()

    def __post_init__(self) -> None:
        if not self.precisions:
            raise ValueError("precisions must name at least one of fp32, fp16, int8")
        (low, high), (least, _, most) = self.build.batch, self.export.batch
        if low < least or high > most:
            raise ValueError(f"build.profiles {low}..{high} exceed export.batch {least}..{most}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 over all values: equal recipes have equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def recipe_folder() -> Path:
    """Folder of the shipped recipes, in a wheel or in a checkout."""
    package = Path(__file__).parent
    installed = package / "data_files" / "export"
    return installed if installed.is_dir() else package.parent / "export"


def load_recipe(name: str) -> Recipe:
    """Reads a recipe by name (from export/) or by path.

    Raises:
        RecipeError: No such recipe, not TOML, or a key or value the schema does not have.
    """
    table, path = schema.load_table(name, recipe_folder(), "recipe")
    return parse_recipe(table, path.name)


def parse_recipe(table: dict[str, Any], source: str) -> Recipe:
    """Checks a decoded recipe.

    Raises:
        RecipeError: Names every unknown key, missing key and wrong value at once.
    """
    problems: list[str] = []
    recipe = schema.read(Recipe, table, "", problems)
    if recipe is None:
        raise RecipeError.collect(source, problems)
    return recipe
