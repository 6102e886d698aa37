"""ROI align over the feature pyramid: ``crop_and_resize`` as a gather of four neighbors."""

from __future__ import annotations

import math

import numpy as np

from blu_export.anchors import ROI_CANONICAL_SIZE, ROI_EDGE
from blu_export.graph.builder import Graph, Value
from blu_export.graph.canvas import ROI_LEVELS, Canvas

LOWEST_LEVEL, CANONICAL_LEVEL = 2, 4


def join_pyramid(graph: Graph, pyramid: list[Value], channels: int) -> Value:
    """P2..P5, each [B, C, h, w], as one table of cells [B × cells, C]."""
    with graph.stage("roi_align"):
        levels = [p.reshape(0, channels, -1).transpose(0, 2, 1) for p in pyramid]
        return graph.concat(levels, axis=1).reshape(-1, channels, name="pyramid")


def roi_align(
    graph: Graph,
    boxes: Value,
    image_of: Value,
    pyramid: Value,
    canvas: Canvas,
    size: int,
    target: str,
    half: bool,
) -> Value:
    """Pool each ROI from the level of the pyramid that suits its size.

    Args:
        boxes: float32 [R, 4], normalized; rows may be empty boxes.
        image_of: int64 [R], which image of the batch each ROI lies on.
        pyramid: [B × cells, C], from ``join_pyramid``.
        size: side of the pooled square.
        half: whether the pyramid is float16.

    Returns:
        float32 [R, size × size, C].
    """
    level = roi_level(graph, boxes, canvas)
    sides = [v.slice(0, ROI_LEVELS, axis=0).unsqueeze(1) for v in (canvas.heights, canvas.widths)]
    extent = graph.concat(sides, axis=1).rows(level)  # [R, 2]: height and width of the level's feature map
    last = (extent - 1).cast(np.float32)
    near, far = graph.clip(boxes, 0.0, ROI_EDGE).split(2, 2)
    step = (far - near) * last / float(size - 1)
    position = (near * last).unsqueeze(2) + step.unsqueeze(2) * np.arange(size, dtype=np.float32)  # [R, 2, size]
    low = graph.op("Floor", position)
    high_share = position - low
    # [R, 2 (y or x), size, 2 (low or high neighbor)]
    neighbors = graph.concat([v.unsqueeze(3) for v in (low, graph.op("Ceil", position))], axis=3).cast(np.int64)
    shares = graph.concat([v.unsqueeze(3) for v in (1.0 - high_share, high_share)], axis=3)
    y, column = (v.reshape(-1, size, 2) for v in neighbors.split(1, 1, axis=1))
    share_y, share_x = (v.reshape(-1, size, 2) for v in shares.split(1, 1, axis=1))
    first = canvas.pyramid_starts.rows(level) + image_of * canvas.cells  # [R]: of the level and image in the table
    row = y * extent.slice(1, 2, axis=1).unsqueeze(2) + first.reshape(-1, 1, 1)

    def cells(index: Value) -> Value:
        found = pyramid.rows(index)
        return found.cast(np.float32) if half else found

    if target == "tensorrt":
        # No MatMul: TensorRT-RTX has none in float32 for Turing cards.
        pooled = None
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            index = row.slice(i, i + 1, axis=2) + column.slice(j, j + 1, axis=2).reshape(-1, 1, size)
            weight = share_y.slice(i, i + 1, axis=2) * share_x.slice(j, j + 1, axis=2).reshape(-1, 1, size)
            part = cells(index.reshape(-1, size * size)) * weight.reshape(-1, size * size, 1)
            pooled = part if pooled is None else pooled + part
        assert pooled is not None
        return pooled
    # A product for each row of output cells, of the two rows of neighbors below it: far fewer and
    # larger products than one for each cell, although most of their weights are zero.
    index = (row.unsqueeze(3) + column.reshape(-1, 1, 1, 2 * size)).reshape(-1, 4 * size)
    own_columns = np.repeat(np.eye(size, dtype=np.float32), 2, axis=1)
    across = share_x.reshape(-1, 1, 1, 1, 2 * size) * own_columns[:, None, :]
    weights = share_y.reshape(-1, size, 1, 2, 1) * across
    return graph.op("MatMul", weights.reshape(-1, size, 4 * size), cells(index))


def roi_level(graph: Graph, boxes: Value, canvas: Canvas) -> Value:
    """Place in P2..P5 of each box [R, 4]: int64 [R], 0..3 (FPN paper, equation 1; empty boxes get 0)."""
    near, far = boxes.split(2, 2)
    height, width = (far - near).split(1, 1)
    relative = graph.op("Sqrt", height * width) / (graph.op("Div", ROI_CANONICAL_SIZE, canvas.area_root))
    level = float(CANONICAL_LEVEL) + graph.op("Round", graph.op("Log", relative) / math.log(2.0))
    place = graph.clip(level, float(LOWEST_LEVEL), float(LOWEST_LEVEL + ROI_LEVELS - 1)) - float(LOWEST_LEVEL)
    return graph.op("Squeeze", place.cast(np.int64), np.array([1], np.int64))
