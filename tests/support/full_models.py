"""Models to build engines of, with random weights: a small one, and the full-sized ones."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
DEMO_PHOTO = ROOT / "models" / "demo" / "astronaut.jpg"

SMALL = {
    "class_names": ("BG", "shirt", "hat", "shoe"),
    "backbone": "efficientnet_lite0",
    "image_min_dim": 128,
    "image_max_dim": 128,
    "rpn_anchor_scales": (8, 16, 32, 64, 128),
    "top_down_pyramid_size": 32,
    "rpn_channels": 32,
    "fpn_classif_fc_layers_size": 64,
    "mask_channels": 32,
    "pre_nms_limit": 300,
    "post_nms_rois_inference": 60,
    "detection_min_confidence": 0.0,
    "detection_max_instances": 20,
}


def garments_settings() -> dict[str, Any]:
    """Those of the embedded default model."""
    settings = tomllib.loads((ROOT / "models" / "garments.toml").read_text())["model"]
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()} | {
        "class_names": ("BG", *(f"garment {i}" for i in range(1, 10)))
    }


FULL_SIZED = {
    "resnet50": {"class_names": ("BG", *(f"c{i}" for i in range(1, 14))), "image_min_dim": 512, "image_max_dim": 512},
    "resnet101": {"class_names": ("BG", *(f"c{i}" for i in range(1, 81))), "image_min_dim": 800, "image_max_dim": 1024},
}
"""The golden configurations, by backbone."""


def specs() -> dict[str, ModelSpec]:
    """Every model by name."""
    found = {name: ModelSpec(backbone=name, **settings) for name, settings in FULL_SIZED.items()}
    return found | {"garments": ModelSpec(**garments_settings()), "small": ModelSpec(**SMALL)}


def export(spec: ModelSpec, path: Path) -> Path:
    """A portable file with random weights, as ``blu export onnx`` writes it.

    Normalization shifts every layer a little, without which the numbers of a deep untrained network fade away,
    and the heads are made to disagree, so that not every rounding changes an order.
    """
    import keras
    import onnx

    from blu_export.export.learned import subnetworks
    from blu_export.graph.compose import compose
    from blu_export.model.mask_rcnn import MaskRCNN

    keras.utils.set_random_seed(5)
    random = np.random.default_rng(5)
    model = MaskRCNN(spec)
    for name, layer in model.learned_layers().items():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([w + random.uniform(0, 0.3, w.shape).astype(np.float32) for w in layer.get_weights()])
        elif name in ("mrcnn_class_logits", "rpn_class_raw", "mrcnn_mask"):
            layer.set_weights([w * 20 for w in layer.get_weights()])
    graph = compose(subnetworks(model, 18), spec, "portable")
    onnx.helper.set_model_props(graph, {"blu_spec": spec.to_json(), "blu_target": "portable"})
    onnx.save(graph, path)
    return path
