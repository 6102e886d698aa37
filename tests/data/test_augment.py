"""Augmentation: image, masks and boxes move together."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blu_export.data.augment import (
    AugmentConfig,
    Canvas,
    Photo,
    jitter_color,
    mask_box,
    mini_masks,
    paste,
    place,
    random_affine,
)

STRONG = AugmentConfig(flip=0.5, scale=(0.5, 2.0), rotation=15.0)


def photo_of_rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> Photo:
    """A red rectangle on green; the mask is the rectangle."""
    image = np.full((*size, 3), (0, 200, 0), np.uint8)
    mask = np.zeros((1, *size), bool)
    mask[0, box[0] : box[2], box[1] : box[3]] = True
    image[mask[0]] = (200, 0, 0)
    return Photo.from_masks(image, mask, np.array([3], np.int32), np.array([False]))


@given(
    height=st.integers(40, 200),
    width=st.integers(40, 200),
    seed=st.integers(0, 10_000),
    canvas=st.sampled_from([(64, 64), (128, 64), (64, 192)]),
)
def test_masks_follow_the_pixels(height: int, width: int, seed: int, canvas: tuple[int, int]) -> None:
    box = (height // 4, width // 4, 3 * height // 4, 3 * width // 4)
    photo = photo_of_rectangle((height, width), box)
    affine = random_affine((height, width), canvas, 1.0, STRONG, np.random.default_rng(seed))
    drawn = place(photo, affine, canvas)
    red = (drawn.image[..., 0] > 100) & (drawn.image[..., 1] < 100)
    if not len(drawn.masks):
        assert red.sum() < 3 * sum(canvas)  # only a sliver can get lost
        return
    different = red != drawn.masks[0]
    # They may differ only where the edge is blended.
    assert different.sum() <= 0.1 * red.sum() + 2 * sum(canvas) * 0.1
    assert drawn.class_ids.tolist() == [3]


@given(seed=st.integers(0, 10_000))
def test_a_mask_lands_where_the_whole_mask_would(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, 90, 120), bool)
    for mask in masks:
        y, x = rng.integers(0, 80), rng.integers(0, 110)
        mask[y : y + rng.integers(2, 60), x : x + rng.integers(2, 60)] = True
        mask &= rng.random(mask.shape) < 0.9
    image = np.zeros((90, 120, 3), np.uint8)
    photo = Photo.from_masks(image, masks, np.arange(1, 4, dtype=np.int32), np.zeros(3, bool))
    affine = random_affine((90, 120), (64, 128), 1.0, STRONG, rng)
    drawn = place(photo, affine, (64, 128))
    whole = [cv2.warpAffine(mask.astype(np.uint8) * 255, affine, (128, 64)) > 127 for mask in masks]
    visible = [mask for mask in whole if mask.sum() >= 16 + 2]
    assert len(drawn.masks) >= len(visible)
    for class_id, mask in zip(drawn.class_ids, drawn.masks, strict=True):
        # OpenCV rounds places to 1/32 pixel, differently for another origin.
        assert (mask != whole[class_id - 1]).sum() <= 2 + 0.02 * mask.sum()


def test_flip_mirrors_exactly() -> None:
    photo = photo_of_rectangle((64, 64), (10, 5, 30, 25))
    flipped = place(photo, random_affine((64, 64), (64, 64), 1.0, AugmentConfig(1.0, (1, 1)), _rng()), (64, 64))
    np.testing.assert_array_equal(flipped.image, photo.image[:, ::-1])
    assert mask_box(flipped.masks[0]) == (10, 64 - 25, 30, 64 - 5)


def test_no_augmentation_changes_nothing() -> None:
    photo = photo_of_rectangle((64, 128), (10, 5, 30, 25))
    off = AugmentConfig(0, (1, 1), 0, 0, 0, 0)
    drawn = place(photo, random_affine((64, 128), (64, 128), 1.0, off, _rng()), (64, 128))
    np.testing.assert_array_equal(drawn.image, photo.image)
    np.testing.assert_array_equal(jitter_color(photo.image, off, _rng()), photo.image)
    assert mask_box(drawn.masks[0]) == (10, 5, 30, 25)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scale_scales_the_box(scale: float) -> None:
    photo = photo_of_rectangle((100, 100), (40, 30, 60, 70))
    affine = random_affine((100, 100), (256, 256), scale, AugmentConfig(0, (1, 1)), _rng())
    box = mask_box(place(photo, affine, (256, 256)).masks[0])
    assert box is not None
    assert box[2] - box[0] == pytest.approx(20 * scale, abs=1)
    assert box[3] - box[1] == pytest.approx(40 * scale, abs=1)


def test_objects_outside_the_canvas_are_dropped() -> None:
    photo = photo_of_rectangle((100, 100), (0, 0, 20, 20))
    away = np.array([[1.0, 0.0, -50.0], [0.0, 1.0, -50.0]])
    assert len(place(photo, away, (64, 64)).masks) == 0


def test_paste_hides_what_it_covers() -> None:
    below = place(photo_of_rectangle((64, 64), (0, 0, 40, 40)), _identity(), (64, 64))
    above = place(photo_of_rectangle((64, 64), (20, 20, 60, 60)), _identity(), (64, 64))
    both = paste(below, above, np.array([True]))
    assert both.masks.sum(axis=0).max() == 1  # no pixel belongs to two objects
    assert both.masks[0].sum() == 40 * 40 - 20 * 20
    assert both.masks[1].sum() == 40 * 40
    np.testing.assert_array_equal(both.image[both.masks[1]], above.image[both.masks[1]])
    np.testing.assert_array_equal(both.image[~both.masks[1]], below.image[~both.masks[1]])


def test_paste_drops_an_object_that_is_covered() -> None:
    below = place(photo_of_rectangle((64, 64), (20, 20, 30, 30)), _identity(), (64, 64))
    above = place(photo_of_rectangle((64, 64), (10, 10, 60, 60)), _identity(), (64, 64))
    assert len(paste(below, above, np.array([True])).masks) == 1
    assert paste(below, above, np.array([False])) is below


def test_gray_samples_have_no_color_and_others_keep_theirs() -> None:
    image = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
    calm = {"brightness": 0.0, "tint": 0.0}
    gray = jitter_color(image, AugmentConfig(gray=1.0, **calm), _rng())
    assert (gray == gray[..., :1]).all()
    assert gray.std() > 10
    np.testing.assert_array_equal(jitter_color(image, AugmentConfig(gray=0.0, **calm), _rng()), image)


def test_color_jitter_keeps_order_and_changes_brightness() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    jittered = jitter_color(image, AugmentConfig(brightness=0.4, tint=0.0), _rng())
    assert (np.diff(jittered[0, :, 0].astype(int)) >= 0).all()
    assert (jittered != image).any()


def test_mini_mask_is_the_crop() -> None:
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 8:36, 16:44] = True
    mask[0, 8:22, 16:30] = False  # upper left quarter
    small = mini_masks(mask, np.array([[8, 16, 36, 44]], np.int32), (28, 28))
    np.testing.assert_array_equal(small[0], mask[0, 8:36, 16:44])


def test_photo_without_objects() -> None:
    photo = Photo.from_masks(
        np.zeros((32, 32, 3), np.uint8), np.zeros((0, 32, 32), bool), np.zeros(0, np.int32), np.zeros(0, bool)
    )
    drawn = place(photo, _identity(), (64, 64))
    assert isinstance(drawn, Canvas)
    assert drawn.masks.shape == (0, 64, 64)


def _identity() -> np.ndarray:
    return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)
