"""Pictures of detections: what is drawn lies where it should, and stays inside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.draw import color_of, contact_sheet, overlay

CLASSES = ("BG", "coat", "shoe", "a class with an extraordinarily long name")


def gray(height: int, width: int, level: int = 90) -> NDArray[np.uint8]:
    return np.full((height, width, 3), level, np.uint8)


def found(image_size: tuple[int, int], *rois: tuple[int, int, int, int], class_id: int = 1) -> Detections:
    """Full masks in these boxes."""
    return Detections(
        np.array(rois, np.int32).reshape(-1, 4),
        np.full(len(rois), class_id, np.int32),
        np.full(len(rois), 0.9, np.float32),
        tuple(np.ones((y2 - y1, x2 - x1), bool) for y1, x1, y2, x2 in rois),
        image_size,
        CLASSES,
    )


def changed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.any(before != after, axis=-1)


def test_the_photo_is_left_alone() -> None:
    image = gray(100, 160)
    image.setflags(write=False)  # as decode may give it
    drawn = overlay(image, found((100, 160), (20, 30, 60, 90)))
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    assert drawn.flags.writeable
    assert (image == 90).all()


def test_nothing_found_draws_nothing() -> None:
    image = gray(30, 40)
    np.testing.assert_array_equal(overlay(image, Detections.empty((30, 40), CLASSES)), image)


def test_a_mask_is_mixed_with_its_color() -> None:
    image = gray(100, 160)
    crop = np.zeros((40, 60), bool)
    crop[5:20, 10:50] = True
    full = found((100, 160), (20, 30, 60, 90))
    detections = Detections(full.rois, full.class_ids, full.scores, (crop,), full.image_size, CLASSES)
    drawn = overlay(image, detections, fill=0.5, boxes=False, labels=False)
    np.testing.assert_allclose(drawn[33, 60], (90 + np.array(color_of(1))) / 2, atol=1)
    np.testing.assert_allclose(drawn[25, 50], color_of(1), atol=12)  # the outline
    rows, columns = np.nonzero(changed(image, drawn))
    # The mask and the width of a line around it.
    assert rows.min() in (23, 24, 25)
    assert rows.max() in (39, 40, 41)
    assert columns.min() in (38, 39, 40)
    assert columns.max() in (79, 80, 81)


def test_a_box_is_drawn_on_its_edge() -> None:
    image = gray(100, 160)
    drawn = overlay(image, found((100, 160), (20, 30, 60, 90)), fill=0, labels=False)
    where = changed(image, drawn)
    assert where[[20, 59], 30:90].all()
    assert where[20:60, [30, 89]].all()
    assert not where[24:56, 34:86].any()


def test_small_instances_stay_visible_in_front_of_large_ones() -> None:
    image = gray(100, 160)
    rois = [(40, 60, 60, 90), (0, 0, 100, 160)]
    for order in (rois, rois[::-1]):
        detections = found((100, 160), *order)
        ids = np.array([2 if roi == rois[0] else 1 for roi in order], np.int32)
        detections = Detections(
            detections.rois, ids, detections.scores, detections.crops, detections.image_size, CLASSES
        )
        drawn = overlay(image, detections, fill=1, boxes=False, labels=False)
        assert drawn[50, 75].tolist() == list(color_of(2))
        assert drawn[10, 10].tolist() == list(color_of(1))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.data())
def test_any_size_of_photo_and_box(height: int, width: int, data: st.DataObject) -> None:
    rois = []
    for _ in range(data.draw(st.integers(1, 4))):
        y1, x1 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        rois.append((y1, x1, data.draw(st.integers(y1 + 1, height)), data.draw(st.integers(x1 + 1, width))))
    detections = found((height, width), *rois, class_id=data.draw(st.sampled_from([1, 3])))
    drawn = overlay(gray(height, width), detections, by=data.draw(st.sampled_from(["class", "instance"])))
    assert drawn.shape == (height, width, 3)
    for y1, x1, y2, x2 in rois:
        assert changed(gray(height, width), drawn)[y1:y2, x1:x2].any()


def test_labels_stay_inside_and_apart() -> None:
    size = (300, 400)
    # In each corner, and one above another: every label is whole, so each adds as many pixels as one alone.
    rois = [(0, 0, 30, 40), (0, 360, 30, 400), (270, 0, 300, 40), (270, 360, 300, 400), (140, 180, 170, 220)]
    rois.append((141, 180, 171, 220))

    def label_pixels(*boxes: tuple[int, int, int, int]) -> int:
        plain = overlay(gray(*size), found(size, *boxes), fill=0, boxes=False, labels=False)
        drawn = overlay(gray(*size), found(size, *boxes), fill=0, boxes=False)
        return int(changed(plain, drawn).sum())

    alone = [label_pixels(roi) for roi in rois]
    assert min(alone) > 300
    assert label_pixels(*rois) == pytest.approx(sum(alone), rel=0.03)


def test_lines_and_letters_grow_with_the_photo() -> None:
    shares = []
    for factor in (4, 12):
        size = (200 * factor, 300 * factor)
        roi = (80 * factor, 90 * factor, 160 * factor, 200 * factor)
        drawn = overlay(gray(*size), found(size, roi), fill=0)
        shares.append(changed(gray(*size), drawn).mean())
    assert shares[1] == pytest.approx(shares[0], rel=0.4)


def test_colors() -> None:
    colors = [color_of(key) for key in range(1, 121)]
    assert len(set(colors)) == 120
    assert color_of(121) == colors[0]
    # The classes of a usual model are far from each other, and from black.
    first = np.array(colors[:13], float)
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1)
    assert distances[~np.eye(13, dtype=bool)].min() > 50
    assert first.max(axis=1).min() > 150


def test_instances_can_have_their_own_colors() -> None:
    image = gray(100, 160)
    detections = found((100, 160), (10, 10, 50, 50), (10, 90, 50, 140))
    by_class = overlay(image, detections, labels=False)
    by_instance = overlay(image, detections, by="instance", labels=False)
    np.testing.assert_array_equal(by_class[30, 30], by_class[30, 120])
    assert (by_instance[30, 30] != by_instance[30, 120]).any()


def test_detections_of_another_photo() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        overlay(gray(30, 40), Detections.empty((40, 30), CLASSES))


def test_contact_sheet() -> None:
    images = [gray(50, 100, 10), gray(100, 50, 20), gray(1, 1, 30), gray(30, 30, 40), gray(3, 900, 50)]
    sheet = contact_sheet(images, tile=80)
    assert sheet.shape == (2 * 84 + 4, 3 * 84 + 4, 3)
    for level in (10, 20, 30, 40, 50):
        assert (sheet == level).all(axis=-1).sum() >= 80  # all are there
    titled = contact_sheet(images, ["one", "two", "", "four", "five, which is much too long to fit below it"], tile=80)
    assert titled.shape[0] > sheet.shape[0]
    assert contact_sheet(images, columns=5, tile=80).shape == (84 + 4, 5 * 84 + 4, 3)
    for wrong, titles in (([], []), (images, ["one"])):
        with pytest.raises(ValueError, match="contact sheet"):
            contact_sheet(wrong, titles)


def test_the_page_has_the_same_colors() -> None:
    import re
    from importlib.resources import files

    page = files("blu_export").joinpath("serve", "static", "palette.js").read_text(encoding="utf-8")
    colors = re.findall(r'"#([0-9a-f]{6})"', page.partition("];")[0])
    assert [tuple(bytes.fromhex(color)) for color in colors] == [color_of(key) for key in range(1, 121)]
    assert color_of(121) == color_of(1)
