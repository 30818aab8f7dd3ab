"""The proof that a rewritten graph computes what the plain one does, in numbers.

In double precision rounding is 1e-16, so what a wrong rewrite changes cannot hide in it; in fp32
on ONNX Runtime the whole image and the rounded weights are tested.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from densenet_deploy.errors import GraphError
from densenet_deploy.runtime import open_graph

DOUBLE_BOUND, SINGLE_BOUND = 1e-12, 1e-5
Array = NDArray[Any]


@dataclass(frozen=True)
class Certificate:
    """Largest difference of the logits, relative to the largest magnitude; true if within bound.

    Attributes:
        arithmetic: In which precision, and on what, both graphs ran.
        images: What they ran on.
        difference: Found.
        bound: Allowed.
    """

    arithmetic: str
    images: str
    difference: float
    bound: float

    def __bool__(self) -> bool:
        return self.difference <= self.bound  # not where it is NaN

    def summary(self) -> str:
        """One line for people."""
        verdict, sign = ("equal", "<=") if self else ("NOT EQUAL", ">")
        found = f"{self.difference:.1e} {sign} {self.bound:.0e}"
        return f"{verdict}: {found} in {self.arithmetic}, {self.images}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; null for a difference that is not finite."""
        finite = self.difference if math.isfinite(self.difference) else None
        return {**vars(self), "difference": finite, "passed": bool(self)}


def relative_difference(found: Array, reference: Array) -> float:
    """Largest difference over the largest magnitude of the reference; NaN where one is."""
    if not np.isfinite(found).all() or not np.isfinite(reference).all():
        return math.nan
    largest = float(np.abs(reference).max())
    different = float(np.abs(found - reference).max())
    return different / largest if largest else (0.0 if different == 0 else math.inf)


def as_double(model: ir.Model) -> ir.Model:
    """A copy of an fp32 graph in double precision.

    Raises:
        GraphError: An operator of the graph has no double precision.
    """
    proto = ir.to_proto(model)
    tensors = [a.t for node in proto.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in (*tensors, *proto.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del proto.graph.value_info[:]  # what lies between follows from these
    try:
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=True
        )
    except onnx.shape_inference.InferenceError as error:
        reason = str(error)[:200]
        raise GraphError(f"the graph does not run in double precision: {reason}") from None
    model = ir.from_proto(inferred)
    return model


def logits_in_double(model: ir.Model, images: Array) -> Array:
    """Logits (N, classes) by ONNX's own numpy implementation, of a graph as from `as_double`."""
    from onnx.reference import ReferenceEvaluator

    feeds = {model.graph.inputs[0].name: images.astype(np.float64)}
    return np.asarray(ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0])


def logits_in_single(model: bytes, images: Array) -> Array:
    """Logits (N, classes) of a serialized graph on ONNX Runtime's CPU kernels, on one thread.

    Raises:
        BackendError: It is not installed, or refuses the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(model)
        return np.asarray(open_graph(path, "onnxruntime", threads=1)(images))
