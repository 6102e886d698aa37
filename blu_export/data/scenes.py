"""Scenes: persons cut out of their photos with all that they wear, pasted onto backgrounds.

Photos of one whole standing person teach a model that anything at the lower edge is a shoe. A person of any
size, anywhere, cut off by the frame or by a table, in a place without other garments, teaches it otherwise.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from blu_export.data.augment import MIN_VISIBLE_PIXELS, AugmentConfig, Canvas, Photo, cover_with
from blu_export.data.dataset import CUTOUT

HEADROOM = (-0.1, 0.4)
"""Where the top of a person taller than the canvas lies, relative to the canvas: portraits show heads, not feet."""
PORTRAITS = 0.75
"""Probability of that; the others show any part."""
SHORTENED = 0.3
"""Probability that a person ends above the feet without the frame's help, as if standing behind a table."""
SHORTEST = 0.35
"""Of such a person's height, at least this share is left."""
SOFTEST = 1.2
"""Largest blur of a cut-out's edge, pixels: hard edges would be a mark of what is to be found."""


def cutout_box(photo: Photo) -> tuple[int, int, int, int]:
    """(y1, x1, y2, x2) of the cut-out on a photo, pixels."""
    index = int(np.flatnonzero(photo.class_ids == CUTOUT)[0])
    (y, x), (height, width) = photo.corners[index], photo.crops[index].shape
    return y, x, y + height, x + width


def without_cutouts(canvas: Canvas) -> Canvas:
    """The objects alone."""
    kept = canvas.class_ids != CUTOUT
    return (
        canvas if kept.all() else Canvas(canvas.image, canvas.masks[kept], canvas.class_ids[kept], canvas.iscrowd[kept])
    )


def person_affine(
    box: tuple[int, int, int, int], canvas: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The 2x3 map that takes the person in ``box`` (pixels of a photo) to a random place on the canvas (height, width).

    Its height is drawn from ``config.person``; its middle lies between the left and right edges; a person that fits
    may be cut off by at most a tenth at the top and four tenths at the bottom.
    """
    y1, x1, y2, x2 = box
    height = canvas[0] * float(np.exp(rng.uniform(*np.log(config.person))))
    scale = height / (y2 - y1)
    if height <= canvas[0]:
        top = rng.uniform(-0.1 * height, canvas[0] - 0.6 * height)
    elif rng.random() < PORTRAITS:
        top = canvas[0] * rng.uniform(*HEADROOM)
    else:
        top = rng.uniform(canvas[0] - height, 0.0)
    angle = np.deg2rad(rng.uniform(-config.rotation, config.rotation))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    mirror = -1.0 if rng.random() < config.flip else 1.0
    linear = np.array([[mirror * cos, -sin], [mirror * sin, cos]])
    target = np.array([rng.uniform(0.0, canvas[1]), top + height / 2])
    return np.concatenate([linear, (target - linear @ ((x1 + x2) / 2, (y1 + y2) / 2))[:, None]], axis=1)


def paste_person(below: Canvas, above: Canvas, rng: np.random.Generator) -> Canvas:
    """Paste the cut-out of ``above`` and the objects on it onto ``below``; sometimes its upper part alone."""
    cover = np.asarray(above.masks[above.class_ids == CUTOUT].any(axis=0))
    rows = np.flatnonzero(cover.any(axis=1))
    if len(rows) and rng.random() < SHORTENED:
        cover[rows[0] + int(len(rows) * rng.uniform(SHORTEST, 1.0)) :] = False
    alpha = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), rng.uniform(0.1, SOFTEST))[..., None]
    image = (below.image + alpha * (above.image.astype(np.float32) - below.image) + 0.5).astype(np.uint8)
    masks = above.masks & cover
    worn = (above.class_ids != CUTOUT) & (masks.sum(axis=(1, 2)) >= MIN_VISIBLE_PIXELS)
    return cover_with(below, Canvas(above.image, masks, above.class_ids, above.iscrowd), worn, cover, image)
