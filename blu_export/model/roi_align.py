"""ROI align over the feature pyramid (one bilinear sample per cell, as the original)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from blu_export.anchors import ROI_CANONICAL_SIZE, ROI_EDGE


def pyramid_roi_align(boxes: Any, pyramid: list[Any], pool_size: int, canvas_shape: Any) -> Any:
    """Pool each ROI from the level of the pyramid that suits its size.

    Args:
        boxes: float32 [B, R, 4], normalized; rows may be empty boxes.
        pyramid: P2..P5, each [B, h, w, C].
        pool_size: side of the pooled square.
        canvas_shape: int [2], (height, width) in pixels.

    Returns:
        float32 [B × R, pool_size, pool_size, C].
    """
    boxes = tf.stop_gradient(boxes)
    batch, rois = tf.shape(boxes)[0], tf.shape(boxes)[1]
    levels = tf.reshape(roi_levels(boxes, canvas_shape), [-1])
    flat = tf.reshape(tf.clip_by_value(boxes, 0.0, ROI_EDGE), [-1, 4])
    image_of = tf.repeat(tf.range(batch), rois)
    pooled, order = [], []
    for level, features in enumerate(pyramid, start=2):
        index = tf.where(levels == level)[:, 0]
        pooled.append(
            tf.image.crop_and_resize(
                features, tf.gather(flat, index), tf.gather(image_of, index), [pool_size, pool_size]
            )
        )
        order.append(tf.cast(index, tf.int32))
    position = tf.math.invert_permutation(tf.concat(order, axis=0))
    return tf.gather(tf.concat(pooled, axis=0), position)


def roi_levels(boxes: Any, canvas_shape: Any) -> Any:
    """Level 2..5 of each box [..., 4]: int32 [...] (FPN paper, equation 1; empty boxes get 2)."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    canvas_area = tf.reduce_prod(tf.cast(canvas_shape, tf.float32))
    size = tf.sqrt((y2 - y1) * (x2 - x1)) / (ROI_CANONICAL_SIZE / tf.sqrt(canvas_area))
    level = 4.0 + tf.round(tf.math.log(size) / math.log(2.0))
    return tf.cast(tf.clip_by_value(level, 2.0, 5.0), tf.int32)
