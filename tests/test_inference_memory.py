"""Memory of inference, on real backends; live bytes are counted in test_graph_costs."""

from __future__ import annotations

import pytest
import torchvision

from densenet_deploy.errors import RecipeError
from densenet_deploy.inference_memory import _network, infer_all
from densenet_deploy.spec import variant
from densenet_deploy.training_suite import InferenceMemory


def test_a_network_on_a_backend() -> None:
    suite = InferenceMemory(("squeezenet1_1",), (4,), ("onnxruntime",))
    (found,) = infer_all(suite, threads=1)
    assert (found.model, found.backend, found.batch) == ("squeezenet1_1", "onnxruntime", 4)
    # The first convolution and its ReLU: 64 channels at 111x111.
    assert found.live_bytes == 4 * 4 * 2 * 64 * 111**2
    # 5 MB of weights; a runtime computes some of the nodes in place.
    assert found.loaded_rss_bytes > 5e6 and 0.5 < found.peak_rss_bytes / found.live_bytes < 2
    assert found.to_dict()["peak_rss_bytes"] == found.peak_rss_bytes


def test_whose_network_a_name_is() -> None:
    assert isinstance(_network("resnet50"), torchvision.models.ResNet)
    for name in ("densenet121", "densenet-bc-10-4", "resnet-preact-8"):
        spec = _network(name).spec
        assert spec == variant(name, (3, 224, 224)), name


def test_an_unknown_network() -> None:
    with pytest.raises(RecipeError, match="unknown model 'x'"):
        infer_all(InferenceMemory(("x",)), 1)
