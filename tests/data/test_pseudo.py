"""Pseudo-labels: what tags make of detections, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from blu_export.cli.data_label import read_tags
from blu_export.data.dataset import Annotation, Record
from blu_export.data.formats.coco import load_coco
from blu_export.data.options import ReadOptions
from blu_export.data.pseudo import pseudo_labels, region_labels
from blu_export.detections import Detections
from blu_export.errors import DatasetError

NAMES = ("BG", "hat", "shoes", "bag")


def found(*pairs: tuple[int, float]) -> Detections:
    """One 4x3 box per (class id, score) on a photo of 20x10."""
    rois = np.array([[2, 1, 6, 4]] * len(pairs), np.int32).reshape(-1, 4)
    ids, scores = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    crops = tuple(np.ones((4, 3), bool) for _ in pairs)
    return Detections(rois, np.array(ids, np.int32), np.array(scores, np.float32), crops, (20, 10), NAMES)


def test_tags_correct_what_was_found(tmp_path: Path) -> None:
    photos = [
        ("/a.jpg", ["hat", "shoes"], found((1, 0.9), (3, 0.8), (2, 0.7), (2, 0.3), (1, 0.1))),
        ("/missing.jpg", ["hat", "bag"], found((1, 0.9))),
        ("/doubtful.jpg", ["hat"], found((1, 0.4))),
        ("/nothing.jpg", [], found((1, 0.9))),
    ]
    content = pseudo_labels(photos, NAMES, keep=0.5, doubt=0.2)
    assert [image["file_name"] for image in content["images"]] == ["/a.jpg", "/nothing.jpg"]
    (tmp_path / "pseudo.json").write_text(json.dumps(content))
    dataset = load_coco(tmp_path / "pseudo.json", options=ReadOptions(keep_empty_classes=True))
    assert dataset.class_names == NAMES
    objects = [(a.category, a.iscrowd) for a in dataset.records[0].annotations]
    assert objects == [(1, False), (2, False), (2, True)]  # no bag; the doubtful shoe neither right nor wrong
    assert dataset.records[0].annotations[0].box == (2, 1, 6, 4)
    assert dataset.load_masks(0)[0].sum() == 12
    assert dataset.records[1].annotations == ()


def test_tags_are_lists_or_objects(tmp_path: Path) -> None:
    path = tmp_path / "tags.json"
    path.write_text(json.dumps({"a.jpg": ["hat"], "b.jpg": {"classes": ["bag"], "tags": ["red"]}}))
    assert read_tags(path) == {"a.jpg": ["hat"], "b.jpg": ["bag"]}


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a.jpg": "hat"}', '{"a.jpg": [3]}', '{"a.jpg": {"tags": []}}'])
def test_other_tags_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tags.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"tags\.json"):
        read_tags(path)


def test_detections_in_regions_are_objects_and_the_rest_stays_crowd(tmp_path: Path) -> None:
    region = Annotation(1, (0, 0, 10, 10), [[0, 0, 10, 0, 10, 10, 0, 10]], iscrowd=True)
    small = Annotation(2, (2, 1, 6, 4), [[1, 2, 4, 2, 4, 6, 1, 6]], iscrowd=True)
    record = Record(7, "/a.jpg", 20, 10, (region, small))
    rois = np.array([[2, 1, 6, 4], [6, 2, 12, 4], [7, 2, 12, 4], [14, 1, 18, 4], [0, 5, 4, 8]], np.int32)
    sides = [(y2 - y1, x2 - x1) for y1, x1, y2, x2 in rois.tolist()]
    scores = np.array([0.9, 0.8, 0.8, 0.9, 0.4], np.float32)
    crops = tuple(np.ones(side, bool) for side in sides)
    crops[1][5:] = False  # 4 of 5 rows lie in the region; of the third, 3 of 5
    found = Detections(rois, np.array([1, 2, 2, 1, 1], np.int32), scores, crops, (20, 10), NAMES)
    content = region_labels([(record, found), (record, found[3:])], NAMES, keep=0.5)
    assert [image["file_name"] for image in content["images"]] == ["/a.jpg"]
    (tmp_path / "pseudo.json").write_text(json.dumps(content))
    dataset = load_coco(tmp_path / "pseudo.json", options=ReadOptions(keep_empty_classes=True))
    first, second, crowd = dataset.records[0].annotations
    assert [each.category for each in (first, second, crowd)] == [1, 2, 1]
    assert [each.iscrowd for each in (first, second, crowd)] == [False, False, True]  # the small region is taken whole
    masks = dataset.load_masks(0)
    assert masks[0].sum() == 12 and masks[1].sum() == 10
    assert masks[2].sum() == 100 - 12 - 8 and not (masks[2] & masks[:2].any(axis=0)).any()


def test_regions_of_another_size_are_refused() -> None:
    record = Record(7, "/a.jpg", 10, 20, ())
    with pytest.raises(DatasetError, match="10x20 pixels, its regions are of 20x10"):
        region_labels([(record, found((1, 0.9)))], NAMES, keep=0.5)
