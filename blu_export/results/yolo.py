"""YOLO: segments, as Ultralytics' tools read them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from blu_export.results.base import PhotoFormat, Result
from blu_export.results.outline import polygons, single_ring


class YoloFormat(PhotoFormat):
    """NAME.txt: a line per instance, the class from 0 and its outline as shares of the photo; data.yaml: the names.

    A line has one outline: parts and holes of a mask are joined to it by bridges of no width. Scores have no place.
    """

    suffix = ".txt"

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        found = result.found
        height, width = found.image_size
        lines = []
        for class_id, crop, roi in zip(found.class_ids.tolist(), found.crops, found.rois, strict=True):
            if not crop.any():
                continue
            points = single_ring(polygons(crop, roi)) / np.array([width, height])
            lines.append(" ".join([str(class_id - 1), *(f"{value:.6f}" for value in points.ravel().tolist())]))
        yield self.suffix, "".join(f"{line}\n" for line in lines).encode()

    def closing(self, class_names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        names = "".join(f"  {index}: {json.dumps(name)}\n" for index, name in enumerate(class_names[1:]))
        yield "data.yaml", f"names:\n{names}".encode()
