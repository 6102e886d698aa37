"""Anchors against the original's own formulas, written out for one position at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blu_export.anchors import ROI_EDGE, pyramid_anchors, pyramid_shapes
from blu_export.spec import ModelSpec

SPEC = ModelSpec(class_names=("BG", "a"), image_min_dim=256, image_max_dim=256)


def test_pyramid_shapes_round_up() -> None:
    assert pyramid_shapes(SPEC, (256, 320)) == [(64, 80), (32, 40), (16, 20), (8, 10), (4, 5)]


def test_first_and_last_anchor_of_a_canvas() -> None:
    anchors = pyramid_anchors(SPEC, (256, 256))
    assert anchors.shape == (16368, 4)
    assert anchors.dtype == np.float32
    half_h, half_w = 16 / np.sqrt(0.5), 16 * np.sqrt(0.5)
    np.testing.assert_allclose(anchors[0] * 255, [-half_h, -half_w, half_h - 1, half_w - 1], rtol=1e-6)
    # The last anchor sits on the last cell of P6 (stride 64, cell 3) with ratio 2.
    half_h, half_w, center = 256 / np.sqrt(2), 256 * np.sqrt(2), 192
    expected = [center - half_h, center - half_w, center + half_h - 1, center + half_w - 1]
    np.testing.assert_allclose(anchors[-1] * 255, expected, rtol=1e-6)


@settings(max_examples=8)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_order_is_level_then_y_then_x_then_ratio(rows: int, columns: int, anchor_stride: int) -> None:
    spec = SPEC.replace(rpn_anchor_stride=anchor_stride, image_resize_mode="pad64")
    canvas = (64 * rows, 64 * columns)
    anchors = pyramid_anchors(spec, canvas).astype(np.float64)
    anchors = anchors * [canvas[0] - 1, canvas[1] - 1, canvas[0] - 1, canvas[1] - 1] + [0, 0, 1, 1]
    row = 0
    for scale, stride, (height, width) in zip(
        spec.rpn_anchor_scales, spec.backbone_strides, pyramid_shapes(spec, canvas), strict=True
    ):
        for y in range(0, height, anchor_stride):
            for x in range(0, width, anchor_stride):
                for ratio in spec.rpn_anchor_ratios:
                    h, w = scale / ratio**0.5, scale * ratio**0.5
                    center = (y * stride, x * stride)
                    expected = [center[0] - h / 2, center[1] - w / 2, center[0] + h / 2, center[1] + w / 2]
                    np.testing.assert_allclose(anchors[row], expected, atol=1e-3)
                    row += 1
    assert row == len(anchors)


def test_the_edge_is_below_one_by_less_than_a_thousandth_of_a_pixel_of_the_feature_map() -> None:
    assert np.float32(ROI_EDGE) < 1
    assert (1 - ROI_EDGE) * 256 < 1e-3
