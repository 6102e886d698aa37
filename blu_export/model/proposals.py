"""Proposals: the best anchors, decoded with the RPN deltas and filtered by NMS."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from blu_export.model.boxes import clip, decode
from blu_export.spec import ModelSpec


def propose(
    scores: Any, deltas: Any, anchors: Any, spec: ModelSpec, count: int | None = None, pre_nms_limit: int | None = None
) -> Any:
    """ROIs of each image, best first.

    Args:
        scores: float32 [B, A], foreground probability of each anchor.
        deltas: float32 [B, A, 4], the RPN's raw output.
        anchors: float32 [A, 4], normalized.
        count: rows to return; default ``post_nms_rois_inference``.
        pre_nms_limit: anchors to consider; default the spec's.

    Returns:
        float32 [B, count, 4], normalized, clipped to the canvas; unused rows are zero.
    """
    count = count or spec.post_nms_rois_inference
    limit = tf.minimum(pre_nms_limit or spec.pre_nms_limit, tf.shape(anchors)[0])
    scores, index = tf.math.top_k(scores, limit, sorted=True)
    deltas = tf.gather(deltas, index, batch_dims=1)
    boxes = clip(decode(deltas, tf.gather(anchors, index), spec.rpn_bbox_std_dev), tf.constant([0.0, 0.0, 1.0, 1.0]))

    def suppress(image: tuple[Any, Any]) -> Any:
        image_boxes, image_scores = image
        keep = tf.image.non_max_suppression(image_boxes, image_scores, count, spec.rpn_nms_threshold)
        kept = tf.gather(image_boxes, keep)
        return tf.ensure_shape(tf.pad(kept, [[0, count - tf.shape(kept)[0]], [0, 0]]), [count, 4])

    return tf.map_fn(suppress, (boxes, scores), fn_output_signature=tf.TensorSpec([count, 4], tf.float32))
