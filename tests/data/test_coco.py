"""The COCO reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blu_export.data.coco import load_coco
from blu_export.data.dataset import Segmentation, decode_mask, encode_mask
from blu_export.errors import DatasetError

RLE = {"size": [4, 6], "counts": [8, 4, 4, 4, 4]}  # columns 2 and 4


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """One photo with a polygon object of category 90 and a crowd of category 7; one photo without."""
    (tmp_path / "images").mkdir()
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    content = {
        "images": [
            {"id": 5, "file_name": "a.png", "height": 4, "width": 6},
            {"id": 6, "file_name": "b.png", "height": 4, "width": 6},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 90,
                "bbox": [1, 0, 3, 2],
                "segmentation": [[1, 0, 4, 0, 4, 2, 1, 2]],
            },
            {"id": 2, "image_id": 5, "category_id": 7, "bbox": [2, 0, 3, 4], "segmentation": RLE, "iscrowd": 1},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_reads_categories_boxes_and_crowds(coco: Path) -> None:
    dataset = load_coco(coco)
    assert dataset.class_names == ("BG", "train", "toothbrush")
    assert [len(record.annotations) for record in dataset.records] == [2, 0]
    brush, trains = dataset.records[0].annotations
    assert (brush.category, brush.box, brush.iscrowd) == (2, (0, 1, 2, 4), False)
    assert (trains.category, trains.iscrowd) == (1, True)
    assert len(dataset.limited(1)) == 1


def test_masks_of_polygons_and_rle(coco: Path) -> None:
    masks = load_coco(coco).load_masks(0)
    assert masks.shape == (2, 4, 6)
    expected = np.zeros((4, 6), bool)
    expected[0:2, 1:4] = True
    np.testing.assert_array_equal(masks[0], expected)
    np.testing.assert_array_equal(masks[1], np.isin(np.arange(6), (2, 4))[None].repeat(4, 0))
    assert load_coco(coco).load_masks(1).shape == (0, 4, 6)


def test_polygons_of_one_object_are_united() -> None:
    mask = decode_mask([[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]], 8, 8)
    assert mask[3, 3]
    assert mask.sum() == 16 + 16 - 4
    assert not decode_mask([[1, 1, 2, 2]], 8, 8).any()  # two points have no area


SIDES = st.integers(1, 40)


@given(SIDES, SIDES, st.lists(st.lists(st.floats(-1, 2, width=32), min_size=6, max_size=14), max_size=3))
def test_masks_equal_pycocotools(height: int, width: int, shares: list[list[float]]) -> None:
    from pycocotools import mask as coco_mask

    polygons = [[share * (height if i % 2 else width) for i, share in enumerate(polygon)] for polygon in shares]
    expected = np.zeros((height, width), bool)
    for polygon in polygons:
        expected |= coco_mask.decode(coco_mask.frPyObjects([polygon], height, width))[..., 0].astype(bool)
    np.testing.assert_array_equal(decode_mask(polygons, height, width), expected)
    counts = encode_mask(polygons, height, width)["counts"]
    for written in (counts, counts.encode()):
        rle = {"size": [height, width], "counts": written}
        np.testing.assert_array_equal(decode_mask(rle, height, width), expected)


BROKEN = [
    ([[0, 0, math.nan, 0, 4, 2]], "coordinate nan"),
    ([[0, 0, 4, 0, 4, math.inf]], "coordinate inf"),
    ([[0, 0, 3e8, 0, 4, 2]], r"coordinate 3e\+08 is not near a photo of 6x4"),
    ([[0, 0, 4, 0, 4, -4.1]], r"coordinate -4\.1"),
    ([[0, 0, None, 0, 4, 2]], "coordinate nan"),
    ([0, 0, 4, 0, 4, 2], "no list of polygons"),
    ([[[0, 0], [4, 0], [4, 2]]], "no list of polygons"),
    ("square", "could not convert"),
    (None, "not iterable"),
    ({"size": [4, 6]}, "'counts' is absent"),
    ({"size": [4, 6], "counts": "zzzzzz"}, "not COCO's"),
    ({"size": [4, 6], "counts": None}, "not text"),
    ({"size": [6, 4], "counts": [24]}, "cannot be of a photo of"),
    ({"size": [4, 6], "counts": [3, 20]}, "do not add up to 24"),
    ({"size": [4, 6], "counts": [3, -20, 41]}, "out of bounds"),
    ({"size": [4, 6], "counts": [2**40]}, "out of bounds"),
]


@pytest.mark.parametrize(("segmentation", "message"), BROKEN)
def test_broken_masks_are_refused(coco: Path, segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_mask(segmentation, 4, 6)
    content = json.loads(coco.read_text())
    content["annotations"][1]["segmentation"] = segmentation
    coco.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"object 2 on .*a\.png cannot be read: .*{message}"):
        load_coco(coco).load_masks(0)


def test_polygons_may_pass_the_edge_by_a_photo() -> None:
    outside: Segmentation = [[-6, -4, 12, -4, 12, 8, -6, 8]]
    assert decode_mask(outside, 4, 6).all()


def test_load_image(coco: Path) -> None:
    dataset = load_coco(coco)
    np.testing.assert_array_equal(dataset.load_image(0), np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    with pytest.raises(DatasetError, match="b.png cannot be read"):
        dataset.load_image(1)


def test_image_of_another_size_is_refused(coco: Path) -> None:
    Image.new("RGB", (9, 9)).save(coco.parent / "images" / "b.png")
    with pytest.raises(DatasetError, match="is 9x9, its annotation says 6x4"):
        load_coco(coco).load_image(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, "not a COCO instances file"),
        ({"images": []}, "refers to photo 5"),
        ({"categories": [{"id": 7, "name": "train"}]}, "category 90"),
        ({"categories": [{"id": 7}, {"id": 90}]}, r"not a COCO instances file: categories\[0\]: 'name' is absent"),
        ({"images": None}, "not a COCO instances file: images: "),
    ],
)
def test_broken_files_are_named(coco: Path, change: dict[str, Any], message: str) -> None:
    coco.write_text(json.dumps(json.loads(coco.read_text()) | change))
    with pytest.raises(DatasetError, match=message):
        load_coco(coco)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("images", "height", None, "None"),
        ("images", "height", "tall", "tall"),
        ("images", "height", -60, "no photo is 6x-60"),
        ("images", "height", 0, "no photo is 6x0"),
        ("images", "width", 10**7, "no photo is 10000000x4"),
        ("images", "width", math.inf, "infinity"),
        ("images", "file_name", 3, "int"),
        ("images", "id", 5, "the id 5 is there twice"),
        ("images", "id", [6], "unhashable"),
        ("categories", "id", 90, "the id 90 is there twice"),
        ("annotations", "bbox", ["a", 0, 3, 2], "'a'"),
        ("annotations", "bbox", [0, 0, 3], "not enough values"),
        ("annotations", "bbox", [0, 0, 3, math.nan], "nan is no number of pixels"),
        ("annotations", "bbox", [0, 0, 3, 10**400], "too large"),
        ("annotations", "area", None, "None"),
    ],
)
def test_broken_entries_are_named(coco: Path, kind: str, field: str, value: object, message: str) -> None:
    content = json.loads(coco.read_text())
    content[kind][1][field] = value
    coco.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"instances\.json is not .*: {kind}\[1\]: .*{message}"):
        load_coco(coco)


def test_photos_too_large_for_masks_are_refused(coco: Path) -> None:
    content = json.loads(coco.read_text())
    content["images"][0] |= {"height": 60_000, "width": 60_000}
    coco.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"images\[0\]: no photo is 60000x60000"):
        load_coco(coco)


def test_numbers_may_be_text(coco: Path) -> None:
    content = json.loads(coco.read_text())
    content["images"][0]["height"] = "4"
    content["annotations"][0]["bbox"] = ["1", "0", "3", "2"]
    coco.write_text(json.dumps(content))
    record = load_coco(coco).records[0]
    assert (record.height, record.annotations[0].box) == (4, (0, 1, 2, 4))


@pytest.mark.parametrize("text", ["", "[1, 2]", '"x"', "{"])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=str(path.name)):
        load_coco(path)
    with pytest.raises(DatasetError, match="absent.json cannot be read: it does not exist"):
        load_coco(tmp_path / "absent.json")
