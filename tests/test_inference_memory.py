"""Memory of inference, on real backends; live bytes are counted in test_graph_costs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torchvision

from densenet_deploy import inference_memory
from densenet_deploy.errors import BackendError, RecipeError
from densenet_deploy.export import export_onnx, to_bytes
from densenet_deploy.inference_memory import _network, _of_batch, measure_inference
from densenet_deploy.inference_suite import InferenceMemorySuite
from densenet_deploy.model import create_model
from densenet_deploy.recipe import ExportConfig
from densenet_deploy.spec import variant

SMALL = InferenceMemorySuite("small", ("squeezenet1_1",), (4,), ("onnxruntime",), threads=1)


def test_a_network_on_a_backend() -> None:
    found = measure_inference(SMALL)
    assert [(one.model, one.backend, one.batch, one.fixed) for one in found.inferred] == [
        ("squeezenet1_1", "onnxruntime", 4, fixed) for fixed in (False, True)
    ]
    for one in found.inferred:
        # The first convolution and its ReLU: 64 channels at 111x111.
        assert one.live_bytes == 4 * 4 * 2 * 64 * 111**2
        # 5 MB of weights; a runtime computes some of the nodes in place.
        assert one.loaded_rss_bytes > 5e6
        assert 0.5 < (one.peak_rss_bytes - one.loaded_rss_bytes) / one.live_bytes < 2
    told = json.loads(json.dumps(found.to_dict()))
    assert told["suite"]["models"] == ["squeezenet1_1"] and told["threads"] == 1
    assert told["inferred"][1]["fixed"] and told["environment"]["packages"]["torch"]


def test_a_graph_of_one_batch_size() -> None:
    network = create_model("densenet-bc-10-4", (1, 28, 28), 10, seed=0)
    graph = to_bytes(export_onnx(network, (1, 28, 28), ExportConfig(fuse=False)).model)
    fixed = _of_batch(graph, 3)
    (images,) = onnx.load_from_string(fixed).graph.input
    assert [size.dim_value for size in images.type.tensor_type.shape.dim] == [3, 1, 28, 28]
    pixels = np.random.default_rng(0).normal(size=(3, 1, 28, 28)).astype(np.float32)
    one, other = (
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(
            None, {"images": pixels}
        )[0]
        for data in (graph, fixed)
    )
    np.testing.assert_array_equal(one, other)


def test_whose_network_a_name_is() -> None:
    assert isinstance(_network("resnet50"), torchvision.models.ResNet)
    for name in ("densenet121", "densenet-bc-10-4", "resnet-preact-8"):
        spec = _network(name).spec
        assert spec == variant(name, (3, 224, 224)), name


def test_what_cannot_be_measured_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_memory, "export_onnx", lambda *_: pytest.fail("measured"))
    with pytest.raises(RecipeError, match="unknown model 'x'"):
        measure_inference(SMALL, ["squeezenet1_1", "x"])
    monkeypatch.setattr(
        inference_memory, "why_unavailable", lambda name: "gone" if name == "openvino" else ""
    )
    with pytest.raises(BackendError, match="openvino cannot run here: gone"):
        measure_inference(InferenceMemorySuite("small", ("squeezenet1_1",)))
