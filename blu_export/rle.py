"""Masks inside their boxes, full masks, and COCO's run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_PIXELS = 400_000_000
"""Largest photo whose masks are read: a few bytes of run lengths can claim any size."""


class Rle(TypedDict):
    """A mask as COCO's compressed run lengths, as pycocotools writes them but with text for counts."""

    size: list[int]
    counts: str


def crop_mask(mask: NDArray[np.bool_], roi: ArrayLike) -> NDArray[np.bool_]:
    """The part of a full mask, bool [H, W], inside a box (y1, x1, y2, x2): a copy."""
    y1, x1, y2, x2 = np.asarray(roi).tolist()
    return np.array(mask[y1:y2, x1:x2], np.bool_)


def paste_mask(crop: NDArray[np.bool_], roi: ArrayLike, image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """The inverse of ``crop_mask``: bool [H, W], False outside the box."""
    y1, x1, y2, x2 = np.asarray(roi).tolist()
    mask = np.zeros(image_size, np.bool_)
    mask[y1:y2, x1:x2] = crop
    return mask


def encode_rle(crop: NDArray[np.bool_], roi: ArrayLike, image_size: tuple[int, int]) -> Rle:
    """Run lengths of the full mask that a crop stands for, without making that mask."""
    from pycocotools import mask as coco_mask

    (height, width), (y1, x1, _, _) = image_size, np.asarray(roi).tolist()
    # Down the columns, as COCO counts. A gap after each column ends its last run there.
    columns = np.zeros((crop.shape[1], crop.shape[0] + 1), np.bool_)
    columns[:, :-1] = crop.T
    flat = columns.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        changes = np.concatenate([[0], changes])
    column, row = np.divmod(changes, columns.shape[1])
    edges = (x1 + column) * height + y1 + row
    if len(crop) == height and len(edges):  # a run that goes on at the top of the next column is one run
        goes_on = np.flatnonzero(edges[1:-1:2] == edges[2::2])
        edges = np.delete(edges, np.concatenate([2 * goes_on + 1, 2 * goes_on + 2]))
    counts = np.diff(edges, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """The full mask, bool [H, W].

    pycocotools is not used here: for runs that do not add up to the photo it returns memory that
    no one has filled.

    Raises:
        ValueError: these are not run lengths of a photo of this size.
    """
    counts = run_lengths(rle, image_size)
    height, width = image_size
    mask: NDArray[np.bool_] = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
    return mask


def decode_crop(rle: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """A mask inside its box: bool [h, w] and the box's corner (y, x); [0, 0] for an empty mask.

    Takes memory by the height of the photo times the width of the box, not by the photo.

    Raises:
        ValueError: these are not run lengths of a photo of this size.
    """
    counts = run_lengths(rle, image_size)
    height = image_size[0]
    edges = counts.cumsum()
    runs = np.flatnonzero(counts[1::2])
    if not len(runs):
        return np.zeros((0, 0), bool), (0, 0)
    left = int(edges[2 * runs[0]]) // height
    right = -(-int(edges[2 * runs[-1] + 1]) // height)
    inside = np.diff(np.clip(edges, left * height, right * height), prepend=left * height)
    columns: NDArray[np.bool_] = np.repeat(np.arange(len(counts)) % 2 == 1, inside).reshape(right - left, height)
    rows = np.flatnonzero(columns.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return np.ascontiguousarray(columns[:, top:bottom].T), (top, left)


def run_lengths(rle: Mapping[str, Any], image_size: tuple[int, int]) -> NDArray[np.int64]:
    """Pixels of background, mask, background, … down the columns.

    Raises:
        ValueError: these are not run lengths of a photo of this size.
    """
    height, width = image_size
    if list(rle["size"]) != [height, width] or min(image_size) < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"a mask of {rle['size']} does not fit a photo of {[height, width]}")
    counts = _counts(rle["counts"])
    if (len(counts) and (counts.min() < 0 or counts.max() > height * width)) or counts.sum() != height * width:
        raise ValueError(f"the runs do not add up to {height * width} pixels")
    return counts


def _counts(text: str) -> NDArray[np.int64]:
    """Run lengths from COCO's text: groups of 5 bits, lowest first; from the fourth on less the second before."""
    if not isinstance(text, str):
        raise ValueError("the counts are not text")
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    last = (codes & 0x20) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    if codes.min() < 0 or codes.max() > 0x3F or not last[-1] or place.max() > 6:
        raise ValueError("the counts are not COCO's")
    counts = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[ends] & 0x10) != 0
    counts[negative] -= np.int64(1) << (5 * (place[ends][negative] + 1))
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts
