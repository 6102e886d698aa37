"""Photos in and masks out: safe decoding, and the way onto a model's canvas and back.

``mold`` and its inverse ``unmold`` exist once and serve training, every runtime and the server
alike. They give the original program's pixels and masks (Matterport Mask_RCNN, commit 3deaec5, with
scikit-image 0.26), at a fraction of its cost.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL import Image as PilImage

from blu_export.detections import Detections
from blu_export.errors import ImageError, ImageFormatError, ImageSizeError, ModelFileError, UsageError
from blu_export.spec import MAX_CANVAS, SIZE_MULTIPLE, ModelSpec

Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | PilImage.Image | NDArray[np.uint8]"

MAX_PIXELS = 100_000_000
"""Larger images are refused unless the caller allows them."""
MAX_STREAM_BYTES = 2**30
"""Read at most, of a path that cannot be sought (a pipe)."""
MASK_THRESHOLD = 0.5
"""A pixel belongs to the instance from this mask value on."""
ROWS_AT_ONCE = 32
"""Output rows resized together: their source rows fit in the processor's cache."""

_FORMATS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),
    (b"WEBP", WebPImagePlugin.WebPImageFile),
)
"""First bytes of the formats that are read. Pillow knows many more, in decoders that few people look after."""

_ORIENTATIONS = {
    2: PilImage.Transpose.FLIP_LEFT_RIGHT,
    3: PilImage.Transpose.ROTATE_180,
    4: PilImage.Transpose.FLIP_TOP_BOTTOM,
    5: PilImage.Transpose.TRANSPOSE,
    6: PilImage.Transpose.ROTATE_270,
    7: PilImage.Transpose.TRANSVERSE,
    8: PilImage.Transpose.ROTATE_90,
}
"""What turns an image with this EXIF orientation upright."""
_EXIF_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO = 258, 262, 0
"""TIFF tags, and the value of one."""


def decode(source: Source, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as a person sees it.

    JPEG, PNG, WebP, BMP and TIFF are told apart by their content. EXIF orientation is applied, grey
    becomes RGB, 16 bits become the upper 8, alpha is dropped and colours stay as they are; of an
    animation the first frame counts.

    Args:
        source: a path, an encoded image, a PIL image, or uint8 [H, W], [H, W, 1], [H, W, 3] RGB or
            [H, W, 4] RGBA.
        max_pixels: limit for height times width; checked before anything is decoded.

    Returns:
        uint8 [H, W, 3] RGB; it may be read-only, and it may be the array that was given.

    Raises:
        ImageError: it cannot be read, or is too large. No other error comes out, whatever the bytes.
    """
    if isinstance(source, np.ndarray):
        return _decode_array(source, max_pixels)
    if isinstance(source, PilImage.Image):
        return _decode_pil(source, "The image", max_pixels)
    with ExitStack() as stack:
        if isinstance(source, bytes | bytearray | memoryview):
            file, name = io.BytesIO(source), "The image"
        elif isinstance(source, str | os.PathLike):
            file, name = stack.enter_context(_open(source)), os.fspath(source)
        else:
            raise ImageError(
                f"A {type(source).__name__} is not an image.", "Give a path, bytes, a PIL image or an array."
            )
        return _decode_file(file, name, max_pixels)


def _open(path: str | os.PathLike[str]) -> Any:
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        if file.seekable():
            return file
        with file:
            return io.BytesIO(file.read(MAX_STREAM_BYTES))
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"The image {os.fspath(path)} cannot be read: {reason}.", "Check the path.") from error


def _decode_file(file: Any, name: str, max_pixels: int) -> NDArray[np.uint8]:
    try:
        head = file.read(12)
        file.seek(0)
    except OSError as error:
        raise ImageError(f"The image {name} cannot be read: {error}.") from error
    content = head[8:] if head[:4] == b"RIFF" else head  # a box whose content is named after its size
    known = [plugin for magic, plugin in _FORMATS if content.startswith(magic)]
    if not known:
        what = "is not an image that can be read" if head else "is empty"
        raise ImageFormatError(f"{name} {what}.", "Use JPEG, PNG, WebP, BMP or TIFF.")
    try:
        # The plugin itself, not Image.open: that would try other formats, and warn of sizes allowed here.
        image = known[0](file)
    except Exception as error:  # damaged headers raise almost anything in Pillow's plugins
        raise _broken(name, error) from error
    with image:
        return _decode_pil(image, name, max_pixels)


def _decode_pil(image: PilImage.Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    _check_size(image.height, image.width, name, max_pixels)
    try:
        image.load()
        turn = _ORIENTATIONS.get(_orientation(image))  # after load: that is what turns a TIFF
        pixels = _to_rgb(image if turn is None else image.transpose(turn), name)
    except ImageError:
        raise
    except Exception as error:  # as above: there is no closed list
        raise _broken(name, error) from error
    return pixels


def _decode_array(array: NDArray[Any], max_pixels: int) -> NDArray[np.uint8]:
    shape = "×".join(map(str, array.shape))
    if array.dtype != np.uint8:
        raise ImageError(f"An array of {array.dtype} is not an image.", "Give uint8 values, 0 to 255.")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"An array of {shape} is not an image.", "Give H×W, H×W×1, H×W×3 (RGB) or H×W×4 (RGBA).")
    _check_size(array.shape[0], array.shape[1], f"The array of {shape}", max_pixels)
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{name} has no pixels.")
    if height * width > max_pixels:
        raise ImageSizeError(
            f"{name} has {width}×{height} pixels, more than the {max_pixels / 1e6:g} million allowed.",
            "Make it smaller, or raise the limit if you trust it.",
        )


def _orientation(image: PilImage.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # EXIF that cannot be parsed: viewers show such a photo as it is stored
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: PilImage.Image, name: str) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF, whose grey may have fewer bits, and begin with white
        grey = (np.asarray(image) >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
        if tags.get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32 bits per value, which has no agreed range.", "Convert it to 8 or 16 bits.")
    if image.mode in ("RGBa", "La"):  # alpha already multiplied in: take it out before it is dropped
        image = image.convert(image.mode[:-1] + "A")
    if "transparency" in image.info:  # a transparent colour keeps its colour
        image = image.copy()
        del image.info["transparency"]
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _broken(name: str, error: Exception) -> ImageError:
    reason = str(error).rstrip(".") or type(error).__name__
    return ImageError(f"{name} is damaged: {reason}.", "Save it again, or get a whole copy.")


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
        image: uint8 [H, W, 3] RGB, as ``decode`` gives it.
        spec: says how: resize mode, least and largest side, least scale.

    Raises:
        ImageError: not such an array, or a canvas that follows the photo cannot follow this one.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"A {image.dtype} array of shape {image.shape} is not uint8 [H, W, 3].", "Use image.decode.")
    photo_size = image.shape[0], image.shape[1]
    scale = resize_scale(*photo_size, spec)
    # A photo so long that nothing is left of its short side keeps a pixel of it.
    height, width = (max(1, round(side * scale)) for side in photo_size)
    canvas_height, canvas_width = spec.canvas or _following_canvas(height, width, spec)
    top, left = (canvas_height - height) // 2, (canvas_width - width) // 2
    resized = image if scale == 1 else _resize(image, height, width)
    if (height, width) == (canvas_height, canvas_width):
        canvas = resized
    else:
        canvas = np.zeros((canvas_height, canvas_width, 3), np.uint8)
        canvas[top : top + height, left : left + width] = resized
    return Molded(canvas, np.array([top, left, top + height, left + width], np.float32), scale, photo_size)


def stack(molded: Sequence[Molded]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What a Runner takes: canvases uint8 [B, H, W, 3] and windows float32 [B, 4]; one canvas is not copied.

    Raises:
        UsageError: there are none, or their canvases differ in size.
    """
    if len({each.canvas.shape for each in molded}) != 1:
        sizes = sorted({"×".join(map(str, each.canvas.shape[:2])) for each in molded})
        raise UsageError(f"Canvases of {', '.join(sizes) or 'no photo'} make no batch.", "Batch those of one size.")
    if len(molded) == 1:
        return molded[0].canvas[None], molded[0].window[None]
    return np.stack([each.canvas for each in molded]), np.stack([each.window for each in molded])


def resize_scale(height: int, width: int, spec: ModelSpec) -> float:
    """The factor by which ``mold`` scales a photo of this size."""
    if spec.image_resize_mode == "none":
        return 1.0
    scale = max(1.0, spec.image_min_dim / min(height, width), spec.image_min_scale)
    longest = max(height, width)
    if spec.image_resize_mode == "square" and round(longest * scale) > spec.image_max_dim:
        scale = spec.image_max_dim / longest
    return scale


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
            "Make it smaller or less elongated, or use a model with the resize mode square.",
        )
    return height, width


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """``skimage.transform.resize(order=1, mode="constant", preserve_range=True)``, then a cast, to the last bit.

    The cast cuts decimals off, so a flat grey of 114 may become 113 by the rounding of the weights.
    To be wrong in the same places the products are made and summed in the order of scipy's zoom.
    """
    rows, row_weights = _taps(image.shape[0], height)
    columns, column_weights = _taps(image.shape[1], width)
    # Weights of at most 8 fractional bits leave every sum below exact in single precision: 640 to 1024 is such a case.
    exact = all(np.array_equal(np.rint(weights * 256), weights * 256) for weights in (row_weights, column_weights))
    work = np.dtype(np.float32 if exact else np.float64)
    row_weights = row_weights.astype(work)
    column_weights = np.repeat(column_weights.astype(work), 3, axis=1)
    floor = work.type(image.min())  # skimage clips: the zeros around the photo do not darken its edge below this

    resized = np.empty((height, width * 3), np.uint8)
    upper, lower = np.empty((2, 2, width * 3), work)
    total = np.empty(width * 3, work)
    for start in range(0, height, ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        needed, place = np.unique(rows[:, block], return_inverse=True)
        # [source row, left or right neighbour, output column and channel]
        source = image[needed].take(columns.ravel(), axis=1, mode="clip").reshape(len(needed), 2, -1).astype(work)
        for line, (above, below), (above_weight, below_weight) in zip(
            resized[block], place.reshape(2, -1).T, row_weights[:, block].T, strict=True
        ):
            np.multiply(source[above], above_weight, out=upper)
            np.multiply(upper, column_weights, out=upper)
            np.multiply(source[below], below_weight, out=lower)
            np.multiply(lower, column_weights, out=lower)
            np.add(upper[0], upper[1], out=total)
            np.add(total, lower[0], out=total)
            np.add(total, lower[1], out=total)
            if floor:
                np.maximum(total, floor, out=total)
            np.copyto(line, total, casting="unsafe")
    return resized.reshape(height, width, 3)


def _taps(size: int, resized: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Neighbours and weights of linear interpolation along one axis, [2, resized]; zero weight outside."""
    position = (np.arange(resized) + 0.5) * (size / resized) - 0.5
    first = np.floor(position)
    weight = 1 - (position - first)
    taps = np.stack([first, first + 1]).astype(np.int64)
    weights = np.stack([weight, 1 - weight])
    weights[(taps < 0) | (taps >= size)] = 0
    return taps.clip(0, size - 1), weights


def unmold(detections: NDArray[np.float32], masks: NDArray[np.float32], molded: Molded, spec: ModelSpec) -> Detections:
    """The detections of one photo, from what a Runner gave for its canvas.

    Args:
        detections: float32 [N, 6], rows (y1, x1, y2, x2, class id, score), boxes normalised to the
            canvas; the first row of class 0 ends them.
        masks: float32 [N, h, w], 0..1.
        molded: the photo as ``mold`` made it; only its sizes and window are used.
        spec: of the model; only its class names are used.

    Returns:
        Detections in pixels of the photo, in the order of the rows; boxes without area are left out.

    Raises:
        ModelFileError: the values cannot come from such a model.
    """
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
    return Detections(
        rois=boxes[kept],
        class_ids=class_ids[kept],
        scores=detections[kept, 5],
        crops=_unmold_masks(masks[kept], boxes[kept]),
        image_size=molded.image_size,
        class_names=spec.class_names,
    )


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
    sample centres.
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
