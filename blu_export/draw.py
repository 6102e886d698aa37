"""Pictures of detections: translucent masks with crisp outlines, boxes and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from blu_export.instances import Detection, Instances

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""(x1, y1, x2, y2), pixels."""

FILL = 0.42
"""Opacity of a mask's inside."""
PALETTE_SIZE = 120
"""Classes that have a color of their own; then they repeat."""
FIRST_COLOR = (205, 0.62, 1.0)
"""Hue in degrees, saturation, value: a sky blue."""
CROWD = 12
"""With more instances than this, labels get smaller."""
DARK: Color = (18, 20, 24)
LIGHT: Color = (255, 255, 255)


def shown(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What people see of an image [H, W, C]: a copy of the first three channels, or the first one as gray."""
    seen = image if image.shape[2] == 3 else image[..., :3] if image.shape[2] > 3 else image[..., [0, 0, 0]]
    return np.array(seen, np.uint8, order="C")


def overlay(
    image: NDArray[np.uint8],
    detections: Instances,
    *,
    by: Literal["class", "instance"] = "class",
    fill: float = FILL,
    boxes: bool = True,
    labels: bool = True,
    scores: bool = True,
) -> NDArray[np.uint8]:
    """Draw detections on a copy of their photo. Lines and letters grow with the photo.

    Args:
        image: uint8 [H, W, 3] RGB, or of other channels (see ``shown``), of the size that the detections are of.
        detections: best first; labels of better ones are placed first.
        by: what has a color of its own. A class has the same one on every photo.
        fill: opacity of the masks, 0..1.
        boxes: draw boxes.
        labels: write class names.
        scores: write scores after them.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        ValueError: the detections are of a photo of another size.
    """
    if image.shape[:2] != detections.image_size:
        raise ValueError(f"Detections of a photo of {detections.image_size} do not fit one of {image.shape[:2]}.")
    drawn = shown(image)
    unit = math.sqrt(image.shape[0] * image.shape[1]) / 640
    keys = detections.class_ids.tolist() if by == "class" else range(1, len(detections) + 1)
    colors = [color_of(key) for key in keys]
    # Large ones first: what lies inside or in front of another stays visible.
    order = sorted(range(len(detections)), key=lambda i: -detections.crops[i].size)
    for i in order:
        _fill(drawn, detections.crops[i], detections.rois[i].tolist(), colors[i], fill)
    for i in order:
        _outline(drawn, detections.crops[i], detections.rois[i].tolist(), colors[i], max(1, round(1.6 * unit)))
    if boxes:
        for i in order:
            _box(drawn, detections.rois[i].tolist(), colors[i], max(1, round(unit)))
    if labels and len(detections):
        crowding = min(1.0, (CROWD / len(detections)) ** 0.25)
        names = [_title(found, scores) for found in detections]
        _labels(drawn, detections, names, colors, max(9, round(12.5 * unit * crowding)))
    return drawn


def _title(found: Detection, score: bool) -> str:
    """``coat #3 0.98``: class, track and score, as far as they are there and wanted."""
    track = "" if found.track_id is None else f" #{found.track_id}"
    return f"{found.class_name}{track}{f' {found.score:.2f}' if score else ''}"


def color_of(key: int) -> Color:
    """A bright color for a class or instance, RGB: always the same one for the same number from 1 up."""
    return _palette()[(key - 1) % PALETTE_SIZE]


@lru_cache(maxsize=1)
def _palette() -> tuple[Color, ...]:
    """Colors, each as far as possible from all before it, as the eye sees distance (CIE L*a*b*)."""
    hues, saturations, values = np.meshgrid(np.arange(0, 360, 5), (0.45, 0.62, 0.8), (0.75, 0.88, 1.0))
    hsv = np.stack([hues, saturations, values], axis=-1).reshape(1, -1, 3).astype(np.float32)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0]
    chosen = [int(np.argmin(np.abs(hsv[0] - FIRST_COLOR).sum(axis=1)))]
    distance = np.full(len(lab), np.inf)
    while len(chosen) < PALETTE_SIZE:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(distance)))
    return tuple((int(r), int(g), int(b)) for r, g, b in np.rint(255 * rgb[0, chosen]))


def _fill(drawn: NDArray[np.uint8], crop: NDArray[np.bool_], roi: list[int], color: Color, opacity: float) -> None:
    y1, x1, y2, x2 = roi
    region = drawn[y1:y2, x1:x2]
    levels = np.arange(256)[:, None] * (1 - opacity) + np.array(color) * opacity
    mixed = cv2.LUT(region, np.rint(levels).astype(np.uint8)[None])
    cv2.copyTo(mixed, crop.view(np.uint8), region)


def _outline(drawn: NDArray[np.uint8], crop: NDArray[np.bool_], roi: list[int], color: Color, width: int) -> None:
    contours, _ = cv2.findContours(crop.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(drawn, contours, -1, color, width, cv2.LINE_AA, offset=(roi[1], roi[0]))


def _box(drawn: NDArray[np.uint8], roi: list[int], color: Color, width: int) -> None:
    y1, x1, y2, x2 = roi
    cv2.rectangle(drawn, (x1, y1), (x2 - 1, y2 - 1), color, width)


def _labels(
    drawn: NDArray[np.uint8], detections: Instances, names: Sequence[str], colors: Sequence[Color], size: int
) -> None:
    height, width = drawn.shape[:2]
    taken = np.zeros((0, 4), np.int64)
    for found, name, color in zip(detections, names, colors, strict=True):
        label = _label(name, color, size, width, height)
        box = _place(found.roi.tolist(), (label.shape[1], label.shape[0]), (width, height), taken)
        taken = np.concatenate([taken, [box]])
        _blend(drawn, label, box)


def _place(roi: list[int], label: tuple[int, int], image: tuple[int, int], taken: NDArray[np.int64]) -> Box:
    """Where a label covers the least of those already placed: above its box, inside it, below it, at its right."""
    y1, x1, y2, x2 = roi
    width, height = label
    corners = [
        (x1, y1 - height),
        (x1, y1),
        (x1, y2),
        (x2 - width, y1 - height),
        (x2 - width, y2),
        (x1, y2 - height),
        (x2, y1),
        (x1, (y1 + y2 - height) // 2),
    ]
    best: tuple[float, Box] | None = None
    for rank, (x, y) in enumerate(corners):
        left, top = (max(0, min(at, room - size)) for at, room, size in zip((x, y), image, label, strict=True))
        box = (left, top, left + width, top + height)
        covered = _overlap(box, taken)
        moved = abs(left - x) + abs(top - y)
        cost = covered + 0.02 * height * moved + rank
        if best is None or cost < best[0]:
            best = cost, box
    assert best is not None
    return best[1]


def _overlap(box: Box, others: NDArray[np.int64]) -> int:
    """Pixels of a box that others, [N, 4], cover; counted once for each."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return int(sides.clip(0).prod(axis=1).sum())


def _label(text: str, color: Color, size: int, max_width: int, max_height: int) -> NDArray[np.uint8]:
    """A rounded chip with text: uint8 [h, w, 4] RGBA, cut to the image."""
    font = _font(size)
    pad_x, pad_y = round(0.4 * size), round(0.18 * size)
    ascent, descent = font.getmetrics()
    width, height = math.ceil(font.getlength(text)) + 2 * pad_x, ascent + descent + 2 * pad_y
    # Pillow's shapes have jagged corners: drawn four times as large, then reduced.
    shape = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), 1.1 * size, 235)
    chip = Image.new("RGBA", (width, height), color)
    ImageDraw.Draw(chip).text((pad_x, pad_y), text, DARK if _luminance(color) > 0.3 else LIGHT, font)
    chip.putalpha(shape.resize((width, height), Image.Resampling.BOX))
    return np.asarray(chip)[:max_height, :max_width]


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _blend(drawn: NDArray[np.uint8], label: NDArray[np.uint8], box: Box) -> None:
    region = drawn[box[1] : box[3], box[0] : box[2]]
    opacity = label[..., 3:].astype(np.float32) / 255
    region[:] = region + (label[..., :3] - region.astype(np.float32)) * opacity + 0.5


def _luminance(color: Color) -> float:
    """Relative luminance, 0..1 (WCAG)."""
    red, green, blue = ((c / 255) ** 2.2 for c in color)
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    titles: Sequence[str] = (),
    *,
    columns: int | None = None,
    tile: int = 480,
) -> NDArray[np.uint8]:
    """Pictures in a grid, each scaled to fit a square tile, with a title below.

    Args:
        images: uint8 [H, W, 3] RGB, of any sizes.
        titles: one for each image, or none.
        columns: default: about as many as rows.
        tile: side of a tile, pixels.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        ValueError: there are no images, or another number of titles.
    """
    if not images or (titles and len(titles) != len(images)):
        raise ValueError(f"A contact sheet of {len(images)} images cannot have {len(titles)} titles.")
    columns = columns or math.ceil(math.sqrt(len(images)))
    size, gap = max(11, tile // 28), max(4, tile // 40)
    caption = round(1.7 * size) if titles else 0
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * (tile + caption + gap) + gap, columns * (tile + gap) + gap, 3), 250, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = gap + row * (tile + caption + gap), gap + column * (tile + gap)
        _paste_tile(sheet[top : top + tile, left : left + tile], image)
    if not titles:
        return sheet
    picture = Image.fromarray(sheet)
    pen = ImageDraw.Draw(picture)
    for index, title in enumerate(titles):
        row, column = divmod(index, columns)
        at = gap + column * (tile + gap), gap + row * (tile + caption + gap) + tile + round(0.2 * size)
        pen.text(at, _shorten(title, size, tile), DARK, _font(size))
    return np.array(picture)


def _paste_tile(place: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """Scale an image into the middle of a square."""
    tile, (height, width) = len(place), image.shape[:2]
    scale = tile / max(height, width)
    height, width = (max(1, round(side * scale)) for side in (height, width))
    top, left = (tile - height) // 2, (tile - width) // 2
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    place[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=method)


def _shorten(text: str, size: int, width: int) -> str:
    """The text, or as much of it as fits with an ellipsis."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
