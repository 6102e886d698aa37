"""TopK, in pieces where the target limits it."""

from __future__ import annotations

import numpy as np

from blu_export.graph.builder import Graph, Value

TENSORRT_TOPK_LIMIT = 3840
"""The largest k that TensorRT's TopK takes."""


def top_k(graph: Graph, scores: Value, k: int | Value, limit: int | None) -> tuple[Value, Value]:
    """The ``k`` best of scores float32 [B, N], best first; of equal scores the lower index first.

    Args:
        k: at most N; a Value int64 [1] where it depends on the canvas (then ``limit`` is None).
        limit: largest k that one TopK may ask for. More are taken in several rounds: those found
            are masked with a low score before the next round.

    Returns:
        scores float32 [B, k] and their indices int64 [B, k].
    """
    if isinstance(k, Value) or limit is None or k <= limit:
        count = k if isinstance(k, Value) else np.array([k], np.int64)
        values, index = graph.ops("TopK", scores, count, axis=1, outputs=2)
        return values, index
    found: list[tuple[Value, Value]] = []
    remaining = k
    while remaining > 0:
        if found:
            # Subtracting the taken scores' own values keeps this a function of shapes known to the parser.
            sunk = graph.op("Add", found[-1][0] * 0.0, float(np.finfo(np.float32).min))
            scores = graph.op("ScatterElements", scores, found[-1][1], sunk, axis=1)
        found.append(top_k(graph, scores, min(remaining, limit), limit))
        remaining -= limit
    return graph.concat([v for v, _ in found], axis=1), graph.concat([i for _, i in found], axis=1)
