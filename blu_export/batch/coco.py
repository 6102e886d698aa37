"""The shards of a job as one COCO file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from blu_export.batch.plan import Plan
from blu_export.batch.shard import Summary, read_rows
from blu_export.batch.sink import SCRATCH_PREFIX, Sink

COCO_NAME = "_detections.coco.json"
"""Readers of Parquet folders skip it, like PLAN_NAME."""


def write_coco(sink: Sink, plan: Plan, summary: Summary) -> str:
    """Write COCO_NAME beside the shards; returns its path or URL.

    Image ids count from 1 in the order of the plan. A photo that failed has an ``error`` in place of a size.
    Annotations are written as they are read: those of many photos need not fit in memory.
    """
    images: list[dict[str, Any]] = []
    annotations = 0
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=sink.scratch()) as folder:
        path = Path(folder, COCO_NAME)
        with path.open("w", encoding="utf-8") as file:
            file.write('{"annotations": [')
            for shard in plan.shards:
                for row in read_rows(sink, shard):
                    image = {"id": len(images) + 1, "file_name": row["image"]}
                    if row["error"] is not None:
                        images.append({**image, "error": row["error"]})
                        continue
                    images.append({**image, "height": row["height"], "width": row["width"]})
                    for found in row["detections"]:
                        annotations += 1
                        y1, x1, y2, x2 = found["box"]
                        annotation = {
                            "id": annotations,
                            "image_id": image["id"],
                            "category_id": found["class_id"],
                            "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "area": found["area"],
                            "score": found["score"],
                            "segmentation": found["mask"],
                            "iscrowd": 0,
                        }
                        file.write(f"{',' * (annotations > 1)}\n{json.dumps(annotation)}")
            categories = [{"id": index, "name": name} for index, name in enumerate(summary.class_names) if index > 0]
            info = {"description": "blu batch", "model_sha256": plan.model_sha256}
            file.write(
                f'\n],\n"images": {json.dumps(images)},\n"categories": {json.dumps(categories)},\n'
                f'"info": {json.dumps(info)}}}\n'
            )
        sink.upload(path, COCO_NAME)
    return sink.path(COCO_NAME)
