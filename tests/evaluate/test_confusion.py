"""The confusion matrix, the best scores, and NMS across classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from blu_export.boxes import suppress
from blu_export.data.dataset import Annotation, Dataset, Record
from blu_export.evaluate.coco import Evaluator
from blu_export.evaluate.results import nms_across_classes


def square(category: int, x: int, crowd: bool = False) -> Annotation:
    return Annotation(category, (0, x, 10, x + 10), [[x, 0, x + 10, 0, x + 10, 10, x, 10]], crowd)


def found(category: int, x: int, score: float) -> dict[str, Any]:
    return {"image_id": 7, "category_id": category, "score": score, "bbox": [x, 0, 10, 10]}


def dataset(*annotations: Annotation) -> Dataset:
    return Dataset(("BG", "cup", "box"), (Record(7, "a.png", 20, 200, annotations),))


def test_confusion_counts_right_wrong_missed_and_false() -> None:
    truth = dataset(square(1, 0), square(1, 20), square(2, 40), square(2, 60), square(1, 80, crowd=True))
    rows = [
        found(1, 0, 0.9),
        found(2, 1, 0.95),  # the same cup again, taken for a box: the cup goes to the right one
        found(2, 20, 0.8),
        found(2, 40, 0.7),
        found(2, 60, 0.3),  # below what is shown
        found(2, 81, 0.9),  # on a crowd
        found(1, 150, 0.9),
    ]
    evaluation = Evaluator(truth)(rows)
    np.testing.assert_array_equal(evaluation.confusion, [[0, 1, 1], [0, 1, 1], [1, 0, 1]])


def test_the_best_score_of_a_class() -> None:
    truth = dataset(square(1, 0), square(1, 20), square(1, 40))
    rows = [found(1, 0, 0.9), found(1, 20, 0.8), found(1, 100, 0.6), found(1, 120, 0.6), found(1, 40, 0.5)]
    best = Evaluator(truth)(rows).scores["box"].best_scores
    assert best["box"] is None
    assert best["cup"] is not None
    assert (best["cup"].score, best["cup"].precision, best["cup"].recall) == (0.8, 1.0, 2 / 3)
    nothing = Evaluator(truth)([]).scores["box"].best_scores["cup"]
    assert nothing is not None and nothing.f1 == 0


def test_nms_across_classes() -> None:
    rows = [found(1, 0, 0.5), found(2, 1, 0.9), found(1, 50, 0.4), found(2, 5, 0.3)]
    assert nms_across_classes(rows, 0.5) == [rows[1], rows[2], rows[3]]
    other = rows[0] | {"image_id": 8}
    assert nms_across_classes([other, rows[1]], 0.5) == [other, rows[1]]
    assert nms_across_classes([], 0.5) == []
    assert suppress(np.zeros((0, 4)), [], 0.5) == []
    assert suppress([[0, 0, 10, 10], [0, 0, 10, 10]], [0.5, 0.5], 0.99) == [0]
