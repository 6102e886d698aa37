"""Tiles: windows that cover the photo, and each thing found once whichever tiles saw it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from blu_export import Detections, load
from blu_export.detector import Detector
from blu_export.embedded import DEMO_PHOTO, embedded
from blu_export.errors import UsageError
from blu_export.image import decode
from blu_export.runtime.base import Runner
from blu_export.spec import ModelSpec
from blu_export.tiles import Tiling, merge_tiles

CLASSES = ("BG", "coat", "shoe")
Size = tuple[int, int]


class Blobs(Runner):
    """A network that finds rectangles of at least 8 pixels on black: red ones are coats, green ones shoes."""

    runtime, device, precision = "blobs", "none", "float32"

    def __init__(self) -> None:
        self.spec = ModelSpec(
            class_names=CLASSES, image_min_dim=256, image_max_dim=256, detection_max_instances=50, mean_pixel=(0, 0, 0)
        )
        self.canvases = 0

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.canvases += len(canvas)
        rows = np.zeros((len(canvas), 50, 6), np.float32)
        masks = np.ones((len(canvas), 50, 28, 28), np.float32)
        for picture, own in zip(canvas, rows, strict=True):
            places = iter(own)
            for class_id, channel in ((1, 0), (2, 1)):
                _, _, stats, _ = cv2.connectedComponentsWithStats((picture[..., channel] > 127).astype(np.uint8))
                for left, top, width, height, _ in stats[1:].tolist():
                    if min(width, height) >= 8:
                        box = np.array([top, left, top + height - 1, left + width - 1]) / 255
                        next(places)[:] = (*box, class_id, 0.5 + min(width * height, 30_000) / 65_536)
        return rows, masks


def photo(size: Size, *boxes: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """Black, with rectangles (class, y1, x1, y2, x2)."""
    image = np.zeros((*size, 3), np.uint8)
    for class_id, y1, x1, y2, x2 in boxes:
        image[y1:y2, x1:x2, class_id - 1] = 255
    return image


def test_a_mosaic_has_each_thing_once() -> None:
    size = (1500, 2100)
    things = [(1 + (x + y) % 2, y, x, y + 20, x + 28) for y in range(10, 1450, 90) for x in range(15, 2050, 110)]
    runner = Blobs()
    image = photo(size, *things)
    assert not len(Detector(runner)(image))  # scaled down they are too small
    found = Detector(runner)(image, tile=256, batch=4)
    assert runner.canvases == 2 + len(Tiling(256).windows(size)) - 1
    expected = {(class_id, *box) for class_id, *box in things}
    near = {
        (class_id, *box)
        for class_id, roi in zip(found.class_ids.tolist(), found.rois.tolist(), strict=True)
        for box in [min((thing[1:] for thing in things), key=lambda box: np.abs(np.subtract(box, roi)).sum())]
        if np.abs(np.subtract(box, roi)).max() <= 2
    }
    assert (len(found), near) == (len(things), expected)


def test_what_is_larger_than_a_tile_is_one() -> None:
    image = photo((1000, 1000), (1, 100, 100, 900, 900), (2, 940, 20, 960, 44))
    found = Detector(Blobs())(image, tile=256)
    assert [found.class_names[each] for each in found.class_ids] == ["coat", "shoe"]
    np.testing.assert_allclose(found.rois, [[100, 100, 900, 900], [940, 20, 960, 44]], atol=6)


def test_a_long_thing_of_several_tiles_is_joined() -> None:
    # Too thin for the whole photo, too long for a tile.
    image = photo((400, 3000), (1, 190, 100, 230, 2900))
    found = Detector(Blobs())(image, tile=300)
    np.testing.assert_allclose(found.rois, [[190, 100, 230, 2900]], atol=3)
    assert found.areas[0] == pytest.approx(40 * 2800, rel=0.05)


def test_two_things_that_touch_stay_two() -> None:
    size = (200, 400)
    windows = Tiling(200, 0.5).windows(size)

    def seen(y1: int, x1: int, y2: int, x2: int, window: tuple[int, int, int, int]) -> Detections:
        top, left, bottom, right = window
        roi = np.array([[max(y1, top) - top, max(x1, left) - left, min(y2, bottom) - top, min(x2, right) - left]])
        if (roi[:, 2:] <= roi[:, :2]).any():
            return Detections.empty((bottom - top, right - left), CLASSES)
        crop = np.ones(roi[0, 2:] - roi[0, :2], bool)
        return Detections(roi, np.array([1]), np.array([0.9]), (crop,), (bottom - top, right - left), CLASSES)

    things = [(10, 100, 190, 195), (10, 195, 190, 290)]
    parts = [Detections.merge([seen(*thing, window) for thing in things]) for window in windows]
    merged = merge_tiles(windows, parts, size)
    assert sorted(merged.rois.tolist()) == sorted(map(list, things))


def test_the_demo_photo_four_times_over() -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra cpu")
    demo = decode(embedded(DEMO_PHOTO))
    one = np.full((max(demo.shape), max(demo.shape), 3), 127, np.uint8)
    one[: len(demo), : demo.shape[1]] = demo
    mosaic = np.tile(one, (2, 2, 1))
    with load(threads=1).runner as runner:
        detector = Detector(runner, 0.6)
        found = detector(one)
        whole, tiled = detector(mosaic), detector(mosaic, tile=len(one), overlap=0)
    counts = [np.bincount(each.class_ids, minlength=20) for each in (found, tiled)]
    assert len(found)
    assert (counts[1] >= 4 * counts[0]).all()
    # The whole mosaic adds what it sees at its own scale, but nothing that a tile has: instances of one class cover
    # each other no more than the model itself lets them.
    assert doubled(tiled) <= max(0.5, doubled(found), doubled(whole))


def doubled(found: Detections) -> float:
    """The largest IoU of two masks of one class."""
    overlaps = np.array(coco_mask.iou(found.rles(), found.rles(), [0] * len(found)))
    overlaps[found.class_ids[:, None] != found.class_ids] = 0
    np.fill_diagonal(overlaps, 0)
    return float(overlaps.max())


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)), st.integers(32, 400), st.floats(0, 0.9, allow_subnormal=False)
)
def test_windows_cover_the_photo(size: Size, side: int, overlap: float) -> None:
    windows = Tiling(side, overlap).windows(size)
    assert windows[0] == (0, 0, *size)
    seen = np.zeros(size, bool)
    for y1, x1, y2, x2 in windows[1:] or windows:
        assert 0 <= y1 < y2 <= size[0] and 0 <= x1 < x2 <= size[1]
        assert (y2 - y1, x2 - x1) == (min(side, size[0]), min(side, size[1]))
        seen[y1:y2, x1:x2] = True
    assert seen.all()
    for starts in ({y1 for y1, *_ in windows[1:]}, {x1 for _, x1, *_ in windows[1:]}):
        steps = np.diff(sorted(starts))
        assert (steps <= np.ceil(side * (1 - overlap)) + 1).all()


def test_photos_that_fail_keep_their_place() -> None:
    good = photo((300, 300), (1, 10, 10, 60, 60))
    sources = [b"no picture", good, b"none either", good, b"nor this"]
    photos = list(Detector(Blobs()).stream(sources, tiling=Tiling(200)))
    assert [each.error is None for each in photos] == [False, True, False, True, False]
    assert [len(each.result()) for each in photos if each.error is None] == [1, 1]


@pytest.mark.parametrize("values", [(10, 0.2), (256, -0.1), (256, 0.95)])
def test_impossible_tiles(values: tuple[int, float]) -> None:
    with pytest.raises(UsageError):
        Tiling(*values)
