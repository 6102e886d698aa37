"""A model's answer for a canvas, back in pixels of the photo: the inverse of ``image.canvas``."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.errors import ModelFileError
from blu_export.image.canvas import Molded
from blu_export.spec import ModelSpec

MASK_THRESHOLD = 0.5
"""A pixel belongs to the instance from this mask value on."""


@dataclass(frozen=True, eq=False)
class Unmolded:
    """Instances in pixels of the photo, whose masks are still as small as the network's."""

    rois: NDArray[np.int32]
    """int32 [N, 4], (y1, x1, y2, x2); each has an area."""
    class_ids: NDArray[np.int32]
    """int32 [N]"""
    scores: NDArray[np.float32]
    """float32 [N]"""
    masks: NDArray[np.float32]
    """float32 [N, h, w], 0..1, each over its box."""

    def __getitem__(self, index: NDArray[np.int_]) -> Unmolded:
        """A subset."""
        return Unmolded(self.rois[index], self.class_ids[index], self.scores[index], self.masks[index])

    def full_size(self, image_size: tuple[int, int], spec: ModelSpec) -> Detections:
        """Detections: masks as large as their boxes."""
        crops = _unmold_masks(self.masks, self.rois)
        return Detections(self.rois, self.class_ids, self.scores, crops, image_size, spec.class_names)


def unmold(detections: NDArray[np.float32], masks: NDArray[np.float32], molded: Molded, spec: ModelSpec) -> Detections:
    """The detections of one photo, from what a Runner gave for its canvas.

    Args:
        detections: float32 [N, 6], rows (y1, x1, y2, x2, class id, score), boxes normalized to the
            canvas; the first row of class 0 ends them.
        masks: float32 [N, h, w], 0..1.
        molded: the photo as ``mold`` made it; only its sizes and window are used.
        spec: of the model; only its class names are used.

    Returns:
        Detections in pixels of the photo, in the order of the rows; boxes without area are left out.

    Raises:
        ModelFileError: the values cannot come from such a model.
    """
    return unmold_boxes(detections, masks, molded, spec).full_size(molded.image_size, spec)


def unmold_boxes(
    detections: NDArray[np.float32], masks: NDArray[np.float32], molded: Molded, spec: ModelSpec
) -> Unmolded:
    """The part of ``unmold`` that costs hardly any memory: masks stay as they are."""
    detections, masks = np.asarray(detections, np.float32), np.asarray(masks, np.float32)
    if detections.ndim != 2 or detections.shape[1] != 6 or not _fits(masks, len(detections)):
        raise ModelFileError(
            f"The model returned detections {detections.shape} and masks {masks.shape}, not [N, 6] and [N, h, w].",
            "Export it again with blu export onnx.",
        )
    ends = np.flatnonzero(detections[:, 4] == 0)
    detections = detections[: ends[0]] if len(ends) else detections
    class_ids = _check_rows(detections, spec.num_classes)
    boxes = _unmold_boxes(detections[:, :4], molded)
    kept = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    return Unmolded(boxes[kept], class_ids[kept], detections[kept, 5], masks[kept])


def _fits(masks: NDArray[np.float32], count: int) -> bool:
    return masks.ndim == 3 and len(masks) == count and all(masks.shape[1:])


def _check_rows(detections: NDArray[np.float32], num_classes: int) -> NDArray[np.int32]:
    class_ids = detections[:, 4]
    good = np.isfinite(detections).all(axis=1) & (class_ids >= 1) & (class_ids < num_classes)
    if not good.all():
        row = int(np.argmin(good))
        raise ModelFileError(
            f"The model returned an impossible detection {detections[row].tolist()} in row {row}.",
            "Check the model with blu verify; a reduced precision may have overflowed.",
        )
    return class_ids.astype(np.int32)


def _unmold_boxes(boxes: NDArray[np.float32], molded: Molded) -> NDArray[np.int32]:
    """Boxes in pixels of the photo, inside it; the original's ``norm_boxes`` and ``denorm_boxes`` with its types."""
    far_edge = np.array([0, 0, 1, 1])
    canvas, photo = (np.array([h - 1, w - 1] * 2) for h, w in (molded.canvas.shape[:2], molded.image_size))
    y1, x1, y2, x2 = ((molded.window.astype(np.float64) - far_edge) / canvas).astype(np.float32)
    # The window of a photo one pixel high has no extent here; the original divides by that zero.
    extent = np.array([y2 - y1 or 1, x2 - x1 or 1] * 2, np.float32)
    inside = (boxes - np.array([y1, x1, y1, x1], np.float32)) / extent
    pixels = np.around(inside * photo + far_edge)
    # Models clip boxes to the window. One that did not cannot reach beyond the photo here.
    limits = np.array([*molded.image_size] * 2)
    clipped: NDArray[np.int32] = np.clip(pixels, 0, limits).astype(np.int32)
    return clipped


def _unmold_masks(masks: NDArray[np.float32], boxes: NDArray[np.int32]) -> tuple[NDArray[np.bool_], ...]:
    """Each mask resized to its box and cut: bool [y2 - y1, x2 - x1]."""
    sizes = (boxes[:, 2:] - boxes[:, :2]).astype(np.int64)
    areas = sizes.prod(axis=1)
    # Two pieces of memory for all of them: fresh pages for every mask would cost more than filling them.
    values, inside = np.empty(areas.max(initial=0), np.float32), np.empty(areas.sum(), np.bool_)
    crops = []
    for mask, (height, width), area, end in zip(masks, sizes.tolist(), areas, areas.cumsum(), strict=True):
        crop = inside[end - area : end].reshape(height, width)
        if mask.min() >= MASK_THRESHOLD:  # the original's resize clips to the range of the mask, at its edge too
            crop[:] = True
        else:
            np.greater_equal(_resize_mask(mask, values[:area].reshape(height, width)), MASK_THRESHOLD, out=crop)
        crops.append(crop)
    return tuple(crops)


def _resize_mask(mask: NDArray[np.float32], place: NDArray[np.float32]) -> NDArray[np.float32]:
    """``skimage.transform.resize(order=1, mode="constant")`` of a mask into ``place``, float32 [height, width].

    The original takes the outside of the mask as 0, where OpenCV repeats its edge. The weights are a
    product of one per axis, so the one is the other times a ramp on the pixels beyond the outermost
    sample centers.
    """
    height, width = place.shape
    values: NDArray[np.float32] = cv2.resize(mask, (width, height), dst=place, interpolation=cv2.INTER_LINEAR)
    for axis_values, size in ((values, mask.shape[0]), (values.T, mask.shape[1])):
        length = len(axis_values)
        position = (np.arange(length // 2 + 1) + 0.5) * (size / length) - 0.5
        ramp = (1 + position[position < 0]).astype(np.float32)[:, None]
        if len(ramp):
            axis_values[: len(ramp)] *= ramp
            axis_values[length - len(ramp) :] *= ramp[::-1]
    return values
