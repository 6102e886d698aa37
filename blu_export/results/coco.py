"""COCO: one file of all photos, annotations with scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from blu_export.instances import Instances
from blu_export.results.base import Result, SetFormat


def coco_annotations(found: Instances, image_id: int | str) -> list[dict[str, Any]]:
    """See Detections.to_coco."""
    results = []
    for (y1, x1, y2, x2), class_id, score, area, mask, track in found.rows():
        tracked = {} if track is None else {"track_id": track}
        box = [x1, y1, x2 - x1, y2 - y1]
        values = {"category_id": class_id, "bbox": box, "area": area, "score": score, "segmentation": mask}
        results.append({"image_id": image_id, **values, **tracked})
    return results


def categories(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's list of classes."""
    return [{"id": index, "name": name} for index, name in enumerate(class_names) if index > 0]


class CocoFormat(SetFormat):
    """detections.coco.json."""

    suffix = ".coco.json"
    file_name = "detections.coco.json"

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations = 0

    def start(self) -> str:
        """See SetFormat."""
        return '{"annotations": ['

    def add(self, result: Result) -> str:
        """See SetFormat."""
        height, width = result.found.image_size
        image_id = len(self._images) + 1
        name = result.name if result.frame is None else f"{result.name} frame {result.frame}"
        self._images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        pieces = []
        for annotation in coco_annotations(result.found, image_id):
            separator = "," if self._annotations else ""
            self._annotations += 1
            pieces.append(f"{separator}\n{json.dumps({**annotation, 'id': self._annotations, 'iscrowd': 0})}")
        return "".join(pieces)

    def end(self, class_names: tuple[str, ...]) -> str:
        """See SetFormat."""
        return f'\n],\n"images": {json.dumps(self._images)},\n"categories": {json.dumps(categories(class_names))}}}\n'
