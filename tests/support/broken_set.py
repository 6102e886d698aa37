"""A COCO data set of small photos with shapes, a few of them with one defect each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from shapes import CLASS_NAMES, SIDE, shapes


def write_broken_set(folder: Path, count: int, val: int = 0, seed: int = 0) -> dict[str, str]:
    """Write ``count`` training and ``val`` validation photos; returns the reason by name of each damaged photo.

    Damaged are the last photos of the training set, and one of the validation set: photos that are absent, empty,
    cut off, no image, or of another size than annotated. Objects with broken masks are on other photos.
    """
    damaged: dict[str, str] = {}
    for part, number in (("train", count), ("val", val)):
        if number:
            content = _write_photos(folder, part, number, seed + (part == "val"))
            _break(folder / "images", content, part, damaged)
            (folder / f"instances_{part}.json").write_text(json.dumps(content))
    return damaged


def _write_photos(folder: Path, part: str, count: int, seed: int) -> dict[str, Any]:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for start in range(0, count, 100):
        dataset = shapes(min(100, count - start), seed=1000 * seed + start)
        for image, record in zip(dataset.images, dataset.records, strict=True):
            number = len(images) + 1
            name = f"{part}{number:05d}.jpg"
            cv2.imwrite(str(folder / "images" / name), image[..., ::-1])
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            for a in record.annotations:
                y1, x1, y2, x2 = a.box
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": a.category,
                                    "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": a.segmentation,
                                    "iscrowd": 0})  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES) if i]
    return {"images": images, "categories": categories, "annotations": annotations}


def _break(images: Path, content: dict[str, Any], part: str, damaged: dict[str, str]) -> None:
    names = [entry["file_name"] for entry in content["images"]]
    path = images / names[-1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    damaged[names[-1]] = "cannot be decoded"
    if part == "val":
        return
    (images / names[-2]).unlink()
    damaged[names[-2]] = "cannot be read"
    (images / names[-3]).write_bytes(b"")
    damaged[names[-3]] = "cannot be decoded"
    (images / names[-4]).write_text("<html>not found</html>")
    damaged[names[-4]] = "cannot be decoded"
    cv2.imwrite(str(images / names[-5]), np.zeros((SIDE // 2, SIDE // 2, 3), np.uint8))
    damaged[names[-5]] = "its annotation says"
