"""Writing data sets: COCO files and YOLO segments, with or beside their photos."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blu_export.data.dataset import Annotation, Dataset, Record, encode_mask
from blu_export.errors import BluError, DatasetError
from blu_export.files import atomic_write
from blu_export.results.outline import polygons, single_ring
from blu_export.rle import decode_rle

PhotoPolicy = Literal["copy", "link", "none"]
"""What becomes of the photos: copied; hard-linked, or copied where that cannot be; or named by their path."""
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass
class Written:
    """What was written."""

    files: list[Path] = field(default_factory=list)
    photos: int = 0
    objects: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """How many of what have no place in the format, or could not be read."""


def write_coco(dataset: Dataset, part: str, out: Path, photos: PhotoPolicy, progress: Progress) -> Written:
    """Write ``instances_PART.json``, and the photos into ``images``.

    Masks stay as they are, polygons or run lengths. Ids of photos and classes are the source's where it has them.

    Raises:
        OSError: the folder cannot be written to.
    """
    written, names = Written(), _Names()
    ids = dataset.category_ids or tuple(range(len(dataset.class_names)))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in progress(dataset.records, len(dataset)):
        name = record.uri
        if photos == "none":
            name = name if "://" in name else os.path.abspath(name)
        else:
            name = names(record.uri)
            if not _put_photo(dataset, record, out / "images" / name, photos, written):
                continue
        size = {"height": record.height, "width": record.width}
        images.append({"id": record.image_id, "file_name": name, **size})
        for annotation in record.annotations:
            number = len(annotations) + 1
            row = {"id": number, "image_id": record.image_id, "category_id": ids[annotation.category]}
            annotations.append(row | _coco_values(annotation, record))
    categories = [{"id": ids[index], "name": name} for index, name in enumerate(dataset.class_names) if index]
    path = out / f"instances_{part}.json"
    with atomic_write(path) as temporary:
        content = {"images": images, "categories": categories, "annotations": annotations}
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    written.files.append(path)
    written.photos, written.objects = len(images), len(annotations)
    return written


def write_yolo(dataset: Dataset, part: str, out: Path, photos: PhotoPolicy, progress: Progress) -> Written:
    """Write ``labels/PART/NAME.txt`` for each photo, the photos into ``images/PART``, and data.yaml.

    A line has one outline: parts and holes of a mask are joined to it by bridges of no width. Crowds and objects
    without a mask have no place.

    Raises:
        DatasetError: photos are not to be written: YOLO finds labels by the folder of the photos.
        OSError: the folder cannot be written to.
    """
    if photos == "none":
        raise DatasetError("YOLO needs its photos beside the labels.", "Write --photos copy or --photos link.")
    written, names = Written(), _Names()
    for record in progress(dataset.records, len(dataset)):
        name = names(record.uri)
        if not _put_photo(dataset, record, out / "images" / part / name, photos, written):
            continue
        lines = []
        for annotation in record.annotations:
            if annotation.iscrowd or not len(annotation.segmentation):
                written.left_out["crowds" if annotation.iscrowd else "objects without a mask"] += 1
                continue
            outline = _outline(annotation, record)
            if outline is None:
                written.left_out["objects without a pixel"] += 1
                continue
            shares = outline / np.tile([record.width, record.height], len(outline) // 2)
            lines.append(" ".join([str(annotation.category - 1), *(f"{share:.9g}" for share in shares.tolist())]))
        path = out / "labels" / part / f"{Path(name).stem}.txt"
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        written.photos += 1
        written.objects += len(lines)
    path = out / "data.yaml"
    parts = [each for each in ("train", "val") if (out / "images" / each).is_dir()]
    places = "".join(f"{each}: images/{each}\n" for each in parts)
    classes = "".join(
        f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(dataset.class_names[1:])
    )
    with atomic_write(path) as temporary:
        temporary.write_text(f"{places}names:\n{classes}", encoding="utf-8")
    written.files.append(path)
    return written


WRITERS = {"coco": write_coco, "yolo": write_yolo}
"""By the name of the format."""


def _coco_values(annotation: Annotation, record: Record) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    y1, x1, y2, x2 = annotation.box
    segmentation, area = annotation.segmentation, annotation.area
    if area is None:
        rle = encode_mask(segmentation, record.height, record.width)
        area = float(coco_mask.area(rle))
    if not isinstance(segmentation, dict):
        segmentation = [np.asarray(polygon, np.float64).tolist() for polygon in segmentation]
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": area,
        "segmentation": segmentation,
        "iscrowd": int(annotation.iscrowd),
    }


def _outline(annotation: Annotation, record: Record) -> Any:
    """One polygon of the mask, float64 [2 K]: its own where it has one inside the photo; None: no pixel is inside."""
    segmentation = annotation.segmentation
    if not isinstance(segmentation, dict) and len(segmentation) == 1:
        polygon = np.asarray(segmentation[0], np.float64)
        sides = np.tile([record.width, record.height], len(polygon) // 2)
        if ((polygon >= 0) & (polygon <= sides)).all():
            return polygon
    size = record.height, record.width
    mask = decode_rle(encode_mask(segmentation, *size), size)
    if not mask.any():
        return None
    return single_ring(polygons(mask, (0, 0, *size))).ravel().astype(np.float64)


class _Names:
    """File names that are there once: two photos of one name in different folders do not overwrite each other."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._of: dict[str, str] = {}

    def __call__(self, uri: str) -> str:
        """A file name for a photo; the same for the same photo. Its stem is unique too: labels are named by it."""
        if uri not in self._of:
            stem, _, suffix = uri.replace("\\", "/").rpartition("/")[2].rpartition(".")
            name, number = stem or "photo", 1
            while name.casefold() in self._taken:
                number += 1
                name = f"{stem}-{number}"
            self._taken.add(name.casefold())
            self._of[uri] = f"{name}.{suffix}"
        return self._of[uri]


def _put_photo(dataset: Dataset, record: Record, path: Path, photos: PhotoPolicy, written: Written) -> bool:
    """Copy or link a photo; False, and counted, where it cannot be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if "://" not in record.uri:
            if path.exists() and os.path.samefile(path, record.uri):
                return True
            if photos == "link":
                try:
                    path.unlink(missing_ok=True)
                    os.link(record.uri, path)
                    return True
                except FileNotFoundError:
                    raise
                except OSError:
                    pass  # another disk, or one without links
            with open(record.uri, "rb") as source, atomic_write(path) as temporary, temporary.open("wb") as target:
                shutil.copyfileobj(source, target)
        else:
            content = dataset.read(record.uri)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
    except (BluError, FileNotFoundError, PermissionError):
        written.left_out["photos that cannot be read"] += 1
        return False
    return True
