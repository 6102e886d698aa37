"""Finding the annotations of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

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
    with pytest.raises(DatasetError, match="not a data set with a part 'val'"):
        load_dataset(str(tmp_path), "val")


TOOLS = {
    "CVAT": ("annotations/instances_default.json", "images/default/a.jpg", "a.jpg", None),
    "Datumaro": ("annotations/instances_val.json", "images/val/a.jpg", "a.jpg", "val"),
    "Roboflow": ("valid/_annotations.coco.json", "valid/a.jpg", "a.jpg", "val"),
    "Label Studio": ("result.json", "images/a.jpg", r"images\1\a.jpg", None),
    "labelme2coco": ("annotations.json", "JPEGImages/a.jpg", "JPEGImages/a.jpg", None),
    "FiftyOne": ("labels.json", "data/a.jpg", "a.jpg", None),
    "Supervisely": ("ds0/annotations/instances.json", "ds0/images/a.jpg", "a.jpg", None),
    "COCO Annotator": ("set-1.json", "set/a.jpg", "/datasets/set/a.jpg", None),
    "by its name": ("train.json", "img/a.jpg", "a.jpg", "train"),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_layouts_of_tools(tmp_path: Path, tool: str) -> None:
    annotations, photo, name, split = TOOLS[tool]
    for path in (annotations, photo):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(tmp_path / photo)
    content = CONTENT | {"images": [{"id": 1, "file_name": name}]}
    (tmp_path / annotations).write_text(json.dumps(content))
    dataset = load_dataset(tmp_path, split or "train")
    assert dataset.load_image(0).shape == (4, 6, 3)
    assert Path(dataset.records[0].uri) == tmp_path / photo
    assert [has_split(tmp_path, each) for each in ("train", "val")] == [split == "train", split == "val"]


def test_several_files_that_could_be_meant_stop(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(json.dumps(CONTENT))
    (tmp_path / "captions_train.json").write_text(json.dumps(CONTENT))
    with pytest.raises(DatasetError, match=r"several COCO files: one\.json, two\.json"):
        load_dataset(tmp_path, "train")


def test_the_part_that_is_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "instances_train.json").write_text(json.dumps(CONTENT))
    with pytest.raises(DatasetError, match="not a data set with a part 'val'; it has 'train'"):
        load_dataset(tmp_path, "val")


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
