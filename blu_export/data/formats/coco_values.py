"""The values of COCO entries, as tools write them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from blu_export.boxes import iou
from blu_export.data.dataset import Segmentation
from blu_export.data.segmentation import Box, check_outline, rle_box
from blu_export.rle import MAX_PIXELS

MAX_SIDE = 65_535
"""Longest side of a photo, pixels: JPEG's limit. Drawing a polygon takes memory by the length of its edges."""
SAME_BOX = 0.5
"""IoU of a mask's own box with the annotated one from which on they are the same object's."""


def parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) in pixels; None for what no photo can have: the photo itself tells."""
    try:
        sides = int(float(height)), int(float(width))
    except (TypeError, ValueError, OverflowError):
        return None
    good = all(0 < side <= MAX_SIDE for side in sides) and sides[0] * sides[1] <= MAX_PIXELS
    return sides if good else None


def parse_box(value: Any) -> Box | None:
    """(y1, x1, y2, x2) of COCO's x, y, width, height; None for what is not a box: the mask tells."""
    try:
        x, y, width, height = map(float, value)
    except (TypeError, ValueError, OverflowError):
        return None
    box = y, x, y + height, x + width
    return box if math.isfinite(sum(box)) and width >= 0 and height >= 0 else None


def parse_area(value: Any) -> float | None:
    """Pixels; None for what is not an area: the mask tells."""
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return area if math.isfinite(area) and area > 0 else None


def parse_crowd(value: Any) -> bool:
    """Whether ``iscrowd`` says so, as number, text or truth value; absent, empty or null: no.

    Raises:
        ValueError: it says neither.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("", "0", "0.0", "false", "no", "none", "null"):
            return False
        if word in ("1", "1.0", "true", "yes"):
            return True
    elif value is None or isinstance(value, bool | int | float):
        return bool(value)
    raise ValueError(f"iscrowd is {value!r}")


def parse_text(value: Any, what: str) -> str:
    """A name; numbers are names too.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"the {what} is {value!r}")
    return str(value).strip()


def is_same(a: Any, b: Any) -> bool:
    """Whether two objects are the same entry: photo, category, box, crowd and outline."""
    if (a.photo, a.category, a.box, a.iscrowd) != (b.photo, b.category, b.box, b.iscrowd):
        return False
    if isinstance(a.segmentation, dict) or isinstance(b.segmentation, dict):
        return bool(a.segmentation == b.segmentation)
    return len(a.segmentation) == len(b.segmentation) and all(
        np.array_equal(one, other) for one, other in zip(a.segmentation, b.segmentation, strict=True)
    )


def fit_outline(segmentation: Segmentation, height: int, width: int, box: Box | None) -> Segmentation:
    """The outline, which can be of a photo of this size.

    An RLE whose size is width and height, the wrong way round, is read with the photo's own where its box then is the
    annotated one.

    Raises:
        ValueError: it cannot be of such a photo.
    """
    if isinstance(segmentation, dict) and height != width and list(segmentation["size"]) == [width, height]:
        turned: dict[str, Any] = {"size": [height, width], "counts": segmentation["counts"]}
        check_outline(turned, height, width)
        if box is None or float(iou([rle_box(turned)], [box])[0, 0]) < SAME_BOX:
            raise ValueError(f"a mask of {[width, height]} does not fit a photo of {[height, width]}")
        return turned
    check_outline(segmentation, height, width)
    return segmentation
