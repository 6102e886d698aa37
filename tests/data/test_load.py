"""Finding the annotations of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blu_export.data.load import has_split, load_dataset
from blu_export.errors import DatasetError

CONTENT = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [],
}


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("instances_train.json", "images"),
        ("instances_train.json", "."),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "annotations/images"),
    ],
)
def test_layouts(tmp_path: Path, annotations: str, images: str) -> None:
    (tmp_path / annotations).parent.mkdir(exist_ok=True)
    (tmp_path / annotations).write_text(json.dumps(CONTENT))
    (tmp_path / images).mkdir(exist_ok=True)
    for source in (tmp_path, tmp_path / annotations):
        dataset = load_dataset(str(source), "train")
        assert Path(dataset.records[0].uri) == tmp_path / images / "a.jpg"
    assert load_dataset(str(tmp_path), "train", images="/photos").records[0].uri == "/photos/a.jpg"
    assert [len(load_dataset(str(tmp_path), "train", limit=limit)) for limit in (None, 0, 9)] == [1, 0, 1]
    assert has_split(str(tmp_path), "train")
    assert not has_split(str(tmp_path), "val")
    with pytest.raises(DatasetError, match="no data set with a part 'val'"):
        load_dataset(str(tmp_path), "val")


def test_real_coco(shared: Path) -> None:
    dataset = load_dataset(str(shared / "data" / "coco_val129"), "val")
    assert (len(dataset), len(dataset.class_names)) == (129, 81)
    annotations = [annotation for record in dataset.records for annotation in record.annotations]
    assert len(annotations) == 1196
    crowded = next(i for i, r in enumerate(dataset.records) if any(a.iscrowd for a in r.annotations))
    record = dataset.records[crowded]
    assert dataset.load_masks(crowded).shape == (len(record.annotations), record.height, record.width)
    for mask, annotation in zip(dataset.load_masks(crowded), record.annotations, strict=True):
        y1, x1, y2, x2 = annotation.box
        ys, xs = mask.nonzero()
        assert abs(ys.min() - y1) < 2
        assert abs(xs.min() - x1) < 2
        assert abs(ys.max() + 1 - y2) < 2
        assert abs(xs.max() + 1 - x2) < 2
