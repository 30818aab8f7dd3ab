"""TensorRT over ONNX Runtime and a simulated GPU, by the real names: what loads a plan.

plan = make_plan(onnx_bytes, profiles)                 # what a builder would have made
sys.modules["tensorrt"] = bindings(surface, Cuda())    # whatever the real one lacks, it lacks
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.bindings.checked import checked_module
from tests.simulated_cuda import answers
from tests.simulated_engine import ICudaEngine

MAGIC = b"simulated plan "


def make_plan(
    graph: bytes, profiles, weights="embedded", dtype="FLOAT", names=(), host_code=False
) -> bytes:
    """A plan.

    Args:
        graph: ONNX.
        profiles: (min, opt, max) of each.
        weights: As in a build configuration.
        dtype: Of input and output.
        names: Weights that a refit has to find in the graph it is given.
        host_code: It brings a runtime of its own, as version compatible plans do.
    """
    header = {"profiles": profiles, "weights": weights, "dtype": dtype, "names": list(names)}
    header["host_code"] = host_code
    return MAGIC + json.dumps(header).encode() + b"\n" + graph


def bindings(surface, cuda):
    """The module, for `sys.modules`."""
    classes = [Runtime, Refitter, OnnxParserRefitter]
    bound = {"_cuda": cuda, "_surface": surface}
    return checked_module(surface, [type(cls.__name__, (cls,), bound) for cls in classes])


class Runtime:
    def __init__(self, logger):
        self._logger = logger
        self.engine_host_code_allowed = False

    @answers(None)
    def deserialize_cuda_engine(self, serialized_engine):
        if serialized_engine.startswith(MAGIC):
            first, _, graph = serialized_engine.removeprefix(MAGIC).partition(b"\n")
            header = json.loads(first)
            if not header.pop("host_code") or self.engine_host_code_allowed:
                return ICudaEngine(self, graph, **header)
        severity = self._surface.enum("ILogger.Severity").ERROR
        self._logger.log(severity, "magicTag does not match")
        return None

    def get_engine_validity(self, buffer):
        return self._surface.enum("EngineValidity").INVALID, 32


class Refitter:
    def __init__(self, engine, logger):
        self._engine, self._given = engine, None

    def get_missing_weights(self):
        return [name for name in self._engine._names if name.encode() not in (self._given or b"")]

    @answers(False)
    def refit_cuda_engine(self):
        self._engine._graph = self._given
        return True


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, refitter, logger):
        self._refitter = refitter

    @answers(False)
    def refit_from_file(self, model):
        self._refitter._given = Path(model).read_bytes()
        return not self._refitter.get_missing_weights()
