"""``blu_export.boxes`` on tensors: boxes are (y1, x1, y2, x2) in normalized coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def encode(targets: Any, boxes: Any, std_dev: Sequence[float]) -> Any:
    """Deltas [..., 4] that move ``boxes`` [..., 4] onto ``targets`` [..., 4]; 0 for empty ones."""
    size, target_size = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    shift = tf.math.divide_no_nan(targets[..., :2] + 0.5 * target_size - boxes[..., :2] - 0.5 * size, size)
    ratio = tf.math.divide_no_nan(target_size, size)
    deltas = tf.concat([shift, tf.math.log(tf.where(ratio > 0, ratio, 1.0))], axis=-1)
    return deltas / tf.constant(std_dev, tf.float32)


def decode(deltas: Any, boxes: Any, std_dev: Sequence[float]) -> Any:
    """``boxes`` [..., 4] moved and scaled by ``deltas`` [..., 4] (dy, dx, log dh, log dw)."""
    deltas = deltas * tf.constant(std_dev, tf.float32)
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    dy, dx, log_dh, log_dw = tf.unstack(deltas, axis=-1)
    height, width = y2 - y1, x2 - x1
    center_y = y1 + 0.5 * height + dy * height
    center_x = x1 + 0.5 * width + dx * width
    height = height * tf.exp(log_dh)
    width = width * tf.exp(log_dw)
    y1, x1 = center_y - 0.5 * height, center_x - 0.5 * width
    return tf.stack([y1, x1, y1 + height, x1 + width], axis=-1)


def clip(boxes: Any, window: Any) -> Any:
    """Clip ``boxes`` [..., R, 4] to ``window`` [..., 1, 4] or [4]."""
    low = tf.concat([window[..., :2], window[..., :2]], axis=-1)
    high = tf.concat([window[..., 2:], window[..., 2:]], axis=-1)
    return tf.maximum(tf.minimum(boxes, high), low)


def normalize_window(window: Any, canvas_shape: Any) -> Any:
    """Windows float32 [B, 4] from pixels to normalized coordinates of a canvas int [2]."""
    height, width = tf.unstack(tf.cast(canvas_shape, tf.float32) - 1.0)
    return (window - tf.constant([0.0, 0.0, 1.0, 1.0])) / tf.stack([height, width, height, width])


def iou(a: Any, b: Any) -> Any:
    """Intersection over union [..., A, B] of boxes [..., A, 4] and [..., B, 4]; 0 for empty boxes."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    top_left = tf.maximum(a[..., :2], b[..., :2])
    bottom_right = tf.minimum(a[..., 2:], b[..., 2:])
    intersection = tf.reduce_prod(tf.maximum(bottom_right - top_left, 0.0), axis=-1)
    area_a = tf.reduce_prod(a[..., 2:] - a[..., :2], axis=-1)
    area_b = tf.reduce_prod(b[..., 2:] - b[..., :2], axis=-1)
    return tf.math.divide_no_nan(intersection, area_a + area_b - intersection)
