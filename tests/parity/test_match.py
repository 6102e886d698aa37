from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blu_export.boxes import iou
from blu_export.parity.match import mask_iou, match


@dataclass
class Found:
    rois: NDArray[np.int32]
    class_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    crops: list[NDArray[np.bool_]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rois = np.asarray(self.rois, np.int32).reshape(-1, 4)
        self.class_ids = np.asarray(self.class_ids, np.int32)
        self.scores = np.asarray(self.scores, np.float32)
        self.crops = self.crops or [np.ones((y2 - y1, x2 - x1), bool) for y1, x1, y2, x2 in self.rois]

    def permuted(self, order: list[int]) -> Found:
        return Found(self.rois[order], self.class_ids[order], self.scores[order], [self.crops[i] for i in order])


SCENE = Found([[0, 0, 10, 10], [20, 20, 40, 40], [20, 20, 40, 41]], [1, 2, 3], [0.9, 0.8, 0.7])
NONE = Found([], [], [])


def test_equal_sets_match_fully_in_any_order() -> None:
    result = match(SCENE, SCENE.permuted([2, 0, 1]))
    assert (result.matched, result.total) == (3, 3)
    assert {tuple(pair) for pair in result.pairs} == {(0, 1), (1, 2), (2, 0)}
    assert result.box_error.max() == 0
    assert result.score_error.max() == 0
    assert result.mask_iou.min() == 1


def test_another_class_is_no_match() -> None:
    result = match(SCENE, Found(SCENE.rois, [1, 2, 2], SCENE.scores))
    assert (result.matched, result.total) == (2, 3)
    assert result.only_reference.tolist() == [2]
    assert result.only_candidate.tolist() == [2]


def test_extra_instances_count_as_missing_ones_do() -> None:
    assert match(SCENE, SCENE.permuted([0, 1])).total == 3
    assert match(SCENE.permuted([0, 1]), SCENE).total == 3
    assert match(SCENE, NONE).total == match(NONE, SCENE).total == 3
    assert match(NONE, NONE).total == 0


def test_the_best_overlap_wins_and_each_instance_has_one_partner() -> None:
    one = Found([[0, 0, 10, 10]], [1], [0.5])
    two = Found([[0, 0, 10, 8], [0, 0, 10, 9]], [1, 1], [0.5, 0.6])
    result = match(one, two)
    assert result.pairs.tolist() == [[0, 1]]
    assert result.only_candidate.tolist() == [0]
    assert result.box_error.tolist() == [1]
    assert result.score_error == pytest.approx([0.1])
    assert result.mask_iou == pytest.approx([0.9])


def test_of_equal_boxes_the_nearer_score_wins() -> None:
    box = [0, 0, 10, 10]
    result = match(Found([box, box], [1, 1], [0.9, 0.5]), Found([box, box], [1, 1], [0.5, 0.9]))
    assert {tuple(pair) for pair in result.pairs} == {(0, 1), (1, 0)}
    assert result.score_error.max() == 0


def test_boxes_that_hardly_overlap_are_different_instances() -> None:
    result = match(Found([[0, 0, 10, 10]], [1], [0.5]), Found([[0, 6, 10, 16]], [1], [0.5]))
    assert result.matched == 0


boxes = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)


@given(boxes, boxes, st.integers(0, 2**32 - 1))
def test_mask_iou_equals_the_one_on_full_masks(a: tuple[int, ...], b: tuple[int, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    crops = [random.random((box[2] - box[0], box[3] - box[1])) < 0.6 for box in (a, b)]
    full = np.zeros((2, 12, 12), bool)
    for image, box, crop in zip(full, (a, b), crops, strict=True):
        image[box[0] : box[2], box[1] : box[3]] = crop
    union = np.count_nonzero(full[0] | full[1])
    expected = np.count_nonzero(full[0] & full[1]) / union if union else 1.0
    assert mask_iou(np.array(a), crops[0], np.array(b), crops[1]) == pytest.approx(expected)


@given(st.lists(boxes, max_size=5), st.lists(boxes, max_size=5))
def test_box_iou_equals_counting_pixels(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> None:
    def pixels(box: tuple[int, ...]) -> set[tuple[int, int]]:
        return {(y, x) for y in range(box[0], box[2]) for x in range(box[1], box[3])}

    found = iou(np.array(a).reshape(-1, 4), np.array(b).reshape(-1, 4))
    assert found.shape == (len(a), len(b))
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            union = pixels(first) | pixels(second)
            expected = len(pixels(first) & pixels(second)) / len(union) if union else 0
            assert found[i, j] == pytest.approx(expected)
