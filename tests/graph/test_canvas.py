"""What follows from the canvas: constants and computed values agree with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blu_export.anchors import pyramid_anchors
from blu_export.graph.builder import Graph, Value
from blu_export.graph.canvas import Canvas


@pytest.mark.parametrize("size", [(64, 64), (128, 320), (512, 192)])
@pytest.mark.parametrize("stride", [1, 2])
def test_computed_anchors_equal_the_table(run_graph: Any, make_spec: Any, size: tuple[int, int], stride: int) -> None:
    spec = make_spec(image_resize_mode="pad64", rpn_anchor_stride=stride)
    expected = pyramid_anchors(spec, size)
    index = np.random.default_rng(0).permutation(len(expected))[None]

    def build(graph: Graph, canvas: Value, index: Value) -> Value:
        return Canvas(graph, spec).anchors(index)

    found = run_graph(build, canvas=np.zeros((1, *size, 3), np.uint8), index=index)[0]
    np.testing.assert_allclose(found[0], expected[index[0]], rtol=0, atol=5e-7)


def test_constants_equal_what_is_computed(run_graph: Any, make_spec: Any) -> None:
    names = ("far", "area_root", "heights", "widths", "anchor_starts", "pyramid_starts", "cells")
    window = np.array([[0, 10, 128, 100]], np.float32)

    def values(mode: str) -> Any:
        def build(graph: Graph, canvas: Value, window: Value) -> tuple[Value, ...]:
            made = Canvas(graph, make_spec(image_resize_mode=mode))
            return *(graph.op("Identity", getattr(made, n)) for n in names), made.normalize(window), made.image()

        pixels = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
        return run_graph(build, canvas=pixels, window=window)

    for name, constant, computed in zip((*names, "window", "image"), values("square"), values("pad64"), strict=True):
        np.testing.assert_array_equal(constant, computed, err_msg=name)
