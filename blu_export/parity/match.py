"""Which detection of one model is which of another: pairs first, then comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blu_export.boxes import ScoredBoxes, iou

MIN_IOU = 0.5
"""Boxes of one class that overlap less are different instances."""


class Instances(ScoredBoxes, Protocol):
    """What is compared: Detections, or anything with its arrays."""

    @property
    def crops(self) -> Sequence[NDArray[np.bool_]]:
        """N masks, each inside its box."""


@dataclass(frozen=True)
class MatchResult:
    """Two sets of instances of one photo, paired.

    Attributes:
        pairs: int64 [P, 2], (index in the reference, index in the candidate), best IoU first.
        only_reference: int64, reference instances without a partner.
        only_candidate: int64, candidate instances without a partner.
        box_error: float64 [P], largest distance of a corner coordinate, pixels.
        score_error: float64 [P], absolute difference.
        mask_iou: float64 [P], 0..1; 1 where both masks are empty.
    """

    pairs: NDArray[np.int64]
    only_reference: NDArray[np.int64]
    only_candidate: NDArray[np.int64]
    box_error: NDArray[np.float64]
    score_error: NDArray[np.float64]
    mask_iou: NDArray[np.float64]

    @property
    def matched(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @property
    def total(self) -> int:
        """Size of the larger set: an instance too many weighs as much as one too few."""
        return self.matched + max(len(self.only_reference), len(self.only_candidate))


def match(reference: Instances, candidate: Instances, min_iou: float = MIN_IOU) -> MatchResult:
    """Pair instances of the same class one to one, the best overlapping boxes first.

    Where boxes overlap equally, those whose scores are nearer belong together.
    """
    overlap = iou(reference.rois, candidate.rois)
    gap = np.abs(reference.scores[:, None].astype(float) - candidate.scores)
    possible = (reference.class_ids[:, None] == candidate.class_ids) & (overlap >= min_iou)
    rows, columns = np.nonzero(possible)
    free_rows, free_columns = (np.ones(n, bool) for n in overlap.shape)
    pairs = []
    for i in np.lexsort((gap[rows, columns], -overlap[rows, columns])):
        row, column = rows[i], columns[i]
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append((row, column))
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    distance = np.abs(reference.rois[a].astype(float) - candidate.rois[b])
    return MatchResult(
        pairs=np.stack([a, b], axis=1),
        only_reference=np.flatnonzero(free_rows),
        only_candidate=np.flatnonzero(free_columns),
        box_error=distance.max(axis=1, initial=0.0),
        score_error=gap[a, b],
        mask_iou=np.array([_mask_iou_of(reference, int(i), candidate, int(j)) for i, j in pairs], float),
    )


def mask_iou(
    roi_a: NDArray[np.int32], crop_a: NDArray[np.bool_], roi_b: NDArray[np.int32], crop_b: NDArray[np.bool_]
) -> float:
    """Intersection over union of two masks, each given inside its box; 1 where both are empty."""
    top, left = np.maximum(roi_a[:2], roi_b[:2])
    bottom, right = np.minimum(roi_a[2:], roi_b[2:])
    shared = 0
    if bottom > top and right > left:
        inner_a, inner_b = (
            crop[top - roi[0] : bottom - roi[0], left - roi[1] : right - roi[1]]
            for roi, crop in ((roi_a, crop_a), (roi_b, crop_b))
        )
        shared = int(np.count_nonzero(inner_a & inner_b))
    union = np.count_nonzero(crop_a) + np.count_nonzero(crop_b) - shared
    return shared / union if union else 1.0


def _mask_iou_of(reference: Instances, i: int, candidate: Instances, j: int) -> float:
    return mask_iou(reference.rois[i], reference.crops[i], candidate.rois[j], candidate.crops[j])
