"""The five losses of Mask R-CNN (He et al. 2017), each as (sum, count).

A loss is sum / count. Keeping the two apart lets several replicas agree on one count, so that a
batch spread over devices has exactly the loss of the same batch on one.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from blu_export.train.targets import RoiTargets

Terms = dict[str, tuple[Any, Any]]


def smooth_l1(target: Any, predicted: Any) -> Any:
    """0.5 d² for |d| < 1, else |d| - 0.5 (Girshick 2015, equation 3)."""
    distance = tf.abs(target - predicted)
    return tf.where(distance < 1.0, 0.5 * distance**2, distance - 0.5)


def rpn_losses(logits: Any, deltas: Any, index: Any, label: Any, target: Any) -> Terms:
    """Losses of the region proposal network.

    Args:
        logits: float32 [B, A, 2], background and foreground.
        deltas: float32 [B, A, 4].
        index, label, target: sampled anchors, see ``AnchorTargets``.
    """
    logits, deltas = tf.gather(logits, index, batch_dims=1), tf.gather(deltas, index, batch_dims=1)
    counted, positive = _float(label >= 0), _float(label == 1)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(label, 0), logits)
    distance = tf.reduce_sum(smooth_l1(target, deltas), axis=-1)
    return {
        "rpn_class": (tf.reduce_sum(entropy * counted), tf.reduce_sum(counted)),
        "rpn_bbox": (tf.reduce_sum(distance * positive), 4.0 * tf.reduce_sum(positive)),
    }


def head_losses(logits: Any, deltas: Any, masks: Any, targets: RoiTargets) -> Terms:
    """Losses of the box head and the mask head.

    Args:
        logits: float32 [B, T, K], of every ROI in ``targets``.
        deltas: float32 [B, T, K, 4].
        masks: float32 [M, h, w, K], logits for the M valid positive ROIs, in order.
        targets: the sampled ROIs.
    """
    rows = targets.deltas.shape[1]
    valid, class_ids = _float(targets.valid), targets.class_ids
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(class_ids, logits)

    positive = targets.valid[:, :rows]
    own_deltas = tf.gather(deltas[:, :rows], class_ids[:, :rows], batch_dims=2)
    distance = tf.reduce_sum(smooth_l1(targets.deltas, own_deltas), axis=-1) * _float(positive)
    positives = tf.reduce_sum(_float(positive))

    own_class = tf.boolean_mask(class_ids[:, :rows], positive)
    own_masks = tf.gather(tf.transpose(masks, [0, 3, 1, 2]), own_class, batch_dims=1)
    mask_target = tf.boolean_mask(targets.masks, positive)
    binary = tf.nn.sigmoid_cross_entropy_with_logits(mask_target, own_masks)
    height, width = targets.masks.shape[2:]
    return {
        "mrcnn_class": (tf.reduce_sum(entropy * valid), tf.reduce_sum(valid)),
        "mrcnn_bbox": (tf.reduce_sum(distance), 4.0 * positives),
        "mrcnn_mask": (tf.reduce_sum(binary), float(height * width) * positives),
    }


def _float(condition: Any) -> Any:
    return tf.cast(condition, tf.float32)
