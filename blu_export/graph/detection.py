"""Detection: from classified ROIs to the best non-overlapping boxes of each class."""

from __future__ import annotations

import numpy as np

from blu_export.graph.boxes import decode
from blu_export.graph.builder import Graph, Value
from blu_export.graph.canvas import Canvas
from blu_export.graph.nms import gather_kept, keep_by_operator, keep_by_tensors
from blu_export.graph.topk import TENSORRT_TOPK_LIMIT, top_k
from blu_export.spec import ModelSpec

DROPPED = -1.0
"""Score of a ROI that is background or not confident enough."""


def detect(
    graph: Graph,
    rois: Value,
    logits: Value,
    deltas: Value,
    window: Value,
    canvas: Canvas,
    spec: ModelSpec,
    target: str,
) -> tuple[Value, Value]:
    """Refine and filter the ROIs of each image, then suppress overlaps (the original's ``DetectionLayer``).

    Args:
        rois: float32 [B, R, 4], normalized.
        logits: float32 [B × R, K].
        deltas: float32 [B × R, 4 × K], raw output of the box head.
        window: float32 [B, 4], the photo on its canvas, pixels.

    Returns:
        detections float32 [B, N, 6] (y1, x1, y2, x2 normalized, class id, score), best first, unused
        rows zero; and float32 [B, N, 1] that is 1 for rows in use.
    """
    count, classes = spec.post_nms_rois_inference, spec.num_classes
    limit = TENSORRT_TOPK_LIMIT if target == "tensorrt" else None
    with graph.stage("detection"):
        probabilities = graph.op("Softmax", logits, axis=1, name="probabilities")
        class_ids = graph.op("ArgMax", probabilities, axis=1, keepdims=0)
        scores = graph.reduce("Max", probabilities, 1, keepdims=False)
        first_class = graph.op("Range", 0, graph.op("Size", class_ids), 1) * classes
        own_deltas = deltas.reshape(-1, 4).rows(first_class + class_ids).reshape(-1, count, 4)
        near, far = decode(graph, own_deltas, rois, spec.bbox_std_dev)
        low, high = canvas.normalize(window).unsqueeze(1).split(2, 2)
        corners = [graph.op("Max", graph.op("Min", corner, high), low) for corner in (near, far)]
        confident = (class_ids > 0) & (scores >= spec.detection_min_confidence)
        ranked = graph.where(confident, scores, DROPPED).reshape(-1, count)
        ranked, index = top_k(graph, ranked, count, limit)
        rows = graph.concat(
            [
                *corners,
                class_ids.cast(np.float32).reshape(-1, count, 1),
                scores.reshape(-1, count, 1),
            ],
            axis=2,
        ).rows_of_batch(index)
        boxes, class_column, _ = rows.split(4, 1, 1)
        sorted_ids = class_column.reshape(0, -1)
        candidate = ranked > DROPPED
        if target == "tensorrt":
            keep = keep_by_tensors(
                graph,
                boxes,
                count,
                spec.detection_nms_threshold,
                (sorted_ids, candidate),
            )
        else:
            keep = keep_by_operator(
                graph,
                boxes,
                count,
                spec.detection_max_instances,
                spec.detection_nms_threshold,
                (sorted_ids.cast(np.int64), candidate, classes),
            )
        enough = count >= spec.detection_max_instances
        return gather_kept(graph, keep, rows, count, spec.detection_max_instances, enough, limit)
