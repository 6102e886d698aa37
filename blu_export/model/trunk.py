"""Trunk: backbone, feature pyramid and region proposal network, shared by all ROIs of an image."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from blu_export.model.backbones import backbone
from blu_export.spec import ModelSpec

PYRAMID_LEVELS = ("P2", "P3", "P4", "P5", "P6")
TRUNK_OUTPUTS = ("P2", "P3", "P4", "P5", "rpn_class_logits", "rpn_class", "rpn_bbox")


def build_trunk(spec: ModelSpec) -> keras.Model:
    """Functional model: float32 [B, H, W, C] (mean subtracted) to TRUNK_OUTPUTS.

    P2..P5 are [B, h, w, top_down_pyramid_size]; the RPN's outputs are [B, A, 2], [B, A, 2] and
    [B, A, 4] for the A anchors of P2..P6, ordered by level, y, x, ratio.
    """
    image = keras.Input((*(spec.canvas or (None, None)), spec.image_channel_count), name="image")
    pyramid = feature_pyramid(backbone(spec.backbone, image), spec.top_down_pyramid_size)
    outputs = [*pyramid[:4], *region_proposals(pyramid, spec)]
    return keras.Model(image, outputs, name="trunk")


def feature_pyramid(features: list[Any], channels: int) -> list[Any]:
    """P2..P6 from C2..C5 (Lin et al. 2017); P6 is P5 subsampled and serves the RPN alone."""
    c2, c3, c4, c5 = features
    p5 = layers.Conv2D(channels, 1, name="fpn_c5p5")(c5)
    p4 = _merge(p5, c4, channels, 4)
    p3 = _merge(p4, c3, channels, 3)
    p2 = _merge(p3, c2, channels, 2)
    pyramid = [
        layers.Conv2D(channels, 3, padding="same", name=f"fpn_p{level}")(p)
        for level, p in ((2, p2), (3, p3), (4, p4), (5, p5))
    ]
    p6 = layers.MaxPooling2D(pool_size=1, strides=2, name="fpn_p6")(pyramid[-1])
    return [*pyramid, p6]


def _merge(above: Any, lateral: Any, channels: int, level: int) -> Any:
    upsampled = layers.UpSampling2D(2, name=f"fpn_p{level + 1}upsampled")(above)
    lateral = layers.Conv2D(channels, 1, name=f"fpn_c{level}p{level}")(lateral)
    return layers.Add(name=f"fpn_p{level}add")([upsampled, lateral])


def region_proposals(pyramid: list[Any], spec: ModelSpec) -> tuple[Any, Any, Any]:
    """The RPN's logits, probabilities and box deltas, all levels concatenated."""
    anchors = len(spec.rpn_anchor_ratios)
    shared = layers.Conv2D(
        spec.rpn_channels,
        3,
        strides=spec.rpn_anchor_stride,
        padding="same",
        activation="relu",
        name="rpn_conv_shared",
    )
    class_raw = layers.Conv2D(2 * anchors, 1, name="rpn_class_raw")
    bbox_pred = layers.Conv2D(4 * anchors, 1, name="rpn_bbox_pred")
    hidden = [shared(p) for p in pyramid]
    logits = layers.Concatenate(axis=1, name="rpn_class_logits", dtype="float32")(
        [layers.Reshape((-1, 2))(class_raw(x)) for x in hidden]
    )
    probabilities = layers.Softmax(name="rpn_class", dtype="float32")(logits)
    deltas = layers.Concatenate(axis=1, name="rpn_bbox", dtype="float32")(
        [layers.Reshape((-1, 4))(bbox_pred(x)) for x in hidden]
    )
    return logits, probabilities, deltas
