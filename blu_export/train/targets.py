"""Training targets: which anchors and ROIs are examples of what.

Anchors are matched in NumPy, in the input pipeline, where each photo has only its own few boxes.
ROIs exist only inside the graph and are matched there, for the whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from blu_export.anchors import pyramid_anchors
from blu_export.boxes import encode, iou
from blu_export.model import boxes as tensors
from blu_export.spec import ModelSpec
from blu_export.train.config import TargetConfig

CROWD_IOU = 0.001
"""An anchor or ROI that overlaps a crowd by more than this is not a negative example."""


class AnchorTargets:
    """Samples anchors for the RPN's losses (Ren et al. 2015, section 3.1.2).

    Positive: the best anchors of each box, and every anchor with IoU ≥ 0.7. Negative: IoU < 0.3 with
    every box and outside crowds. Of both, a random choice of at most ``rpn_anchors_per_image``.
    """

    def __init__(self, spec: ModelSpec, canvas: tuple[int, int], config: TargetConfig) -> None:
        height, width = canvas
        scale = np.array([height - 1, width - 1, height - 1, width - 1], np.float32)
        self.anchors = pyramid_anchors(spec, canvas) * scale + np.array([0, 0, 1, 1], np.float32)
        self.std_dev = spec.rpn_bbox_std_dev
        self.config = config

    def __call__(
        self, boxes: NDArray[np.float32], class_ids: NDArray[np.int32], rng: np.random.Generator
    ) -> dict[str, NDArray[Any]]:
        """Sampled anchors of one photo.

        Args:
            boxes: float32 [N, 4], pixels of the canvas.
            class_ids: int32 [N], negative for crowds.

        Returns:
            ``rpn_index`` int32 [S]: positions among the anchors, unused rows 0;
            ``rpn_label`` int32 [S]: 1 positive, 0 negative, -1 unused row;
            ``rpn_delta`` float32 [S, 4]: target deltas of the positive rows, else 0;
            ``roi_noise`` float32 [R]: random numbers by which the graph samples this photo's ROIs.
        """
        config = self.config
        positive, matched, negative = self.match(boxes[class_ids > 0], boxes[class_ids < 0])
        rows = config.rpn_anchors_per_image
        positives = rng.permutation(np.flatnonzero(positive))[: rows // 2]
        negatives = rng.permutation(np.flatnonzero(negative))[: rows - len(positives)]
        index, label = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
        delta = np.zeros((rows, 4), np.float32)
        used = len(positives) + len(negatives)
        index[:used] = np.concatenate([positives, negatives])
        label[:used] = 0
        label[: len(positives)] = 1
        targets = boxes[class_ids > 0][matched[positives]]
        delta[: len(positives)] = encode(targets, self.anchors[positives], self.std_dev)
        noise = rng.random(config.candidates, np.float32)
        return {"rpn_index": index, "rpn_label": label, "rpn_delta": delta, "roi_noise": noise}

    def match(
        self, boxes: NDArray[np.float32], crowds: NDArray[np.float32]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
        """Positive bool [A], index of the matched box int64 [A], negative bool [A]."""
        outside = np.ones(len(self.anchors), bool)
        if len(crowds):
            outside = iou(crowds, self.anchors).max(axis=0) < CROWD_IOU
        if not len(boxes):
            return np.zeros_like(outside), np.zeros(len(outside), np.int64), outside
        # Boxes by anchors, not the other way round: NumPy reduces a short first axis much faster.
        overlaps = iou(boxes, self.anchors)
        matched, best = overlaps.argmax(axis=0), overlaps.max(axis=0)
        positive = best >= self.config.rpn_positive_iou
        # The best anchors of a box are positive however small the overlap, ties included.
        closest = np.maximum(overlaps.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        positive |= (overlaps == closest).any(axis=0)
        return positive, matched, (best < self.config.rpn_negative_iou) & outside & ~positive


@dataclass(frozen=True)
class RoiTargets:
    """ROIs sampled for the heads' losses, P positive rows first, then N negative ones.

    ``rois`` float32 [B, P + N, 4] (normalized); ``valid`` bool [B, P + N]; ``class_ids`` int32
    [B, P + N], 0 for negatives; ``deltas`` float32 [B, P, 4]; ``masks`` float32 [B, P, h, w], 0 or 1.
    """

    rois: Any
    valid: Any
    class_ids: Any
    deltas: Any
    masks: Any


def roi_targets(
    proposals: Any, gt_boxes: Any, gt_class_ids: Any, gt_masks: Any, noise: Any, spec: ModelSpec, config: TargetConfig
) -> RoiTargets:
    """Sample ROIs and their targets, for a batch at once.

    Positive: IoU ≥ 0.5 with a box. Negative: IoU < 0.5 with every box and outside crowds, as many as
    keep the share of positives (so none in a photo without objects, as in the original), or as there is
    room for, with ``fill_negatives``.

    Args:
        proposals: float32 [B, R, 4], normalized; unused rows zero.
        gt_boxes: float32 [B, G, 4], normalized.
        gt_class_ids: int32 [B, G], negative for crowds, 0 for unused rows.
        gt_masks: bool [B, G, h, w], each cropped to its box.
        noise: float32 [B, ≥ R (+ G)], uniform in 0..1: decides which ROIs are taken.
    """
    objects, crowds = gt_class_ids > 0, gt_class_ids < 0
    if config.propose_ground_truth:
        proposals = tf.concat([proposals, tf.where(objects[..., None], gt_boxes, 0.0)], axis=1)
    proposals = tf.stop_gradient(proposals)
    noise = noise[:, : tf.shape(proposals)[1]]
    used = tf.reduce_any(proposals != 0.0, axis=-1)

    overlaps = tensors.iou(proposals, gt_boxes)
    best = tf.reduce_max(tf.where(objects[:, None, :], overlaps, 0.0), axis=-1)
    crowded = tf.reduce_max(tf.where(crowds[:, None, :], overlaps, 0.0), axis=-1) >= CROWD_IOU
    positive = used & (best >= config.roi_positive_iou)
    negative = used & (best < config.roi_positive_iou) & ~crowded

    positive_index, positive_valid = _sample(positive, noise, config.positive_rois)
    positives = tf.reduce_sum(tf.cast(positive_valid, tf.int32), axis=1, keepdims=True)
    wanted = tf.cast(tf.cast(positives, tf.float32) / config.roi_positive_share, tf.int32) - positives
    rows = config.rois_per_image - config.positive_rois
    negative_index, negative_valid = _sample(negative, noise, rows)
    if not config.fill_negatives:
        negative_valid &= tf.range(rows)[None, :] < wanted

    rois = tf.gather(proposals, positive_index, batch_dims=1)
    match = tf.argmax(tf.where(objects[:, None, :], overlaps, -1.0), axis=-1, output_type=tf.int32)
    match = tf.gather(match, positive_index, batch_dims=1)
    boxes = tf.gather(gt_boxes, match, batch_dims=1)
    class_ids = tf.where(positive_valid, tf.gather(gt_class_ids, match, batch_dims=1), 0)
    deltas = tensors.encode(boxes, rois, spec.bbox_std_dev)
    return RoiTargets(
        rois=tf.concat([rois, tf.gather(proposals, negative_index, batch_dims=1)], axis=1),
        valid=tf.concat([positive_valid, negative_valid], axis=1),
        class_ids=tf.concat([class_ids, tf.zeros_like(negative_index)], axis=1),
        deltas=tf.where(positive_valid[..., None], deltas, 0.0),
        masks=mask_targets(rois, boxes, match, gt_masks, spec.mask_shape),
    )


def mask_targets(rois: Any, boxes: Any, match: Any, gt_masks: Any, mask_shape: tuple[int, int]) -> Any:
    """What each positive ROI [B, P, 4] sees of its object's mask: float32 [B, P, h, w], 0 or 1.

    ``gt_masks`` bool [B, G, h, w] lie in their boxes, so the ROI is first moved to the coordinates
    of its box.
    """
    batch, count = tf.shape(gt_masks)[0], tf.shape(gt_masks)[1]
    size = tf.tile(boxes[..., 2:] - boxes[..., :2], [1, 1, 2])
    inside = tf.math.divide_no_nan(rois - tf.tile(boxes[..., :2], [1, 1, 2]), size)
    plane = tf.reshape(match + tf.range(batch)[:, None] * count, [-1])
    flat = tf.reshape(tf.cast(gt_masks, tf.float32), [-1, *gt_masks.shape[2:], 1])
    masks = tf.image.crop_and_resize(flat, tf.reshape(inside, [-1, 4]), plane, mask_shape)
    return tf.round(tf.reshape(masks, [batch, -1, *mask_shape]))


def _sample(candidates: Any, noise: Any, count: int) -> tuple[Any, Any]:
    """Up to ``count`` random candidates (bool [B, R]) of each row: their index and validity [B, count]."""
    keys, index = tf.math.top_k(tf.where(candidates, noise, -1.0), count)
    return index, keys >= 0.0
