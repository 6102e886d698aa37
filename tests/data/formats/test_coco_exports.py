"""COCO as each tool writes it, by hand: masks are the same after ``blu data convert``, to COCO and on to YOLO."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from blu_export.cli.main import main
from blu_export.data.dataset import decode_mask
from blu_export.data.load import load_dataset

HEIGHT, WIDTH = 60, 80
CUP = [10.3, 10.2, 40.0, 12.7, 38.0, 50.75, 12.0, 48.0]
RING = np.zeros((HEIGHT, WIDTH), bool)
RING[30:50, 50:75] = True
RING[35:40, 55:60] = False
RING[3:7, 60:64] = True
"""A mask of two parts with a hole, which is written as run lengths."""
MASKS = {"cup": decode_mask([CUP], HEIGHT, WIDTH), "ring": RING}


def compressed() -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(RING.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def counted() -> dict[str, Any]:
    column_wise = RING.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(column_wise, prepend=0, append=-1))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(edges, prepend=0).tolist()}


def content(name: str) -> dict[str, Any]:
    """As COCO itself has it."""
    box = {"bbox": [10.3, 10.2, 29.7, 40.55], "area": 1080.0}
    rows = [{"category_id": 1, "segmentation": [CUP], **box}, {"category_id": 2, "segmentation": compressed()}]
    return {
        "info": {},
        "images": [{"id": 1, "file_name": name, "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": i + 1, "image_id": 1, "iscrowd": 0, **row} for i, row in enumerate(rows)],
        "categories": [{"id": 1, "name": "cup", "supercategory": ""}, {"id": 2, "name": "ring", "supercategory": ""}],
    }


def same(found: dict[str, Any]) -> None:
    """Nothing of the tool's own."""


def cvat(found: dict[str, Any]) -> None:
    found["images"][0] |= {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    found["annotations"][1] |= {"segmentation": counted(), "bbox": [50, 3, 25, 47], "area": 490}
    for row in found["annotations"]:
        row["attributes"] = {"occluded": False}


def datumaro(found: dict[str, Any]) -> None:
    found["images"][0]["date_captured"] = 0
    found["annotations"][1] |= {"attributes": {"is_crowd": False}, "area": 490.0, "bbox": [50.0, 3.0, 24.0, 46.0]}


def roboflow(found: dict[str, Any]) -> None:
    found["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    found["images"][0]["extra"] = {"name": "a.jpg"}


def label_studio(found: dict[str, Any]) -> None:
    for part in ("images", "annotations", "categories"):
        for row in found[part]:
            row["id"] -= 1
    for row in found["annotations"]:
        row.update(image_id=0, category_id=row["category_id"] - 1, ignore=0)


def fiftyone(found: dict[str, Any]) -> None:
    for row in found["annotations"]:
        row["score"] = None
    found["annotations"][1]["segmentation"] = counted()


def supervisely(found: dict[str, Any]) -> None:
    found["annotations"][0]["segmentation"] = [list(pair) for pair in zip(CUP[::2], CUP[1::2], strict=True)]


def annotator(found: dict[str, Any]) -> None:
    found["images"][0] |= {"path": "/datasets/set/a.jpg", "annotated": True, "deleted": False, "dataset_id": 1}
    for row in found["annotations"]:
        row |= {"iscrowd": False, "isbbox": False, "color": "#e6194b", "metadata": {}, "keypoints": [], "creator": "x"}


def labelme2coco(found: dict[str, Any]) -> None:
    found["annotations"][0]["iscrowd"] = "0"


def darwin(found: dict[str, Any]) -> None:
    found["images"][0] |= {"id": 1234567890, "folder": "/", "darwin_url": "https://x.invalid/1", "tag_ids": []}
    for row in found["annotations"]:
        row |= {"image_id": 1234567890, "extra": {}}
    found["annotations"][1] |= {"segmentation": counted(), "area": None, "bbox": None}


def via(found: dict[str, Any]) -> None:
    found["annotations"][0]["segmentation"] = CUP
    for row in found["annotations"]:
        row["image_id"] = str(row["image_id"])


@dataclass(frozen=True)
class Export:
    """Where a tool puts annotations and photos, how it names them, and what is its own."""

    annotations: str
    photo: str
    name: str
    edit: Callable[[dict[str, Any]], None] = same
    split: str = "train"


EXPORTS = {
    "COCO": Export("annotations/instances_train2017.json", "train2017/a.jpg", "a.jpg"),
    "CVAT": Export("annotations/instances_default.json", "images/default/a.jpg", "a.jpg", cvat),
    "CVAT, older": Export("annotations/instances_default.json", "images/a.jpg", "a.jpg", cvat),
    "Datumaro": Export("annotations/instances_val.json", "images/val/a.jpg", "a.jpg", datumaro, "val"),
    "Roboflow": Export("valid/_annotations.coco.json", "valid/a.jpg", "a.jpg", roboflow, "val"),
    "Label Studio": Export("result.json", "images/a.jpg", r"images\1\a.jpg", label_studio),
    "FiftyOne": Export("labels.json", "data/a.jpg", "a.jpg", fiftyone),
    "Supervisely": Export("ds0/annotations/instances.json", "ds0/images/a.jpg", "a.jpg", supervisely),
    "COCO Annotator": Export("set-1.json", "set/a.jpg", "/datasets/set/a.jpg", annotator),
    "labelme2coco": Export("annotations.json", "JPEGImages/a.jpg", "JPEGImages/a.jpg", labelme2coco),
    "Darwin": Export("output.json", "images/a.jpg", "a.jpg", darwin),
    "VIA": Export("via_export_coco.json", "a.jpg", "a.jpg", via),
}


def require_masks(root: Path, split: str, exact: str) -> None:
    """IoU of 0.999 and more, and of 1 for the class ``exact``."""
    dataset = load_dataset(root, split)
    assert dataset.load_image(0).shape == (HEIGHT, WIDTH, 3)
    names = [dataset.class_names[annotation.category] for annotation in dataset.records[0].annotations]
    found: dict[str, NDArray[np.bool_]] = dict(zip(names, dataset.load_masks(0), strict=True))
    assert found.keys() == MASKS.keys() and not any(a.iscrowd for a in dataset.records[0].annotations)
    for name, mask in MASKS.items():
        shared = (found[name] & mask).sum() / (found[name] | mask).sum()
        assert shared == 1 if name == exact else shared >= 0.999, (name, shared)


@pytest.mark.parametrize("tool", EXPORTS)
def test_masks_survive_converting(tmp_path: Path, tool: str) -> None:
    export = EXPORTS[tool]
    source = tmp_path / "source"
    for path in (export.annotations, export.photo):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(source / export.photo)
    found = content(export.name)
    export.edit(found)
    (source / export.annotations).write_text(json.dumps(found))
    require_masks(source, export.split, exact="ring")
    for number, (last, options) in enumerate(((source, []), (tmp_path / "0", ["--to", "yolo"]))):
        with pytest.raises(SystemExit) as end:
            main(["data", "convert", str(last), str(tmp_path / str(number)), *options])
        assert not end.value.code
        require_masks(tmp_path / str(number), export.split, exact="" if options else "ring")
