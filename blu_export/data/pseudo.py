"""Pseudo-labels: what a model finds on photos of which only the classes are known, as a COCO file to train on.

A model's own detections teach it little that is new and much that is wrong; image tags correct it. A detection of
a class that the tags do not name is an error and left out, so that its place becomes background. A photo on which a
class of the tags is not found with confidence is left out whole: its object would count as background too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from blu_export.detections import Detections

Tagged = tuple[str, Sequence[str], Detections]
"""Path of a photo, the names of all classes on it, and what a model found."""


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
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names) if index]
    return {"images": images, "categories": categories, "annotations": annotations}
