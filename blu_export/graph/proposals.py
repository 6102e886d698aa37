"""Proposals: the best anchors, decoded with the RPN deltas and filtered by NMS."""

from __future__ import annotations

import numpy as np

from blu_export.graph.boxes import decode
from blu_export.graph.builder import Graph, Value
from blu_export.graph.canvas import Canvas
from blu_export.graph.nms import gather_kept, keep_by_operator, keep_by_tensors
from blu_export.graph.topk import TENSORRT_TOPK_LIMIT, top_k
from blu_export.spec import ModelSpec

NO_ANCHOR = -1.0
"""Score of an anchor that this canvas lacks; real ones are 0 to 1."""


def propose(
    graph: Graph,
    logits: Value,
    deltas: Value,
    canvas: Canvas,
    spec: ModelSpec,
    target: str,
) -> tuple[Value, Value]:
    """ROIs of each image, best first (the original's ``ProposalLayer``).

    Args:
        logits: float32 [B, A, 2], background and foreground.
        deltas: float32 [B, A, 4], the RPN's raw output.

    Returns:
        float32 [B, post_nms_rois_inference, 4], normalized, clipped to the canvas; unused rows are zero, and come
        last. And float32 [B, post_nms_rois_inference, 1] that is 1 for rows in use.
    """
    with graph.stage("proposals"):
        background, foreground = logits.split(1, 1)
        # Softmax over two numbers, without a pass over an axis of length two.
        scores = graph.op("Sigmoid", foreground - background).reshape(0, -1, name="scores")
        limit = TENSORRT_TOPK_LIMIT if target == "tensorrt" else None
        count: int | Value
        real = None
        if canvas.anchor_count is not None:
            count = min(spec.pre_nms_limit, canvas.anchor_count)
            _, index = top_k(graph, scores, count, limit)
        elif target == "tensorrt":
            count = spec.pre_nms_limit
            index, real = _top_of_any(graph, scores, count, max(0, count - canvas.fewest_anchors))
        else:
            anchors = graph.op("Shape", scores, start=1, end=2)
            wanted = graph.op("Min", anchors, np.array([spec.pre_nms_limit], np.int64))
            _, index = top_k(graph, scores, wanted, limit)
            count = graph.op("Squeeze", wanted, np.array([0], np.int64))
        near, far = decode(
            graph,
            deltas.rows_of_batch(index),
            canvas.anchors(index),
            spec.rpn_bbox_std_dev,
        )
        boxes = graph.clip(graph.concat([near, far], axis=2), 0.0, 1.0)
        wanted_rows = spec.post_nms_rois_inference
        if target == "tensorrt":
            assert isinstance(count, int)
            keep = keep_by_tensors(graph, boxes, count, spec.rpn_nms_threshold)
            keep = keep if real is None else keep * real
        else:
            keep = keep_by_operator(graph, boxes, count, wanted_rows, spec.rpn_nms_threshold)
        fewest = count if isinstance(count, int) else min(spec.pre_nms_limit, canvas.fewest_anchors)
        rois, used = gather_kept(graph, keep, boxes, count, wanted_rows, fewest >= wanted_rows, limit)
        return graph.op("Identity", rois, name="rois"), used


def _top_of_any(graph: Graph, scores: Value, count: int, lacking: int) -> tuple[Value, Value | None]:
    """The ``count`` best anchors of a canvas that may have up to ``lacking`` fewer: TopK's k must be a constant.

    Returns:
        Their numbers int64 [B, count], and float32 [B, count] that is 1 for those that exist: the rest come last,
        so that they suppress no other. None where all do.
    """
    if not lacking:
        return top_k(graph, scores, count, TENSORRT_TOPK_LIMIT)[1], None
    padded = graph.op("Pad", scores, np.array([0, 0, 0, lacking], np.int64), NO_ANCHOR)
    best, index = top_k(graph, padded, count, TENSORRT_TOPK_LIMIT)
    last = graph.op("Shape", scores, start=1, end=2) - 1
    return graph.op("Min", index, last), (best > NO_ANCHOR).cast(np.float32)


def distinct_rows(graph: Graph, used: Value, count: int) -> tuple[Value, Value]:
    """Rows of ROIs [B × count] without repetitions: those in use, and the first of each image's unused rows.

    The box head need see no others: unused rows are all alike.

    Args:
        used: float32 [B, count, 1], 1 for rows in use, which come first.

    Returns:
        int64 [R], the rows; and int64 [B × count], where each of all rows is among them.
    """
    number = graph.reduce("Sum", used, 1).cast(np.int64).reshape(-1, 1)  # [B, 1] in use
    every = np.arange(count, dtype=np.int64)[None]
    wanted = graph.op("Not", graph.const(every) > number).reshape(-1)
    row = graph.op("Squeeze", graph.op("NonZero", wanted), np.array([0], np.int64))
    taken = graph.op("Min", number + 1, np.array([count], np.int64))
    before = graph.op("CumSum", taken, np.array(0, np.int64), exclusive=1)
    return row, (before + graph.op("Min", graph.const(every), number)).reshape(-1)
