"""Greedy non-maximum suppression of boxes that are sorted, best first.

Two forms give the same result: the ONNX operator, and plain tensor operations for TensorRT, which
has no such operator without a plugin.
"""

from __future__ import annotations

import numpy as np

from blu_export.graph.builder import Graph, Value
from blu_export.graph.topk import top_k

NMS_BLOCK = 512
"""Boxes decided at a time by the tensor form: its memory grows with block × boxes."""


def keep_by_operator(graph: Graph, boxes: Value, count: int | Value, limit: int, threshold: float,
                     classes: tuple[Value, Value, int] | None = None) -> Value:  # fmt: skip
    """Which boxes survive, with the NonMaxSuppression operator.

    Args:
        boxes: float32 [B, k, 4], best first.
        count: k; a Value int64 scalar where it depends on the canvas.
        limit: at most this many boxes are kept (of a class).
        threshold: boxes that overlap a kept one by more than this IoU are dropped.
        classes: ``(class ids int64 [B, k], candidate bool [B, k], number of classes)``: boxes of
            different classes do not suppress each other and only candidates take part; class 0 never does.

    Returns:
        float32 [B, k], 1 for kept boxes.
    """
    # The rank as the score: no two are equal, so no runtime has to break a tie in its own way.
    order = _countdown(graph, count)
    if classes is None:
        scores = graph.op("Expand", order, graph.op("Shape", boxes, start=0, end=2)).unsqueeze(1)
    else:
        class_ids, candidate, number = classes
        every = np.arange(1, number, dtype=np.int64)[:, None]
        takes_part = class_ids.unsqueeze(1).equals(every) & candidate.unsqueeze(1)
        scores = graph.where(takes_part, order, 0.0)
    selected = graph.op(
        "NonMaxSuppression",
        boxes,
        scores,
        np.array([limit], np.int64),
        np.array([threshold], np.float32),
        np.array([0.5], np.float32),
    )
    image, _, box = selected.split(1, 1, 1)
    nothing = graph.op("Expand", 0.0, graph.op("Shape", boxes, start=0, end=2))
    kept = graph.op("Expand", 1.0, graph.op("Shape", selected, start=0, end=1))
    return graph.op("ScatterND", nothing, graph.concat([image, box], axis=1), kept)


def keep_by_tensors(graph: Graph, boxes: Value, count: int, threshold: float,
                    classes: tuple[Value, Value] | None = None) -> Value:  # fmt: skip
    """Which boxes survive, with plain tensor operations; see ``keep_by_operator``.

    Blocks of NMS_BLOCK boxes are decided one after the other, best first. Within a block the rule
    "kept, if alive and no better box that is kept overlaps it" is applied until nothing changes. After
    round i the best i boxes are final, so the fixed point is unique, is what the greedy loop finds, and
    is reached in at most a block's length of rounds (about seven on real proposals).
    """
    corners = boxes.split(1, 1, 1, 1)
    area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    features = [*corners, area]
    if classes is not None:
        features.append(classes[0].cast(np.float32).unsqueeze(2))
        alive = classes[1].cast(np.float32).unsqueeze(2)
    else:
        alive = graph.op("Expand", 1.0, graph.op("Shape", area))
    across = [v.transpose(0, 2, 1) for v in features]
    alive = alive.transpose(0, 2, 1)
    decided = []
    for start in range(0, count, NMS_BLOCK):
        stop = min(start + NMS_BLOCK, count)
        size = stop - start
        mine = [v.slice(start, stop, axis=1) for v in features]
        within = _overlaps(graph, mine, [v.slice(start, stop, axis=2) for v in across], threshold)
        better = np.triu(np.ones((size, size), np.float32), k=1)
        within = within * graph.const(better, f"better_{size}")
        kept = _fixed_point(graph, within, alive.slice(0, size, axis=2), size)
        decided.append(kept)
        if stop < count:
            rest = [v.slice(stop, count, axis=2) for v in across]
            hit = _overlaps(graph, mine, rest, threshold) * kept.transpose(0, 2, 1)
            alive = alive.slice(size, count - start, axis=2) * (1.0 - graph.reduce("Max", hit, 1))
    return graph.concat(decided, axis=2).reshape(0, -1)


def gather_kept(graph: Graph, keep: Value, rows: Value, count: int | Value, wanted: int, enough: bool,
               limit: int | None) -> tuple[Value, Value]:  # fmt: skip
    """The first ``wanted`` kept rows, in order, then rows of zeros.

    Args:
        keep: float32 [B, k], 1 for rows to keep.
        rows: float32 [B, k, n].
        count: k; a Value int64 scalar where it depends on the canvas.
        enough: whether k is known to be at least ``wanted``.
        limit: see ``top_k``.

    Returns:
        float32 [B, wanted, n], and float32 [B, wanted, 1] that is 1 for rows in use.
    """
    rank = keep * _countdown(graph, count)
    if not enough:
        rank = graph.op("Pad", rank, np.array([0, 0, 0, wanted], np.int64), 0.0)
        rows = graph.op("Pad", rows, np.array([0, 0, 0, 0, wanted, 0], np.int64), 0.0)
    best, index = top_k(graph, rank, wanted, limit)
    used = (best > 0.0).cast(np.float32).unsqueeze(2)
    return rows.rows_of_batch(index) * used, used


def _countdown(graph: Graph, count: int | Value) -> Value:
    """float32 [k]: k, k - 1, …, 1."""
    if isinstance(count, Value):
        return graph.op("Range", count, 0, -1).cast(np.float32)
    return graph.const(np.arange(count, 0, -1, dtype=np.float32))


def _overlaps(graph: Graph, a: list[Value], b: list[Value], threshold: float) -> Value:
    """1 where IoU > threshold (and the classes agree): [B, n, m] of columns [B, n, 1] and rows [B, 1, m].

    The same operations in the same order as TensorFlow's and ONNX Runtime's own. Two empty boxes give
    0 / 0, and a comparison with that is false: they do not overlap, as there.
    """
    height = graph.op("Min", a[2], b[2]) - graph.op("Max", a[0], b[0])
    width = graph.op("Min", a[3], b[3]) - graph.op("Max", a[1], b[1])
    intersection = graph.op("Max", height, 0.0) * graph.op("Max", width, 0.0)
    overlaps = intersection / (a[4] + b[4] - intersection) > threshold
    if len(a) > 5:
        overlaps = overlaps & a[5].equals(b[5])
    return overlaps.cast(np.float32)


def _fixed_point(graph: Graph, overlaps: Value, alive: Value, size: int) -> Value:
    """Greedy survivors [B, 1, n] of ``alive`` [B, 1, n]; overlaps[b, i, j]: i is better than j and hits it."""

    def body(inner: Graph, kept: Value) -> tuple[Value, Value]:
        outer_overlaps, outer_alive = (
            inner.value(overlaps.name),
            inner.value(alive.name),
        )
        hit = inner.reduce("Max", outer_overlaps * kept.transpose(0, 2, 1), 1)
        now = outer_alive * (1.0 - hit)
        changed = inner.reduce("Max", inner.op("Abs", now - kept), 0, 1, 2, keepdims=False)
        return changed > 0.0, now

    with graph.stage("nms"):
        return graph.loop(size, alive, ["batch", 1, size], body)
