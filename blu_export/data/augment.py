"""Augmentation: a photo and its masks are moved by one affine map; boxes follow from the masks.

Random numbers come from the caller's generator alone, so a sample is a function of its key.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MIN_VISIBLE_PIXELS = 16
"""Objects that keep fewer pixels on the canvas are dropped: no one could name them."""
MIN_VISIBLE_SHARE = 0.1
"""Of an object that a pasted one covers, at least this share must stay visible."""
RGB = 3
_HALF = 127


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly training photos are varied; all off is ``AugmentConfig(0, (1, 1), 0, 0, 0, 0)``."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Range of the scale jitter, relative to the scale that inference uses (Ghiasi et al. 2021)."""
    rotation: float = 0.0
    """Largest rotation, degrees."""
    brightness: float = 0.2
    """Brightness is multiplied by 1 ± this; contrast and saturation likewise."""
    tint: float = 0.05
    """Each color channel is multiplied by 1 ± this, as a wrong white balance does."""
    gray: float = 0.0
    """Share of the samples without color, as black-and-white photos are; only for three channels."""
    copy_paste: float = 0.3
    """Probability that objects of another photo are pasted in (Ghiasi et al. 2021)."""
    smallest: int = 0
    """Objects that show fewer pixels on the canvas are neither right nor wrong to find, like crowds."""
    scenes: float = 0.0
    """Share of the samples that are a background photo with persons pasted on it."""
    empty: float = 0.0
    """Share of the samples that are a background photo as it is, with nothing to find."""
    person: tuple[float, float] = (0.25, 2.5)
    """Range of a pasted person's height, relative to the canvas."""


@dataclass(frozen=True)
class Photo:
    """A decoded photo with masks kept as crops, small enough to be cached.

    ``crops[i]`` is the uint8 (0 or 255) mask of object i inside its box, whose corner is
    ``corners[i]`` = (y, x).
    """

    image: NDArray[np.uint8]
    class_ids: NDArray[np.int32]
    iscrowd: NDArray[np.bool_]
    corners: tuple[tuple[int, int], ...]
    crops: tuple[NDArray[np.uint8], ...]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.image.nbytes + sum(crop.nbytes for crop in self.crops)

    @classmethod
    def from_masks(
        cls,
        image: NDArray[np.uint8],
        masks: NDArray[np.bool_],
        class_ids: NDArray[np.int32],
        iscrowd: NDArray[np.bool_],
    ) -> Photo:
        """From full masks bool [N, H, W]; empty masks are left out."""
        kept, corners, crops = [], [], []
        for index, mask in enumerate(masks):
            box = mask_box(mask)
            if box is not None:
                y1, x1, y2, x2 = box
                kept.append(index)
                corners.append((y1, x1))
                crops.append(mask[y1:y2, x1:x2].astype(np.uint8) * 255)
        return cls(image, class_ids[kept], iscrowd[kept], tuple(corners), tuple(crops))

    def only(self, chosen: NDArray[np.int64]) -> Photo:
        """The same photo with only the ``chosen`` objects (indices [N])."""
        corners = tuple(self.corners[i] for i in chosen.tolist())
        crops = tuple(self.crops[i] for i in chosen.tolist())
        return Photo(self.image, self.class_ids[chosen], self.iscrowd[chosen], corners, crops)


@dataclass(frozen=True)
class Canvas:
    """A training canvas: image uint8 [H, W, 3], masks bool [N, H, W], class_ids int32 [N], iscrowd bool [N]."""

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    class_ids: NDArray[np.int32]
    iscrowd: NDArray[np.bool_]


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """(y1, x1, y2, x2) of the true pixels, the far edge outside; None for an empty mask."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return (y, x, y + height, x + width) if width else None


def random_affine(
    size: tuple[int, int],
    canvas: tuple[int, int],
    base_scale: float,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The 2x3 map from pixels of a photo (height, width) to pixels of the canvas (height, width).

    Scale jitter, flip and rotation about the photo's center; then a random crop along a side where
    the photo is larger than the canvas, and a random place where it is smaller.
    """
    scale = base_scale * float(np.exp(rng.uniform(*np.log(config.scale))))
    mirrored = rng.random() < config.flip
    angle = np.deg2rad(rng.uniform(-config.rotation, config.rotation))
    offset = [rng.uniform(min(0.0, side - scale * length), max(0.0, side - scale * length))
              for side, length in zip(canvas, size, strict=True)]  # fmt: skip
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[-cos if mirrored else cos, -sin], [-sin if mirrored else sin, cos]])
    # Pixel centers lie at integers: the center of a side of n pixels is (n - 1) / 2.
    source = (np.array(size[::-1]) - 1) / 2
    target = np.array(offset[::-1]) + (scale * np.array(size[::-1]) - 1) / 2
    return np.concatenate([linear, (target - linear @ source)[:, None]], axis=1)


def place(photo: Photo, affine: NDArray[np.float64], size: tuple[int, int]) -> Canvas:
    """Draw ``photo`` and its masks through ``affine`` on a black canvas (height, width).

    Objects that end up outside are dropped.
    """
    height, width = size
    image = cv2.warpAffine(photo.image, affine, (width, height), flags=cv2.INTER_LINEAR).reshape(height, width, -1)
    masks = np.zeros((len(photo.crops), height, width), bool)
    kept: list[int] = []
    for index, ((y, x), crop) in enumerate(zip(photo.corners, photo.crops, strict=True)):
        moved = affine.copy()
        moved[:, 2] += affine[:, :2] @ (x, y)
        # Only the part of the canvas that the crop's corners span: most objects are small.
        left, top, right, bottom = _span(crop, moved, size)
        if left >= right or top >= bottom:
            continue
        moved[:, 2] -= left, top
        drawn = cv2.warpAffine(crop, moved, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
        inside = np.asarray(drawn) > _HALF
        if np.count_nonzero(inside) >= MIN_VISIBLE_PIXELS:
            masks[len(kept), top:bottom, left:right] = inside
            kept.append(index)
    return Canvas(np.asarray(image, np.uint8), masks[: len(kept)], photo.class_ids[kept], photo.iscrowd[kept])


def visible_objects(photo: Photo, affine: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Indices of the objects that may reach into a canvas (height, width) through ``affine``."""
    shown = []
    for index, ((y, x), crop) in enumerate(zip(photo.corners, photo.crops, strict=True)):
        moved = affine.copy()
        moved[:, 2] += affine[:, :2] @ (x, y)
        left, top, right, bottom = _span(crop, moved, size)
        if left < right and top < bottom:
            shown.append(index)
    return np.array(shown, np.int64)


def _span(crop: NDArray[np.uint8], affine: NDArray[np.float64], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of a canvas (height, width) that a crop may reach through ``affine``."""
    sides = np.array([[-1, -1], [-1, crop.shape[0]], [crop.shape[1], -1], crop.shape[::-1]], float)
    spanned = sides @ affine[:, :2].T + affine[:, 2]
    left, top = np.maximum(np.floor(spanned.min(axis=0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(spanned.max(axis=0)).astype(int) + 1, size[::-1]).tolist()
    return left, top, right, bottom


def paste(below: Canvas, above: Canvas, chosen: NDArray[np.bool_]) -> Canvas:
    """Copy the ``chosen`` objects (bool [N]) of ``above`` onto ``below``; what they cover is hidden."""
    if not chosen.any():
        return below
    cover = np.asarray(above.masks[chosen].any(axis=0))
    return cover_with(below, above, chosen, cover, np.where(cover[..., None], above.image, below.image))


def cover_with(
    below: Canvas, above: Canvas, chosen: NDArray[np.bool_], cover: NDArray[np.bool_], image: NDArray[np.uint8]
) -> Canvas:
    """The objects of ``below`` outside ``cover`` (bool [H, W]) and the ``chosen`` ones of ``above``, on ``image``."""
    pasted = above.masks[chosen]
    visible = below.masks & ~cover
    before, after = below.masks.sum(axis=(1, 2)), visible.sum(axis=(1, 2))
    kept = (after >= MIN_VISIBLE_PIXELS) & (after >= MIN_VISIBLE_SHARE * before)
    return Canvas(
        image,
        np.concatenate([visible[kept], pasted]),
        np.concatenate([below.class_ids[kept], above.class_ids[chosen]]),
        np.concatenate([below.iscrowd[kept], above.iscrowd[chosen]]),
    )


def jitter_color(image: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Vary brightness, contrast, saturation and tint of uint8 [H, W, 3], some of them without color; of another number
    of channels brightness, contrast and tint alone.
    """
    strength, tint, channels = config.brightness, config.tint, image.shape[-1]
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, 3)
    gains = brightness * (1 + rng.uniform(-tint, tint, channels))
    levels = np.arange(256)[:, None] * gains * contrast + 128 * brightness * (1 - contrast)
    table = np.clip(levels + 0.5, 0, 255).astype(np.uint8)
    image = np.asarray(cv2.LUT(image, table[None]), np.uint8).reshape(image.shape)
    if channels != RGB:
        return image
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if config.gray and rng.random() < config.gray:
        return np.asarray(gray, np.uint8)
    return np.asarray(cv2.addWeighted(image, saturation, gray, 1 - saturation, 0), np.uint8)


def mini_masks(masks: NDArray[np.bool_], boxes: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Each mask bool [H, W] cropped to its box (y1, x1, y2, x2) and resized: bool [N, *size]."""
    small = np.zeros((len(masks), *size), bool)
    for out, mask, (y1, x1, y2, x2) in zip(small, masks, boxes, strict=True):
        crop = mask[y1:y2, x1:x2].astype(np.float32)
        out[:] = cv2.resize(crop, size[::-1], interpolation=cv2.INTER_LINEAR) >= 0.5
    return small
