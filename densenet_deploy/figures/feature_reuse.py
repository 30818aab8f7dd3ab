"""Figure 5: how strongly the layers of a trained DenseNet use the feature maps of earlier layers.

Source: Huang et al., arXiv 1608.06993v5, section 5; which input channels belong to which layer as
its authors say in issue 26 of github.com/liuzhuang13/DenseNet. Only `read_weights` needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densenet_deploy.errors import CheckpointError
from densenet_deploy.figures.picture import Picture
from densenet_deploy.progress import Track, silent
from densenet_deploy.spec import DenseNetSpec, variant

Matrix = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]
SHIPPED = "fashion-mnist"
_PER_LINE = 4
_READING = (
    "A column is a layer (l, or what follows the block), a row a source of its input: 0 is what "
    "enters the block, s the k feature maps of its layer s. Cell: mean absolute weight of the "
    "convolution (with bottlenecks the 1x1 one; of the classifier, the linear weights) over the "
    "source's maps, scaled so that each column's least is 0 and its largest 1."
)


@dataclass(frozen=True)
class BlockReuse:
    """Who reads whom in one dense block.

    Attributes:
        block: Its number, from 1.
        targets: Names of the columns: each layer, then `transition` or `classifier`.
        mean_weights: (sources, targets) mean absolute weights; NaN where a target does not read
            a source.
        scaled: The same, each column scaled to 0..1.
    """

    block: int
    targets: tuple[str, ...]
    mean_weights: Matrix
    scaled: Matrix

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; null where a target does not read a source."""
        matrices = {"mean_absolute_weight": self.mean_weights, "scaled": self.scaled}
        return {
            "block": self.block,
            "targets": list(self.targets),
            **{name: _nullable(matrix) for name, matrix in matrices.items()},
        }


def by_source(weight: NDArray[Any], entering: int, growth_rate: int) -> Matrix:
    """Mean absolute weight of each source that a convolution or linear layer reads.

    Args:
        weight: (out, in, ...) weights; `in` is `entering` plus a multiple of `growth_rate`.
        entering: Feature maps that enter the block, source 0.
        growth_rate: Feature maps of each other source.
    """
    others = tuple(axis for axis in range(weight.ndim) if axis != 1)
    maps = np.abs(weight.astype(np.float64)).mean(axis=others)
    layers = maps[entering:].reshape(-1, growth_rate).mean(axis=1)
    return np.concatenate([[maps[:entering].mean()], layers])


def scale_columns(matrix: Matrix) -> Matrix:
    """Scales each column's numbers so that its least is 0 and its largest 1.

    A column of one number, or of equal ones, becomes 1, as the paper's first column is.
    """
    least, largest = np.nanmin(matrix, axis=0), np.nanmax(matrix, axis=0)
    span = largest - least
    scaled = (matrix - least) / np.where(span > 0, span, 1)
    flat = np.where(np.isnan(matrix), np.nan, 1.0)
    return np.where(span > 0, scaled, flat)


def measure(spec: DenseNetSpec, weights: Weights) -> list[BlockReuse]:
    """Feature reuse in every dense block.

    Args:
        spec: The architecture.
        weights: Its parameters by torchvision's names.
    """
    return [_block(spec, weights, block) for block in range(len(spec.block_layers))]


def _block(spec: DenseNetSpec, weights: Weights, block: int) -> BlockReuse:
    layers, (entering, _) = spec.block_layers[block], spec.block_channels()[block]
    prefix = f"features.denseblock{block + 1}.denselayer"
    names = [f"{prefix}{layer + 1}.conv1.weight" for layer in range(layers)]
    last = block + 1 == len(spec.block_layers)
    names.append("classifier.weight" if last else f"features.transition{block + 1}.conv.weight")
    matrix = np.full((layers + 1, layers + 1), np.nan)
    for column, name in enumerate(names):
        read = by_source(weights[name], entering, spec.growth_rate)
        matrix[: len(read), column] = read
    targets = (*map(str, range(1, layers + 1)), "classifier" if last else "transition")
    return BlockReuse(block + 1, targets, matrix, scale_columns(matrix))


def read_weights(
    checkpoint: str,
    model: str = "",
    classes: int | None = None,
    channels: int | None = None,
    track: Track = silent,
) -> tuple[DenseNetSpec, Weights, Path]:
    """A DenseNet's architecture and weights.

    Args:
        checkpoint: Name of shipped or published weights, a file, or a directory with a
            model.safetensors.
        model: The architecture, where the file does not say it.
        classes: Its number of classes, where it is not the architecture's.
        channels: Likewise of an image.
        track: Progress reporter, of a download.

    Returns:
        The architecture, the parameters by name, and the file.

    Raises:
        CheckpointError: A damaged file, an unknown architecture, or not a DenseNet.
        RecipeError: There is no such architecture.
    """
    from densenet_deploy import checkpoint as checkpoints
    from densenet_deploy import public_weights
    from densenet_deploy.model import DenseNet
    from densenet_deploy.source import weights_path

    if public_weights.is_public(checkpoint):
        published = public_weights.describe(checkpoint, model)
        path, model = public_weights.fetch(published, track=track), published.model
    else:
        path = weights_path(checkpoint)
        path = path / "model.safetensors" if path.is_dir() else path
    info = checkpoints.read_info(path)
    if info is None and not model:
        raise CheckpointError(
            f"{path} does not say which architecture it belongs to", remedy="name it with --model"
        )
    spec = info.spec if info and not model else variant(model)
    if not isinstance(spec, DenseNetSpec):
        raise CheckpointError(f"{path} holds a {spec.name}", expected="a DenseNet")
    entering, *size = (info.spec if info else spec).input_shape
    known = info.spec.classes if info else spec.classes
    shape = (channels or entering, size[0], size[1])
    spec = replace(spec, input_shape=shape, classes=classes or known)
    network = DenseNet(spec)
    checkpoints.load_weights(path, network)
    weights = {name: value.detach().numpy() for name, value in network.named_parameters()}
    damaged = [name for name, value in weights.items() if not np.isfinite(value).all()]
    if damaged:
        raise CheckpointError(f"{path}: {damaged[0]} is not finite", expected="trained weights")
    return spec, weights, path


def feature_reuse(
    checkpoint: str = SHIPPED,
    model: str = "",
    classes: int | None = None,
    channels: int | None = None,
    track: Track = silent,
) -> tuple[Picture, Path]:
    """Figure 5 of a checkpoint, and the file that was read; arguments as of `read_weights`.

    Raises:
        CheckpointError: See `read_weights`.
        RecipeError: See `read_weights`.
    """
    spec, weights, path = read_weights(checkpoint, model, classes, channels, track)
    blocks = measure(spec, weights)
    columns = min(len(blocks), _PER_LINE)
    lines = math.ceil(len(blocks) / columns)
    picture = Picture(
        name="feature-reuse",
        title=f"Figure 5: feature reuse in {spec.name}, weights of {path.name}",
        caption=f"Computed here from {path.name}, as in Figure 5 of arXiv 1608.06993v5. {_READING}",
        data={
            "model": spec.name,
            "weights": path.name,
            "growth_rate": spec.growth_rate,
            "entering": [entering for entering, _ in spec.block_channels()],
            "blocks": [block.to_dict() for block in blocks],
        },
        header=("block", "model", "least used", "mean |w|", "most used", "mean |w|"),
        lines=[_cells(block, target) for block in blocks for target in range(len(block.targets))],
        size=(4.1 * columns + 0.6, 4.3 * lines + 0.9),
        draw=lambda figure: _draw(figure, blocks, (lines, columns)),
    )
    return picture, path


def _cells(block: BlockReuse, target: int) -> tuple[str, ...]:
    column = block.mean_weights[:, target]
    least, most = int(np.nanargmin(column)), int(np.nanargmax(column))
    name = block.targets[target]
    reader = f"layer {name}" if name.isdigit() else name
    numbers = (str(least), f"{column[least]:.3g}", str(most), f"{column[most]:.3g}")
    return (str(block.block), reader, *numbers)


def _nullable(matrix: Matrix) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()]


def _draw(figure: Any, blocks: Sequence[BlockReuse], grid: tuple[int, int]) -> None:
    panels = figure.subplots(*grid, squeeze=False).flatten()
    for axes, block in zip(panels, blocks, strict=False):
        image = axes.imshow(block.scaled, cmap="viridis", vmin=0, vmax=1)
        last = len(block.targets) - 1
        step = max(1, math.ceil(last / 12))
        shown = [*range(0, last - step // 2, step), last]
        axes.set_xticks(shown, [block.targets[index] for index in shown], fontsize=8)
        axes.get_xticklabels()[-1].set(rotation=30, ha="right", rotation_mode="anchor")
        rows = range(0, last + 1, step)
        axes.set_yticks(rows, list(map(str, rows)), fontsize=8)
        axes.set_title(f"dense block {block.block}", fontsize=10)
        axes.set_xlabel("target layer l")
    for axes in panels[:: grid[1]]:
        axes.set_ylabel("source layer s (0: block input)")
    for axes in panels[len(blocks) :]:
        axes.set_axis_off()
    label = "mean |weight|, scaled to 0..1 in each column"
    figure.colorbar(image, ax=list(panels), label=label, shrink=0.85)
