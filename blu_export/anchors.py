"""Anchor boxes and the constants of box geometry. NumPy only: the exporter uses them too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blu_export.spec import ModelSpec

ROI_EDGE = 1.0 - 2.0**-20
"""ROI corners are clipped to [0, ROI_EDGE] before a crop.

At exactly 1 the last of the samples of ``tf.image.crop_and_resize`` can land a rounding beyond the
feature map, and is then zero instead of the edge value, for about one in nine of such boxes. Which
boxes depends on the order of the float operations, so no two runtimes would agree on them. The clip
moves a corner by less than a thousandth of a pixel and makes the sample clamp everywhere.
"""

ROI_CANONICAL_SIZE = 224.0
"""A ROI of this side, in pixels, is pooled from P4 (FPN paper, equation 1)."""


def pyramid_shapes(spec: ModelSpec, canvas: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of P2..P6 for a canvas (height, width) in pixels."""
    return [(-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in spec.backbone_strides]


def level_anchors(
    scale: float, ratios: tuple[float, ...], shape: tuple[int, int], stride: int, anchor_stride: int
) -> NDArray[np.float64]:
    """Anchors of one pyramid level.

    Args:
        scale: side of the square anchor, pixels of the canvas.
        ratios: width over height of each anchor at a position.
        shape: (height, width) of the feature map.
        stride: pixels of the canvas per cell of the feature map.
        anchor_stride: anchors are made at every ``anchor_stride``-th cell.

    Returns:
        float64 [cells × ratios, 4], (y1, x1, y2, x2) in pixels, ordered by y, x, ratio.
    """
    root = np.sqrt(np.asarray(ratios, np.float64))
    sizes = np.stack([scale / root, scale * root], axis=1)
    y = np.arange(0, shape[0], anchor_stride) * stride
    x = np.arange(0, shape[1], anchor_stride) * stride
    centers = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    return np.concatenate([centers - 0.5 * sizes, centers + 0.5 * sizes], axis=2).reshape(-1, 4)


def pyramid_anchors(spec: ModelSpec, canvas: tuple[int, int]) -> NDArray[np.float32]:
    """All anchors of a canvas, from P2 to P6.

    Args:
        canvas: (height, width) in pixels.

    Returns:
        float32 [A, 4], (y1, x1, y2, x2) normalized as the original's ``norm_boxes``: the far corner
        is one pixel nearer, and 1 is the last pixel.
    """
    levels = [
        level_anchors(scale, spec.rpn_anchor_ratios, shape, stride, spec.rpn_anchor_stride)
        for scale, shape, stride in zip(
            spec.rpn_anchor_scales, pyramid_shapes(spec, canvas), spec.backbone_strides, strict=True
        )
    ]
    height, width = canvas
    scale = np.array([height - 1, width - 1, height - 1, width - 1])
    anchors: NDArray[np.float32] = ((np.concatenate(levels) - [0, 0, 1, 1]) / scale).astype(np.float32)
    return anchors
