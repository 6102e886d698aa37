"""The forms in which tools write the outline of an object, brought into one: polygons, or a compressed RLE.

Accepted are polygons as numbers in a row or as pairs, one or a list of them, points as {"x": …, "y": …}, numbers as
text; run lengths compressed or as a list, alone or in a list, their text also as Python shows bytes (``b'…'``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.data.dataset import Segmentation, encode_mask
from blu_export.rle import MAX_PIXELS, run_lengths

Box = tuple[float, float, float, float]
"""(y1, x1, y2, x2), pixels."""
MIN_VALUES = 6
"""Numbers of a polygon with an area: three points."""


def normalize(value: Any) -> Segmentation:
    """Polygons (float64 arrays x1, y1, x2, y2, …; pieces of fewer than three points are dropped) or an RLE; an empty
    list where there is nothing.

    Raises:
        ValueError: it is not an outline.
    """
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else []
    if value is None or value == [] or value == {}:
        return []
    if isinstance(value, dict):
        return _normalize_rle(value)
    if not isinstance(value, list):
        raise ValueError(f"a {type(value).__name__} is not an outline")
    if isinstance(value[0], dict) and "counts" in value[0]:
        return _merge([_normalize_rle(each) for each in value])
    if _is_polygon(value):
        value = [value]
    try:
        polygons = [_polygon(each) for each in value]
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"it is not a list of polygons [x1, y1, x2, y2, …]: {error}") from error
    return [polygon for polygon in polygons if len(polygon) >= MIN_VALUES]


def polygons_box(polygons: Sequence[Any]) -> Box:
    """The box (y1, x1, y2, x2) of the points of polygons, of which there is at least one."""
    points = polygons[0] if len(polygons) == 1 else np.concatenate(polygons)
    xs, ys = points[::2], points[1::2]
    return float(ys.min()), float(xs.min()), float(ys.max()), float(xs.max())


def coordinate_range(polygons: Sequence[Any]) -> tuple[float, float]:
    """The least and the greatest coordinate of polygons, of x and y alike."""
    points = polygons[0] if len(polygons) == 1 else np.concatenate(polygons)
    return points.min(), points.max()


def rle_box(rle: dict[str, Any]) -> Box:
    """The box (y1, x1, y2, x2) of an RLE's mask; all 0 for an empty one."""
    from pycocotools import mask as coco_mask

    x, y, width, height = coco_mask.toBbox(rle).tolist()
    return y, x, y + height, x + width


def check_outline(segmentation: Segmentation, height: int, width: int) -> None:
    """Raise ValueError where the outline cannot be of a photo of this size."""
    if isinstance(segmentation, dict):
        run_lengths(segmentation, (height, width))
    elif segmentation:
        # As encode_mask: a photo's size beyond each edge. Nearly all lie within the shorter side.
        low, high = coordinate_range(segmentation)
        if low >= -min(height, width) and high <= 2 * min(height, width):
            return
        y1, x1, y2, x2 = polygons_box(segmentation)
        if y1 < -height or x1 < -width or y2 > 2 * height or x2 > 2 * width:
            encode_mask(segmentation, height, width)


def _is_polygon(value: list[Any]) -> bool:
    """Whether a list is one polygon rather than several: numbers, pairs of them, or points with names."""
    if not isinstance(value[0], list | dict):
        return True
    if isinstance(value[0], dict):
        return True
    return len(value) >= 3 and all(isinstance(each, list) and len(each) == 2 for each in value) and not any(
        isinstance(each, list | dict) for pair in value for each in pair
    )  # fmt: skip


def _polygon(value: Any) -> NDArray[Any]:
    if value and isinstance(value[0], dict):
        value = [side for point in value for side in (point["x"], point["y"])]
    points = np.array(value, np.float64)
    if points.ndim == 2 and points.shape[1] == 2:
        points = points.ravel()
    if points.ndim != 1:
        raise ValueError("it is not a list of polygons [x1, y1, x2, y2, …]")
    if len(points) % 2:
        raise ValueError(f"a polygon has {len(points)} numbers, which is odd")
    if not math.isfinite(points.sum()):
        raise ValueError("a coordinate is not a number")
    return points


def _normalize_rle(value: dict[str, Any]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    try:
        height, width = (int(float(side)) for side in value["size"])
        counts = value["counts"]
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"it is not an RLE: {error!r}") from error
    if height < 0 or width < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"a photo cannot be {width}x{height}")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    if isinstance(counts, list):
        try:
            runs = [int(count) for count in counts]
        except (TypeError, OverflowError) as error:
            raise ValueError(f"the counts are not numbers: {error}") from error
        if min(runs, default=0) < 0 or sum(runs) != height * width:
            raise ValueError(f"the runs do not add up to {height * width} pixels")
        encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
    if not isinstance(counts, str):
        raise ValueError("the counts are not text")
    if counts[:2] in ("b'", 'b"') and counts[-1] == counts[1]:
        counts = counts[2:-1].replace("\\\\", "\\")
    return {"size": [height, width], "counts": counts}


def _merge(rles: list[dict[str, Any]]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if len(rles) == 1:
        return rles[0]
    for rle in rles:
        run_lengths(rle, (rles[0]["size"][0], rles[0]["size"][1]))
    merged = coco_mask.merge(rles)
    return {"size": rles[0]["size"], "counts": merged["counts"].decode("ascii")}
