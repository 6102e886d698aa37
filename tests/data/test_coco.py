"""The COCO reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blu_export.data.coco import load_coco
from blu_export.data.dataset import decode_mask
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
        ({"categories": [{"id": 7}, {"id": 90}]}, "not a COCO instances file"),
    ],
)
def test_broken_files_are_named(coco: Path, change: dict[str, Any], message: str) -> None:
    coco.write_text(json.dumps(json.loads(coco.read_text()) | change))
    with pytest.raises(DatasetError, match=message):
        load_coco(coco)


@pytest.mark.parametrize("text", ["", "[1, 2]", '"x"', "{"])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=str(path.name)):
        load_coco(path)
    with pytest.raises(DatasetError, match="absent.json cannot be read: it does not exist"):
        load_coco(tmp_path / "absent.json")
