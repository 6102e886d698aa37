"""Masks: one for each detection, of its own class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from blu_export.graph.builder import Graph, Value
from blu_export.spec import ModelSpec

TAPS = 4
"""Positions of the 2×2 up-sampling, which the mask head leaves on its row axis: (0,0), (0,1), (1,0), (1,1)."""


def masks(
    graph: Graph,
    detections: Value,
    used: Value,
    mask_logits: Callable[[Value, Value], Value],
    spec: ModelSpec,
    target: str,
) -> Value:
    """Masks of detections float32 [B, N, 6], of which ``used`` float32 [B, N, 1] are real.

    Args:
        mask_logits: pools and runs the mask head: ``(boxes [R, 4], image of each int64 [R])`` to
            float32 [R × TAPS, K, pool, pool].

    Returns:
        float32 [B, N, h, w] in 0..1, zero for unused rows.
    """
    count, (height, width) = spec.detection_max_instances, spec.mask_shape
    with graph.stage("mask_select"):
        rows, in_use = detections.reshape(-1, 6), used.reshape(-1, 1, 1)
        row = graph.op("Range", 0, graph.op("Size", in_use), 1)
        every_row = row
        if target == "portable":
            # Only real detections pay for the mask head; row 0 always comes along, so that the head
            # never sees an empty batch.
            wanted = (used.reshape(-1) > 0.0) | row.equals(0)
            row = graph.op("Squeeze", graph.op("NonZero", wanted), np.array([0], np.int64))
            rows, in_use = rows.rows(row), in_use.rows(row)
        boxes, class_column, _ = rows.split(4, 1, 1)
        image_of = row // count
    logits = mask_logits(boxes, image_of)
    with graph.stage("mask_select"):
        # The class is picked before the sigmoid and the pixel shuffle: one map per row, not K.
        tap = graph.op("Range", 0, graph.op("Size", row) * TAPS, 1).reshape(-1, TAPS) * spec.num_classes
        pool = spec.mask_pool_size
        own = logits.reshape(-1, pool, pool).rows(tap + class_column.cast(np.int64))
        shuffled = graph.op("Sigmoid", own).reshape(-1, 2, 2, pool, pool).transpose(0, 3, 1, 4, 2)
        found = shuffled.reshape(-1, height, width) * in_use
        if target == "portable":
            total = graph.op("Shape", every_row)
            shape = graph.concat([total, graph.const(np.array([height, width], np.int64))], axis=0)
            found = graph.op("ScatterND", graph.op("Expand", 0.0, shape), row.unsqueeze(1), found)
        return found.reshape(-1, count, height, width)
