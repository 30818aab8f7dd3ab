"""What rules about pools check alike."""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.rewrite.graph import attribute, label
from densenet_deploy.rewrite.outcome import Refused


def check_unpadded(node: ir.Node) -> None:
    """Refuses a pool or convolution that may read beyond its input.

    Raises:
        Refused: It is padded, or rounds its output size up.
    """
    if any(attribute(node, "pads", ())):
        raise Refused(f"{label(node)} is padded")
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Refused(f"{label(node)} pads automatically")
    if attribute(node, "ceil_mode", 0):
        raise Refused(f"{label(node)} rounds its output size up")


def disjoint_window(pool: ir.Node) -> list[int]:
    """The kernel of an unpadded pool whose windows touch and do not overlap.

    Raises:
        Refused: They overlap, leave gaps or are padded.
    """
    check_unpadded(pool)
    kernel = list(attribute(pool, "kernel_shape", ()))
    strides = list(attribute(pool, "strides", [1] * len(kernel)))
    if strides != kernel:
        raise Refused(f"its kernel is {'x'.join(map(str, kernel))}, its stride is not")
    if any(size != 1 for size in attribute(pool, "dilations", ())):
        raise Refused("its kernel is dilated")
    return kernel
