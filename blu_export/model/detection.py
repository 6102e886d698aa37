"""Detection: from classified ROIs to the best non-overlapping boxes of each class."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from blu_export.model.boxes import clip, decode, iou
from blu_export.spec import ModelSpec

_DROPPED = -1.0
"""Score of a ROI that is background or not confident enough."""


def select_detections(rois: Any, probabilities: Any, deltas: Any, window: Any, spec: ModelSpec) -> Any:
    """Refine and filter the ROIs of each image, then suppress overlaps.

    Args:
        rois: float32 [B, R, 4], normalized.
        probabilities: float32 [B, R, K].
        deltas: float32 [B, R, K, 4], raw output of the box head.
        window: float32 [B, 4], the photo on its canvas, normalized.

    Returns:
        float32 [B, detection_max_instances, 6]: y1, x1, y2, x2 (normalized), class id, score; best
        first; unused rows are zero.
    """
    count = spec.detection_max_instances
    class_ids = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
    scores = tf.gather(probabilities, class_ids, batch_dims=2)
    deltas = tf.gather(deltas, class_ids, batch_dims=2)
    boxes = clip(decode(deltas, rois, spec.bbox_std_dev), window[:, None, :])
    kept = (class_ids > 0) & (scores >= spec.detection_min_confidence)
    scores = tf.where(kept, scores, _DROPPED)

    def suppress(image: tuple[Any, Any, Any]) -> Any:
        image_boxes, image_classes, image_scores = image
        # Boxes of different classes never suppress each other, so one greedy pass serves all classes.
        same_class = tf.cast(image_classes[:, None] == image_classes[None, :], tf.float32)
        keep = tf.image.non_max_suppression_overlaps(
            iou(image_boxes, image_boxes) * same_class,
            image_scores,
            count,
            overlap_threshold=spec.detection_nms_threshold,
            score_threshold=_DROPPED / 2,
        )
        rows = tf.concat([image_boxes, tf.cast(image_classes, tf.float32)[:, None], image_scores[:, None]], axis=1)
        rows = tf.gather(rows, keep)
        return tf.ensure_shape(tf.pad(rows, [[0, count - tf.shape(rows)[0]], [0, 0]]), [count, 6])

    return tf.map_fn(suppress, (boxes, class_ids, scores), fn_output_signature=tf.TensorSpec([count, 6], tf.float32))
