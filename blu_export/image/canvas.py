"""A photo on a model's canvas: the original's ``resize_image`` to the last bit, at a fraction of its cost.

``mold`` and its inverse ``unmold`` (``image.results``) exist once and serve training, every runtime and the
server alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import ImageError, UsageError
from blu_export.spec import MAX_CANVAS, SIZE_MULTIPLE, ModelSpec

ROWS_AT_ONCE = 32
"""Output rows whose source rows are gathered together: they fit in the processor's cache."""
ROWS_A_CALL = 8
"""Output rows that one call of NumPy computes: a row alone is so short that the calls would cost more than the work."""


@dataclass(frozen=True, eq=False)
class Molded:
    """A photo on its canvas."""

    canvas: NDArray[np.uint8]
    """uint8 [H, W, 3] RGB; zero where there is no photo."""
    window: NDArray[np.float32]
    """float32 [4], (y1, x1, y2, x2) of the photo on the canvas, pixels, whole numbers."""
    scale: float
    """Canvas pixels per pixel of the photo."""
    image_size: tuple[int, int]
    """(height, width) of the photo."""


def mold(image: NDArray[np.uint8], spec: ModelSpec) -> Molded:
    """Scale a photo and put it in the middle of its canvas, as the original's ``resize_image`` does.

    Args:
        image: uint8 [H, W, C], as ``decode`` gives it: RGB unless the model has other channels.
        spec: says how: resize mode, least and largest side, least scale.

    Raises:
        ImageError: not such an array, or a canvas that follows the photo cannot follow this one.
    """
    channels = spec.image_channel_count
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or not image.size:
        raise ImageError(
            f"A {image.dtype} array of shape {image.shape} is not uint8 [H, W, {channels}].", "Use image.decode."
        )
    photo_size = image.shape[0], image.shape[1]
    scale, (height, width) = resize_scale(*photo_size, spec), _scaled_size(*photo_size, spec)
    canvas_height, canvas_width = canvas_of(*photo_size, spec)
    top, left = (canvas_height - height) // 2, (canvas_width - width) // 2
    resized = image if scale == 1 else _resize(image, height, width)
    if (height, width) == (canvas_height, canvas_width):
        canvas = resized
    else:
        canvas = np.zeros((canvas_height, canvas_width, channels), np.uint8)
        canvas[top : top + height, left : left + width] = resized
    return Molded(canvas, np.array([top, left, top + height, left + width], np.float32), scale, photo_size)


def stack(molded: Sequence[Molded]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What a Runner takes: canvases uint8 [B, H, W, 3] and windows float32 [B, 4]; one canvas is not copied.

    Raises:
        UsageError: there are none, or their canvases differ in size.
    """
    if len({each.canvas.shape for each in molded}) != 1:
        sizes = sorted({"×".join(map(str, each.canvas.shape[:2])) for each in molded})
        raise UsageError(
            f"Canvases of {', '.join(sizes) or 'no photo'} cannot form one batch.", "Batch those of one size."
        )
    if len(molded) == 1:
        return molded[0].canvas[None], molded[0].window[None]
    return np.stack([each.canvas for each in molded]), np.stack([each.window for each in molded])


def canvas_of(height: int, width: int, spec: ModelSpec) -> tuple[int, int]:
    """(height, width) of the canvas on which ``mold`` puts a photo of this size.

    Raises:
        ImageError: a canvas that follows the photo cannot follow this one.
    """
    return spec.canvas or _following_canvas(*_scaled_size(height, width, spec), spec)


def resize_scale(height: int, width: int, spec: ModelSpec) -> float:
    """The factor by which ``mold`` scales a photo of this size."""
    if spec.image_resize_mode == "none":
        return 1.0
    scale = max(1.0, spec.image_min_dim / min(height, width), spec.image_min_scale)
    if spec.largest_canvas is None:
        return scale
    rooms = list(zip(spec.largest_canvas, (height, width), strict=True))
    if any(round(side * scale) > room for room, side in rooms):
        scale = min(room / side for room, side in rooms)
    return scale


def _scaled_size(height: int, width: int, spec: ModelSpec) -> tuple[int, int]:
    scale = resize_scale(height, width, spec)
    # A photo so long that nothing is left of its short side keeps a pixel of it.
    return max(1, round(height * scale)), max(1, round(width * scale))


def _following_canvas(height: int, width: int, spec: ModelSpec) -> tuple[int, int]:
    """(height, width) of a canvas that follows the photo."""
    if spec.image_resize_mode == "none" and (height % SIZE_MULTIPLE or width % SIZE_MULTIPLE):
        raise ImageError(
            f"This model takes photos as they are, and {width}×{height} is not a multiple of {SIZE_MULTIPLE}.",
            "Pad the photo, or use a model with the resize mode pad64.",
        )
    height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in (height, width))
    if max(height, width) > MAX_CANVAS:
        raise ImageError(
            f"The photo would need a canvas of {width}×{height} pixels; the largest side is {MAX_CANVAS}.",
            "Make it smaller or less elongated, or use a model with the resize mode square or fit.",
        )
    return height, width


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """``skimage.transform.resize(order=1, mode="constant", preserve_range=True)``, then a cast, to the last bit.

    The cast cuts decimals off, so a flat gray of 114 may become 113 by the rounding of the weights.
    To be wrong in the same places the products are made and summed in the order of scipy's zoom.
    """
    channels = image.shape[2]
    rows, row_weights = _taps(image.shape[0], height)
    columns, column_weights = _taps(image.shape[1], width)
    # Weights of at most 8 fractional bits leave every sum below exact in single precision: 640 to 1024 is such a case.
    exact = all(np.array_equal(np.rint(weights * 256), weights * 256) for weights in (row_weights, column_weights))
    work = np.dtype(np.float32 if exact else np.float64)
    row_weights = row_weights.astype(work)
    column_weights = np.repeat(column_weights.astype(work), channels, axis=1)
    floor = work.type(image.min())  # skimage clips: the zeros around the photo do not darken its edge below this

    resized = np.empty((height, width * channels), np.uint8)
    # [output row, left or right neighbor, output column and channel]
    upper_space, lower_space = np.empty((2, ROWS_A_CALL, 2, width * channels), work)
    total_space = np.empty((ROWS_A_CALL, width * channels), work)
    for start in range(0, height, ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        needed, place = np.unique(rows[:, block], return_inverse=True)
        # [source row, left or right neighbor, output column and channel]
        source = image[needed].take(columns.ravel(), axis=1, mode="clip").reshape(len(needed), 2, -1).astype(work)
        places = place.reshape(2, -1)
        for first in range(0, places.shape[1], ROWS_A_CALL):
            above, below = places[:, first : first + ROWS_A_CALL]
            done = slice(start + first, start + first + len(above))
            above_weight, below_weight = row_weights[:, done, None, None]
            upper, lower, total = (space[: len(above)] for space in (upper_space, lower_space, total_space))
            np.take(source, above, axis=0, out=upper, mode="clip")  # with a mode it writes without a copy between
            np.multiply(upper, above_weight, out=upper)
            np.multiply(upper, column_weights, out=upper)
            np.take(source, below, axis=0, out=lower, mode="clip")
            np.multiply(lower, below_weight, out=lower)
            np.multiply(lower, column_weights, out=lower)
            np.add(upper[:, 0], upper[:, 1], out=total)
            np.add(total, lower[:, 0], out=total)
            np.add(total, lower[:, 1], out=total)
            if floor:
                np.maximum(total, floor, out=total)
            np.copyto(resized[done], total, casting="unsafe")
    return resized.reshape(height, width, channels)


def _taps(size: int, resized: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Neighbors and weights of linear interpolation along one axis, [2, resized]; zero weight outside."""
    position = (np.arange(resized) + 0.5) * (size / resized) - 0.5
    first = np.floor(position)
    weight = 1 - (position - first)
    taps = np.stack([first, first + 1]).astype(np.int64)
    weights = np.stack([weight, 1 - weight])
    weights[(taps < 0) | (taps >= size)] = 0
    return taps.clip(0, size - 1), weights
