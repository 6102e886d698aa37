"""A small model as Keras weights and as the ONNX file exported from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blu_export.spec import ModelSpec

SPEC = ModelSpec(
    class_names=("BG", "shirt", "hat", "shoe"),
    backbone="efficientnet_lite0",
    image_min_dim=128,
    image_max_dim=128,
    rpn_anchor_scales=(8, 16, 32, 64, 128),
    top_down_pyramid_size=32,
    rpn_channels=32,
    fpn_classif_fc_layers_size=64,
    mask_channels=32,
    detection_min_confidence=0.0,
    detection_max_instances=40,
    post_nms_rois_inference=200,
)


def save_onnx(model: Any, path: Path) -> None:
    """Export as ``blu export onnx`` does, without its checks."""
    import onnx

    from blu_export.export.learned import subnetworks
    from blu_export.graph.compose import compose

    graph = compose(subnetworks(model, 18), model.spec)
    onnx.helper.set_model_props(graph, {"blu_spec": model.spec.to_json(), "blu_target": "portable"})
    onnx.save(graph, path)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(weights .h5, exported .onnx) of a model with random weights that does find things."""
    import keras

    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.model.weights import build_model, save_weights

    keras.utils.set_random_seed(5)
    model = MaskRCNN(SPEC)
    random = np.random.default_rng(5)
    for name, layer in model.learned_layers().items():
        weights = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):  # away from the identity, so that features stay alive
            layer.set_weights([weight + random.uniform(0, 0.3, weight.shape).astype(np.float32) for weight in weights])
        elif name in ("mrcnn_class_logits", "rpn_class_raw", "mrcnn_mask"):
            layer.set_weights([weight * 20 for weight in weights])
    folder = tmp_path_factory.mktemp("pair")
    save_weights(model, folder / "small.h5")
    model, _ = build_model(folder / "small.h5")
    save_onnx(model, folder / "small.onnx")
    return folder / "small.h5", folder / "small.onnx"


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """128 px with structure at every scale."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 128, (8, 8, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return (coarse + random.integers(0, 60, (128, 128, 3))).astype(np.uint8)
