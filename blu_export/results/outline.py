"""Outlines of masks along the edges of their pixels, so that a polygon has exactly the mask's area."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Ring = NDArray[np.int64]
"""int64 [K, 2], (x, y) of corners in pixels of the photo; the first is not repeated at the end."""


def polygons(crop: NDArray[np.bool_], roi: ArrayLike) -> list[list[Ring]]:
    """The parts of a mask: for each its outer ring, then its holes.

    Args:
        crop: bool [h, w], the mask inside its box.
        roi: int [4], (y1, x1, y2, x2).
    """
    y1, x1, _, _ = np.asarray(roi).tolist()
    count, parts = cv2.connectedComponents(crop.astype(np.uint8), connectivity=4)
    return [_rings((parts == part).astype(np.uint8), (x1, y1)) for part in range(1, count)]


def _rings(part: NDArray[np.uint8], corner: tuple[int, int]) -> list[Ring]:
    # OpenCV's outlines run through the middle of pixels. On a grid of half pixels, those middles lie a quarter inside
    # of the edge, and rounding them up to a pixel's corner gives the edge, outside and in holes alike.
    doubled = np.repeat(np.repeat(part, 2, axis=0), 2, axis=1)
    contours, nesting = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [(contour[:, 0].astype(np.int64) + 1) // 2 + corner for contour in contours]
    outer = [ring for ring, links in zip(rings, nesting[0], strict=True) if links[3] < 0]
    holes = [ring for ring, links in zip(rings, nesting[0], strict=True) if links[3] >= 0]
    return [_corners(ring) for ring in (*outer, *holes)]


def _corners(ring: Ring) -> Ring:
    """A ring without repeated points and points inside a straight line."""
    ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corners: Ring = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return corners


def single_ring(parts: list[list[Ring]]) -> Ring:
    """All rings as one, joined by bridges of no width, for formats that have one outline per instance.

    Filled by the even-odd rule it gives the mask again.
    """
    rings = [ring for part in parts for ring in part]
    joined = rings[0]
    for ring in rings[1:]:
        # From the nearest corner so far to the ring, once around it, and back.
        distances = np.abs(joined[:, None] - ring[None]).sum(axis=2)
        start, other = np.unravel_index(int(distances.argmin()), distances.shape)
        around = np.concatenate([np.roll(ring, -int(other), axis=0), ring[other : other + 1]])
        joined = np.concatenate([joined[: start + 1], around, joined[start:]])
    return joined
