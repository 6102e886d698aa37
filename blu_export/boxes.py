"""Box coding and overlap in NumPy; ``model.boxes`` and ``graph.boxes`` mirror it.

Boxes are (y1, x1, y2, x2) in any unit.

Deltas are (dy, dx, log dh, log dw) divided by ``std_dev`` (Ren et al., Faster R-CNN, 2015, equation 2):
``encode(decode(deltas, boxes, s), boxes, s) == deltas`` up to rounding, for boxes with area. Log sizes are not clamped
before ``exp``: the original does not, and a clamp would move its boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNIT = (1.0, 1.0, 1.0, 1.0)


class ScoredBoxes(Protocol):
    """Boxes of what was found, with masks of any kind or none: Detections, raw instances, …"""

    @property
    def rois(self) -> NDArray[np.int32]:
        """int32 [N, 4], (y1, x1, y2, x2), pixels."""

    @property
    def class_ids(self) -> NDArray[np.int32]:
        """int32 [N]."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """float32 [N], 0..1."""


def encode(targets: NDArray[Any], boxes: NDArray[Any], std_dev: Sequence[float] = UNIT) -> NDArray[np.float32]:
    """Deltas float32 [N, 4] that move ``boxes`` [N, 4], which have an area, onto ``targets`` [N, 4]."""
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + 0.5 * target_size - boxes[:, :2] - 0.5 * size) / size
    deltas = np.concatenate([shift, np.log(target_size / size)], axis=1).astype(np.float32)
    return np.asarray(deltas / np.asarray(std_dev, np.float32), np.float32)


def decode(deltas: NDArray[Any], boxes: NDArray[Any], std_dev: Sequence[float] = UNIT) -> NDArray[np.float32]:
    """``boxes`` [N, 4] moved and scaled by ``deltas`` [N, 4]: float32 [N, 4]."""
    size = boxes[:, 2:] - boxes[:, :2]
    deltas = deltas * np.asarray(std_dev, np.float32)
    center = boxes[:, :2] + 0.5 * size + deltas[:, :2] * size
    size = size * np.exp(deltas[:, 2:])
    near = center - 0.5 * size
    return np.concatenate([near, near + size], axis=1).astype(np.float32)


def iou(a: ArrayLike, b: ArrayLike) -> NDArray[Any]:
    """Intersection over union [A, B] of boxes [A, 4] and [B, 4]; 0 for empty boxes.

    float32 where both are, else float64.
    """
    given = [np.asarray(boxes) for boxes in (a, b)]
    kind: Any = np.float32 if all(boxes.dtype == np.float32 for boxes in given) else np.float64
    first, second = given[0].astype(kind)[:, None], given[1].astype(kind)[None]
    size = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = np.prod(np.maximum(size, 0), axis=-1)
    areas = [np.prod(np.maximum(box[..., 2:] - box[..., :2], 0), axis=-1) for box in (first, second)]
    union = areas[0] + areas[1] - shared
    ratio: NDArray[Any] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def suppress(boxes: ArrayLike, scores: ArrayLike, threshold: float) -> list[int]:
    """Non-maximum suppression over all classes: the boxes (indices, best score first) that are kept.

    Args:
        boxes: [N, 4] (y1, x1, y2, x2).
        scores: [N].
        threshold: a box goes where its IoU with a kept one is above it.
    """
    left = np.argsort(-np.asarray(scores), kind="stable")
    given, kept = np.asarray(boxes, np.float64).reshape(-1, 4), []
    while len(left):
        kept.append(int(left[0]))
        left = left[1:][iou(given[left[:1]], given[left[1:]])[0] <= threshold]
    return kept
