"""Both forms of NMS against the greedy loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from blu_export.graph import nms
from blu_export.graph.builder import Graph, Value


def greedy(boxes: NDArray[np.float32], threshold: float, classes: Any = None, candidate: Any = None) -> NDArray[Any]:
    """The greedy loop over boxes [k, 4] that are sorted, best first; float32 as the runtimes compute."""
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i, box in enumerate(boxes):
        if candidate is not None and not candidate[i]:
            continue
        others = np.array([j for j in kept if classes is None or classes[j] == classes[i]], dtype=int)
        near, far = np.maximum(boxes[others, :2], box[:2]), np.minimum(boxes[others, 2:], box[2:])
        intersection = np.maximum(far - near, np.float32(0)).prod(axis=1)
        union = area[others] + area[i] - intersection
        overlaps = (area[i] > 0) & (area[others] > 0)
        overlaps[overlaps] = intersection[overlaps] / union[overlaps] > np.float32(threshold)
        if not overlaps.any():
            kept.append(i)
    result = np.zeros(len(boxes), np.float32)
    result[kept] = 1
    return result


# A coarse grid: equal boxes, exact ties of IoU at 1/2 and 1/3, and empty boxes are common.
grid = st.integers(0, 6).map(lambda v: np.float32(v / 8))
corners = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40), st.just(4)), elements=grid)
threshold = st.sampled_from([0.0, 0.3, 0.5, 0.7])


def as_boxes(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([np.minimum(raw[..., :2], raw[..., 2:]), np.maximum(raw[..., :2], raw[..., 2:])], axis=-1)


@pytest.mark.parametrize("form", ["operator", "tensors"])
@given(raw=corners, threshold=threshold)
def test_equals_the_greedy_loop(run_graph: Any, form: str, raw: NDArray[np.float32], threshold: float) -> None:
    boxes = as_boxes(raw)
    count = boxes.shape[1]

    def build(graph: Graph, value: Value) -> Value:
        if form == "operator":
            return nms.keep_by_operator(graph, value, count, count, threshold)
        return nms.keep_by_tensors(graph, value, count, threshold)

    found = run_graph(build, boxes=boxes)[0]
    np.testing.assert_array_equal(found, [greedy(b, threshold) for b in boxes])


@pytest.mark.parametrize("form", ["operator", "tensors"])
@given(raw=corners, threshold=threshold, data=st.data())
def test_classes_leave_each_other_alone(
    run_graph: Any, form: str, raw: NDArray[np.float32], threshold: float, data: st.DataObject
) -> None:
    boxes = as_boxes(raw)
    batch, count = boxes.shape[:2]
    classes = data.draw(hnp.arrays(np.int64, (batch, count), elements=st.integers(1, 3)))
    candidate = data.draw(hnp.arrays(np.bool_, (batch, count)))

    def build(graph: Graph, value: Value, ids: Value, candidate: Value) -> Value:
        if form == "operator":
            return nms.keep_by_operator(graph, value, count, count, threshold, (ids, candidate, 4))
        return nms.keep_by_tensors(graph, value, count, threshold, (ids, candidate))

    found = run_graph(build, boxes=boxes, ids=classes, candidate=candidate)[0]
    expected = [greedy(b, threshold, c, k) for b, c, k in zip(boxes, classes, candidate, strict=True)]
    np.testing.assert_array_equal(found, expected)


def chain(count: int) -> NDArray[np.float32]:
    """Each box hits the next one only: one survivor more is decided in each round, the worst case there is."""
    start = np.arange(count, dtype=np.float32) / 1024
    return np.stack([start, np.zeros_like(start), start + 3 / 1024, np.ones_like(start)], axis=1)


def test_chains_longer_than_a_block(run_graph: Any) -> None:
    count = nms.NMS_BLOCK + 90
    boxes = np.stack([chain(count), chain(count)[::-1], np.tile(chain(1), (count, 1))])
    found = run_graph(lambda graph, value: nms.keep_by_tensors(graph, value, count, 0.4), boxes=boxes)[0]
    np.testing.assert_array_equal(found, [greedy(b, 0.4) for b in boxes])
    assert found[0].sum() == (count + 1) // 2
    assert found[2].sum() == 1


def test_boxes_of_three_blocks(run_graph: Any) -> None:
    random = np.random.default_rng(3)
    centers = random.uniform(0.2, 0.8, (2, 1200, 2)) // 0.05 * 0.05
    sizes = random.uniform(0.05, 0.3, (2, 1200, 2))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=2).clip(0, 1).astype(np.float32)
    for form in (
        lambda graph, value: nms.keep_by_tensors(graph, value, 1200, 0.5),
        lambda graph, value: nms.keep_by_operator(graph, value, 1200, 1200, 0.5),
    ):
        np.testing.assert_array_equal(run_graph(form, boxes=boxes)[0], [greedy(b, 0.5) for b in boxes])


@pytest.mark.parametrize(("wanted", "enough"), [(3, True), (8, False)])
def test_first_kept_keeps_the_order_and_pads_with_zeros(run_graph: Any, wanted: int, enough: bool) -> None:
    keep = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1]], np.float32)
    rows = np.arange(1, 21, dtype=np.float32).reshape(2, 5, 2)
    found, used = run_graph(
        lambda graph, k, r: nms.gather_kept(graph, k, r, 5, wanted, enough, None), keep=keep, rows=rows
    )
    expected = np.zeros((2, wanted, 2), np.float32)
    expected[0, :3], expected[1, :1] = rows[0, [1, 3, 4]], rows[1, [4]]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(used[..., 0].sum(axis=1), [3, 1])
