"""ROI align as gather and product against TensorFlow's crop_and_resize."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from blu_export.anchors import pyramid_shapes
from blu_export.graph.builder import Graph, Value
from blu_export.graph.canvas import Canvas
from blu_export.graph.roi_align import join_pyramid, roi_align, roi_level

CHANNELS = 3
coordinate = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, 1 / 3]), st.floats(0, 1, width=32), st.floats(0, 2**-20, width=32)
).map(np.float32)


@pytest.mark.parametrize("target", ["portable", "tensorrt"])
@pytest.mark.parametrize("size", [(128, 128), (64, 192)])
@given(raw=hnp.arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(1, 12), st.just(4)), elements=coordinate))
def test_equals_crop_and_resize(
    run_graph: Any, make_spec: Any, target: str, size: tuple[int, int], raw: NDArray[np.float32]
) -> None:
    from blu_export.model.roi_align import pyramid_roi_align

    near, far = np.minimum(raw[..., :2], raw[..., 2:]), np.maximum(raw[..., :2], raw[..., 2:])
    boxes = np.concatenate([near, far], axis=-1)
    batch, count = boxes.shape[:2]
    mode = "square" if size == (128, 128) else "pad64"
    spec = make_spec(image_resize_mode=mode, top_down_pyramid_size=CHANNELS)
    random = np.random.default_rng(0)
    shapes = pyramid_shapes(spec, size)[:4]
    pyramid = {f"p{i}": random.standard_normal((batch, CHANNELS, *s)).astype(np.float32) for i, s in enumerate(shapes)}

    def build(graph: Graph, canvas: Value, boxes: Value, image_of: Value, *levels: Value) -> Value:
        table = join_pyramid(graph, list(levels), CHANNELS)
        return roi_align(graph, boxes, image_of, table, Canvas(graph, spec), 7, target, half=False)

    found = run_graph(
        build,
        canvas=np.zeros((batch, *size, 3), np.uint8),
        boxes=boxes.reshape(-1, 4),
        image_of=np.repeat(np.arange(batch), count),
        **pyramid,
    )[0]
    expected = pyramid_roi_align(boxes, [p.transpose(0, 2, 3, 1) for p in pyramid.values()], 7, np.array(size))
    np.testing.assert_allclose(found.reshape(-1, 7, 7, CHANNELS), expected, rtol=0, atol=2e-4)


@given(raw=hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(4)), elements=coordinate))
def test_levels_equal_the_reference(run_graph: Any, make_spec: Any, raw: NDArray[np.float32]) -> None:
    from blu_export.model.roi_align import roi_levels

    near, far = np.minimum(raw[:, :2], raw[:, 2:]), np.maximum(raw[:, :2], raw[:, 2:])
    boxes = np.concatenate([near, far], axis=1)
    exact = 4 + np.log2(np.maximum(np.sqrt((far - near).astype(np.float64).prod(axis=1)), 1e-30) * 1024 / 224)
    firm = np.abs(exact - np.floor(exact) - 0.5) > 1e-5  # not on the edge between two levels
    spec = make_spec(image_min_dim=1024, image_max_dim=1024)

    def build(graph: Graph, canvas: Value, boxes: Value) -> Value:
        return roi_level(graph, boxes, Canvas(graph, spec))

    found = run_graph(build, canvas=np.zeros((1, 1, 1, 3), np.uint8), boxes=boxes)[0]
    expected = np.asarray(roi_levels(boxes, np.array([1024, 1024]))) - 2
    np.testing.assert_array_equal(found[firm], expected[firm])
    assert ((found >= 0) & (found <= 3)).all()
