"""Photos for training: masks without full-size copies; what cannot be read is left out."""

from __future__ import annotations

import logging
import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blu_export.data.dataset import Annotation, Dataset, Record, encode_mask
from blu_export.data.photos import PhotoStore, load_photo, shrink_mask
from blu_export.errors import DatasetError
from blu_export.rle import Rle, decode_crop, decode_rle, encode_rle


def rle_of(mask: np.ndarray) -> Rle:
    return encode_rle(mask, (0, 0, *mask.shape), mask.shape)


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_crop_is_the_mask_inside_its_box(height: int, width: int, random: object) -> None:
    rng = np.random.default_rng(random.randrange(2**32))  # type: ignore[attr-defined]
    mask = rng.random((height, width)) < rng.choice([0.0, 0.1, 0.9])
    crop, (top, left) = decode_crop(rle_of(mask), (height, width))
    pasted = np.zeros_like(mask)
    pasted[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    np.testing.assert_array_equal(pasted, mask)
    if mask.any():
        assert crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any()
    else:
        assert crop.size == 0


@pytest.mark.parametrize("size", [(50, 77), (37, 56), (99, 154), (1, 1)])
def test_a_shrunk_mask_is_the_whole_one_resized(size: tuple[int, int]) -> None:
    shape, differ, total = (100, 155), 0, 0
    for number in range(20):
        rng = np.random.default_rng(number)
        mask = np.zeros(shape, np.uint8)
        cv2.fillPoly(mask, [rng.integers(-20, 170, (5, 2)).astype(np.int32)], 1)
        expected = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR) > 0
        crop, (top, left) = shrink_mask(rle_of(mask > 0), shape, size)
        pasted = np.zeros(size, bool)
        pasted[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        differ += int((pasted != expected).sum())
        total += int(expected.sum())
    assert differ <= 0.01 * total  # ties at one half: OpenCV rounds its weights


class Gray(Dataset):
    """Photos without files; those in ``broken`` cannot be read."""

    broken: frozenset[int] = frozenset()

    def load_image(self, index: int) -> np.ndarray:
        if index in self.broken:
            raise DatasetError(f"The photo {self.records[index].uri} is cut off.")
        record = self.records[index]
        return np.full((record.height, record.width, 3), index, np.uint8)


def gray(count: int, broken: tuple[int, ...] = ()) -> Gray:
    square = Annotation(1, (10, 20, 40, 60), [[20, 10, 60, 10, 60, 40, 20, 40]])
    dataset = Gray(("BG", "a"), tuple(Record(i, f"{i}.jpg", 100, 80, (square,)) for i in range(count)))
    object.__setattr__(dataset, "broken", frozenset(broken))
    return dataset


def test_hundreds_of_masks_of_a_large_photo_fit_in_little_memory() -> None:
    corners = [(x, y) for y in range(0, 1200, 40) for x in range(0, 1600, 160)]
    objects = tuple(
        Annotation(1, (y, x, y + 30, x + 90), [[x, y, x + 90, y, x + 90, y + 30, x, y + 30]]) for x, y in corners
    )
    dataset = gray(1)
    dataset = replace(dataset, records=(Record(0, "0.jpg", 1200, 1600, objects),))
    object.__setattr__(dataset, "broken", frozenset())
    tracemalloc.start()
    photo = load_photo(dataset, 0, 400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(photo.crops) == 300
    assert photo.image.shape == (300, 400, 3)
    assert photo.crops[0].shape == (8, 23)  # of 30 x 90 pixels, a quarter: 7.5 x 22.5
    assert peak < 2 * 1200 * 1600 * 3  # whole masks would take 576 MB


def test_the_next_photo_stands_for_one_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    store = PhotoStore(gray(10, broken=(3, 4, 9)), 1000, 0, unreadable=0.3)
    with caplog.at_level(logging.WARNING):
        shown = [int(store[i].image[0, 0, 0]) for i in (3, 9, 4, 3, 5)]
    assert shown == [5, 0, 5, 5, 5]
    assert [record.message for record in caplog.records] == [
        f"left out: The photo {i}.jpg is cut off." for i in (3, 4, 9)
    ]  # each once
    assert list(store.unreadable.reasons) == ["3.jpg", "4.jpg", "9.jpg"]
    assert 9 in store.unreadable and 5 not in store.unreadable


def test_too_many_unreadable_photos_are_an_error() -> None:
    store = PhotoStore(gray(200, broken=(3, 5, 8)), 1000, 0)
    assert [int(store[i].image[0, 0, 0]) for i in (3, 5)] == [4, 6]
    with pytest.raises(
        DatasetError, match=r"3 of the 200 photos of data set cannot be read, more than 1 %. The photo 8"
    ):
        store[8]


def test_a_mask_that_cannot_be_decoded_makes_its_photo_unreadable() -> None:
    dataset = gray(2)
    broken = replace(dataset.records[0].annotations[0], segmentation={"size": [100, 80], "counts": "??"})
    records = (replace(dataset.records[0], annotations=(broken,)), dataset.records[1])
    store = PhotoStore(Dataset(dataset.class_names, records), 1000, 0, unreadable=1.0)
    with pytest.raises(DatasetError, match=r"No photo of data set can be read"):
        store[0]
    assert len(store.unreadable) == 2


def test_masks_are_those_of_the_annotations() -> None:
    photo = load_photo(gray(1), 0, 1000)
    mask = decode_rle(encode_mask([[20, 10, 60, 10, 60, 40, 20, 40]], 100, 80), (100, 80))
    (y, x), crop = photo.corners[0], photo.crops[0]
    np.testing.assert_array_equal(mask[y : y + crop.shape[0], x : x + crop.shape[1]], crop > 0)
    assert mask.sum() == (crop > 0).sum()
