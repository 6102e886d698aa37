"""Models with random weights that do find things, and the small one that tests of several folders read.

Models, weights files and exports are made once per user and source (see made.py).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from made import made

from blu_export.spec import ModelSpec

OPSET = 18
PARTS = ("trunk", "box_head", "mask_head")
SMALL: dict[str, Any] = {
    "class_names": ("BG", "shirt", "hat", "shoe"),
    "backbone": "efficientnet_lite0",
    "image_min_dim": 128,
    "image_max_dim": 128,
    "rpn_anchor_scales": (8, 16, 32, 64, 128),
    "top_down_pyramid_size": 32,
    "rpn_channels": 32,
    "fpn_classif_fc_layers_size": 64,
    "mask_channels": 32,
    "detection_min_confidence": 0.0,
    "detection_max_instances": 40,
    "post_nms_rois_inference": 200,
}


def small_spec(**changes: Any) -> ModelSpec:
    """The smallest sensible model: EfficientNet-Lite0 on 128 px with narrow heads."""
    return ModelSpec(**(SMALL | changes))


def random_model(spec: ModelSpec, seed: int = 5, shift: float = 0.3) -> Any:
    """A Keras model with random weights.

    Normalization shifts every layer by up to ``shift``, without which the numbers of a deep untrained network fade
    away, and the heads are made to disagree, so that not every rounding changes an order.
    """
    import keras

    from blu_export.model.mask_rcnn import MaskRCNN

    keras.utils.set_random_seed(seed)
    model = MaskRCNN(spec)
    random = np.random.default_rng(seed)
    for name, layer in model.learned_layers().items():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([w + random.uniform(0, shift, w.shape).astype(np.float32) for w in layer.get_weights()])
        elif name in ("mrcnn_class_logits", "rpn_class_raw", "mrcnn_mask"):
            layer.set_weights([w * 20 for w in layer.get_weights()])
    return model


@cache
def small_model() -> Any:
    """The Keras model of ``small_spec()``, one per process."""
    return random_model(small_spec())


def save_export(model: Any, path: Path, target: str = "portable") -> None:
    """Export as ``blu export onnx`` does, without its checks."""
    from blu_export.export.learned import subnetworks
    from blu_export.graph.compose import compose

    graph = compose(subnetworks(model, OPSET), model.spec, target)
    onnx.helper.set_model_props(graph, {"blu_spec": model.spec.to_json(), "blu_target": target})
    onnx.save(graph, path)


def small_weights() -> Path:
    """The .h5 of ``small_model()``."""

    def make(path: Path) -> None:
        from blu_export.model.weights import save_weights

        save_weights(small_model(), path)

    return made("small.h5", make)


def small_export() -> Path:
    """The .onnx exported from ``small_weights()``."""

    def make(path: Path) -> None:
        from blu_export.model.weights import build_model

        save_export(build_model(small_weights())[0], path)

    return made("small.onnx", make)


def small_subnetworks() -> dict[str, onnx.ModelProto]:
    """The subnetworks of ``small_model()``."""

    def make(path: Path) -> None:
        from blu_export.export.learned import subnetworks

        parts = subnetworks(small_model(), OPSET)
        np.savez(path, **{name: np.frombuffer(part.SerializeToString(), np.uint8) for name, part in parts.items()})

    with np.load(made("small-subnetworks.npz", make)) as arrays:
        return {name: onnx.load_from_string(arrays[name].tobytes()) for name in PARTS}
