"""JSON: classes, scores, boxes, masks as COCO RLE."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from blu_export.instances import Instances
from blu_export.results.base import PhotoFormat, Result


def to_json(found: Instances) -> dict[str, Any]:
    """See Detections.to_json."""
    objects = [
        {
            "class": found.class_names[row.class_id],
            "class_id": row.class_id,
            "score": row.score,
            "box": row.box,
            "area": row.area,
            "mask": row.mask,
            **({} if row.track is None else {"track": row.track}),
        }
        for row in found.rows()
    ]
    return {"image_size": list(found.image_size), "class_names": list(found.class_names), "detections": objects}


def json_record(result: Result) -> dict[str, Any]:
    """One photo's detections as JSON values; a frame has its number beside the video's name."""
    frame = {} if result.frame is None else {"frame": result.frame}
    return {"image": result.name, **frame, **to_json(result.found)}


class JsonFormat(PhotoFormat):
    """NAME.detections.json, which Detections.load reads."""

    suffix = ".detections.json"

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        yield self.suffix, (json.dumps(json_record(result)) + "\n").encode()
