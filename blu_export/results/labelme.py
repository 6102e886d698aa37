"""labelme: polygons to correct by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from blu_export.results.base import PhotoFormat, Result
from blu_export.results.outline import polygons, single_ring

VERSION = "5.5.0"
"""Of labelme, whose files have had this form since 5.2."""


class LabelmeFormat(PhotoFormat):
    """NAME.json beside which labelme looks for the photo; a shape for each part of a mask, parts share a group.

    A hole is joined to its outline by a bridge of no width.
    """

    suffix = ".json"

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        found = result.found
        height, width = found.image_size
        shapes: list[dict[str, Any]] = []
        for index, (class_id, crop, roi) in enumerate(
            zip(found.class_ids.tolist(), found.crops, found.rois, strict=True)
        ):
            for part in polygons(crop, roi):
                shapes.append({
                    "label": found.class_names[class_id],
                    "points": single_ring([part]).astype(float).tolist(),
                    "group_id": index + 1,
                    "description": f"score {found.scores[index]:.3f}",
                    "shape_type": "polygon",
                    "flags": {},
                })  # fmt: skip
        record: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": result.file_name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        yield self.suffix, (json.dumps(record, indent=2) + "\n").encode()
