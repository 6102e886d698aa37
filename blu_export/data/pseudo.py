"""Pseudo-labels: what a model finds on photos without objects of their own, as a COCO file to train on.

A model's own detections teach it little that is new and much that is wrong; what is known of the photos corrects it.

Tags name the classes on a photo. A detection of a class that the tags do not name is an error and left out, so that
its place becomes background. A photo on which a class of the tags is not found with confidence is left out whole: its
object would count as background too.

Regions, which are crowds, say where objects may be. A confident detection inside becomes an object, what is left of
the regions stays crowd, and everything outside is background, detections there among it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.data.dataset import Record, encode_masks
from blu_export.detections import Detections
from blu_export.errors import DatasetError
from blu_export.rle import crop_mask, decode_rle, encode_rle

Tagged = tuple[str, Sequence[str], Detections]
"""Path of a photo, the names of all classes on it, and what a model found."""

Marked = tuple[Record, Detections]
"""A photo whose crowds are the regions, and what a model found on it; classes are those of the model."""

INSIDE = 0.8
"""Share of a detection's mask that lies in the regions, from which the detection is one of their objects."""


def pseudo_labels(photos: Iterable[Tagged], class_names: Sequence[str], keep: float, doubt: float) -> dict[str, Any]:
    """A COCO instances file of what was found.

    Args:
        photos: the tagged photos.
        class_names: of the model; index 0 is the background.
        keep: score from which a detection is an object, 0..1.
        doubt: score from which it is a crowd region: neither right nor wrong to find. Below, background.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for path, tags, found in photos:
        likely = found.filter(doubt, tags)
        sure = likely.scores >= keep
        if {class_names[class_id] for class_id in likely.class_ids[sure]} != set(tags):
            continue
        height, width = found.image_size
        number = len(images) + 1
        images.append({"id": number, "file_name": path, "height": height, "width": width})
        for row, certain in zip(likely.to_coco(number), sure.tolist(), strict=True):
            annotations.append(row | {"id": len(annotations) + 1, "iscrowd": int(not certain)})
    return {"images": images, "categories": _categories(class_names), "annotations": annotations}


def region_labels(photos: Iterable[Marked], class_names: Sequence[str], keep: float) -> dict[str, Any]:
    """A COCO instances file of what was found inside the regions; photos without a find are left out.

    Args:
        photos: the photos with their regions.
        class_names: of the model; index 0 is the background.
        keep: score from which a detection is an object, 0..1.

    Raises:
        DatasetError: a region cannot be a mask of its photo.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record, found in photos:
        if found.image_size != (record.height, record.width):
            raise DatasetError(
                f"{record.uri} has {found.image_size[1]}x{found.image_size[0]} pixels, its regions are of "
                f"{record.width}x{record.height}.",
                "Mark the regions on the photo as it is seen, turned by its EXIF.",
            )
        regions = [decode_rle(rle, found.image_size) for rle in encode_masks(record)]
        inside = np.logical_or.reduce(regions) if regions else np.zeros(found.image_size, bool)
        objects = _inside(found.filter(keep), inside)
        if not len(objects):
            continue
        number = len(images) + 1
        height, width = found.image_size
        images.append({"id": number, "file_name": record.uri, "height": height, "width": width})
        rows = [row | {"iscrowd": 0} for row in objects.to_coco(number)]
        taken = objects.masks.any(axis=-1)
        for annotation, region in zip(record.annotations, regions, strict=True):
            rows += _crowd(region & ~taken, number, annotation.category)
        annotations += [row | {"id": len(annotations) + index} for index, row in enumerate(rows, start=1)]
    return {"images": images, "categories": _categories(class_names), "annotations": annotations}


def _inside(found: Detections, region: NDArray[np.bool_]) -> Detections:
    """The detections that lie in a region, bool [H, W]; empty masks lie nowhere."""
    shares = [
        int((crop & crop_mask(region, roi)).sum()) / max(1, int(crop.sum()))
        for crop, roi in zip(found.crops, found.rois, strict=True)
    ]
    return found[np.array(shares) >= INSIDE] if shares else found


def _crowd(mask: NDArray[np.bool_], image_id: int, category: int) -> list[dict[str, Any]]:
    """A row for a crowd of this mask, bool [H, W]; none for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    y1, y2, x1, x2 = (int(edge) for edge in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    box = (y1, x1, y2, x2)
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(np.count_nonzero(mask)),
            "segmentation": encode_rle(crop_mask(mask, box), box, (mask.shape[0], mask.shape[1])),
            "iscrowd": 1,
        }
    ]


def _categories(class_names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": index, "name": name} for index, name in enumerate(class_names) if index]
