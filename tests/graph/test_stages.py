"""The authored stages on the original's own intermediate tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blu_export.graph.builder import Graph, Value
from blu_export.graph.canvas import Canvas
from blu_export.graph.detection import detect
from blu_export.graph.proposals import propose
from blu_export.spec import ModelSpec

SPEC = ModelSpec(("BG", "a", "b", "c"), backbone="resnet50", image_min_dim=256, image_max_dim=256)


def logits(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits whose softmax these are."""
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-30)).astype(np.float32)


@pytest.mark.parametrize("target", ["portable", "tensorrt"])
@pytest.mark.parametrize("image", ["astronaut", "coffee"])
def test_proposals(run_graph: Any, golden_case: Any, target: str, image: str) -> None:
    case = golden_case("resnet50_small", image)

    def build(graph: Graph, canvas: Value, classes: Value, deltas: Value) -> Value:
        return propose(graph, classes, deltas, Canvas(graph, SPEC), SPEC, target)

    found = run_graph(
        build, canvas=case["padded_image"][None], classes=logits(case["rpn_class"])[None], deltas=case["rpn_bbox"][None]
    )[0]
    expected = case["rpn_rois"]
    distance = np.abs(found[0][:, None] - expected[None]).max(axis=2)
    assert (distance.min(axis=0) < 1e-5).all(), "every proposal of the original is there"
    assert np.count_nonzero(distance.diagonal() < 1e-5) >= 990, "and in its place, but for near-ties of the score"


@pytest.mark.parametrize("target", ["portable", "tensorrt"])
@pytest.mark.parametrize("image", ["astronaut", "coffee"])
def test_detections(run_graph: Any, golden_case: Any, target: str, image: str) -> None:
    case = golden_case("resnet50_small", image)

    def build(graph: Graph, canvas: Value, window: Value, rois: Value, classes: Value, deltas: Value) -> Any:
        return detect(graph, rois, classes, deltas, window, Canvas(graph, SPEC), SPEC, target)

    found, used = run_graph(
        build,
        canvas=case["padded_image"][None],
        window=case["window"].astype(np.float32)[None],
        rois=case["rpn_rois"][None],
        classes=logits(case["mrcnn_class"]),
        deltas=case["mrcnn_bbox"].reshape(1000, -1),
    )
    np.testing.assert_allclose(found[0], case["mrcnn_detections"], rtol=0, atol=2e-6)
    assert used.sum() == len(case["rois"])
