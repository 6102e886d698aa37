"""``blu_export.boxes`` as ONNX nodes: boxes are (y1, x1, y2, x2) in normalized coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blu_export.graph.builder import Graph, Value


def decode(graph: Graph, deltas: Value, boxes: Value, std_dev: Sequence[float]) -> tuple[Value, Value]:
    """Move and scale boxes [..., 4] by raw deltas [..., 4] (dy, dx, log dh, log dw) × std_dev.

    Returns:
        The near and the far corners, each [..., 2].
    """
    near, far = boxes.split(2, 2)
    shift, log_scale = (deltas * np.array(std_dev, np.float32)).split(2, 2)
    size = far - near
    center = near + 0.5 * size + shift * size
    size = size * graph.op("Exp", log_scale)
    near = center - 0.5 * size
    return near, near + size
