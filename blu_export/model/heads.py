"""Heads: what is computed for each ROI. ROIs of all images lie on one axis."""

from __future__ import annotations

import keras
from keras import layers

from blu_export.model.layers import MASK_CONVS
from blu_export.spec import ModelSpec


def build_box_head(spec: ModelSpec) -> keras.Model:
    """Functional model: float32 [R, pool, pool, C] to class logits, probabilities and box deltas.

    Shapes are [R, K], [R, K] and [R, K, 4] for K classes, the background included.
    """
    rois = keras.Input((spec.pool_size, spec.pool_size, spec.top_down_pyramid_size), name="rois")
    x = layers.Conv2D(spec.fpn_classif_fc_layers_size, spec.pool_size, name="mrcnn_class_conv1")(rois)
    x = layers.Activation("relu")(_batch_norm("mrcnn_class_bn1")(x))
    x = layers.Conv2D(spec.fpn_classif_fc_layers_size, 1, name="mrcnn_class_conv2")(x)
    x = layers.Activation("relu")(_batch_norm("mrcnn_class_bn2")(x))
    shared = layers.Flatten(name="pool_squeeze")(x)
    logits = layers.Dense(spec.num_classes, name="mrcnn_class_logits", dtype="float32")(shared)
    probabilities = layers.Softmax(name="mrcnn_class", dtype="float32")(logits)
    deltas = layers.Dense(4 * spec.num_classes, name="mrcnn_bbox_fc", dtype="float32")(shared)
    deltas = layers.Reshape((spec.num_classes, 4), name="mrcnn_bbox", dtype="float32")(deltas)
    return keras.Model(rois, [logits, probabilities, deltas], name="box_head")


def build_mask_head(spec: ModelSpec) -> keras.Model:
    """Functional model: float32 [R, pool, pool, C] to one mask in 0..1 per class, [R, h, w, K]."""
    rois = keras.Input((spec.mask_pool_size, spec.mask_pool_size, spec.top_down_pyramid_size), name="rois")
    x = rois
    for i in range(1, MASK_CONVS + 1):
        x = layers.Conv2D(spec.mask_channels, 3, padding="same", name=f"mrcnn_mask_conv{i}")(x)
        x = layers.Activation("relu")(_batch_norm(f"mrcnn_mask_bn{i}")(x))
    x = layers.Conv2DTranspose(spec.mask_channels, 2, strides=2, activation="relu", name="mrcnn_mask_deconv")(x)
    x = layers.Conv2D(spec.num_classes, 1, name="mrcnn_mask")(x)
    masks = layers.Activation("sigmoid", name="mrcnn_mask_sigmoid", dtype="float32")(x)
    return keras.Model(rois, masks, name="mask_head")


def _batch_norm(name: str) -> layers.BatchNormalization:
    return layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)
