"""Classes of two sets matched by name, and sets from which nothing can be learned."""

from __future__ import annotations

import logging

import pytest

from blu_export.data.classes import find_untrainable, match_classes, match_names, require_trainable
from blu_export.data.dataset import Annotation, Dataset, Record, Segmentation
from blu_export.data.problems import Problem
from blu_export.errors import DatasetError

SQUARE: Segmentation = [[0, 0, 5, 0, 5, 5, 0, 5]]


def made(names: tuple[str, ...], *categories: int, **values: object) -> Dataset:
    annotations = tuple(Annotation(category, (0, 0, 5, 5), SQUARE) for category in categories)
    return Dataset(("BG", *names), (Record(1, "a.jpg", 10, 10, annotations),), **values)  # type: ignore[arg-type]


def test_names_are_matched_exactly_first() -> None:
    assert match_names(["Cup", " big  BOX "], ["cup", "Cup", "Big Box"]) == [1, 2]
    assert match_names(["CUP", "pen"], ["cup", "Cup"]) == [None, None]


def test_validation_may_have_fewer_classes_in_another_order(caplog: pytest.LogCaptureFixture) -> None:
    validation = made(("box ", "CUP"), 1, 2, 2, category_ids=(0, 70, 5))
    with caplog.at_level(logging.INFO):
        matched = match_classes(validation, ("BG", "cup", "pen", "box"))
    assert matched.class_names == ("BG", "cup", "pen", "box")
    assert [annotation.category for annotation in matched.records[0].annotations] == [3, 1, 1]
    assert matched.category_ids == (0, 5, "pen", 70)
    assert "without case" in caplog.text
    same = made(("cup",), 1)
    assert match_classes(same, ("BG", "cup")) is same


def test_objects_of_other_classes_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"other classes \(pen\) than the training set \(cup\)"):
        match_classes(made(("cup", "pen"), 1, 2), ("BG", "cup"))
    assert match_classes(made(("cup", "pen"), 1), ("BG", "cup")).class_names == ("BG", "cup")
    with pytest.raises(DatasetError, match="cannot be told apart without case"):
        match_classes(made(("Cup", "CUP"), 1), ("BG", "cup"))


@pytest.mark.parametrize(("segmentation", "crowd"), [([], False), (SQUARE, True)])
def test_boxes_and_crowds_train_nothing(segmentation: Segmentation, crowd: bool) -> None:
    annotation = Annotation(1, (0, 0, 5, 5), segmentation, crowd)
    dataset = Dataset(("BG", "cup"), (Record(1, "a.jpg", 10, 10, (annotation,)),))
    assert [problem.kind for problem in find_untrainable(dataset)] == ["nothing to train on"]
    with pytest.raises(DatasetError, match="nothing to train on in data set: no object has a mask"):
        require_trainable(dataset)


def test_a_class_without_objects_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        require_trainable(made(("cup", "box"), 1))
    assert "nothing to learn of the class box" in caplog.text


def test_photos_that_are_all_missing_are_an_error_that_names_the_places() -> None:
    problem = Problem("missing photo", "/x/a.jpg", "a.jpg is not in /x, all folders below /x")
    with pytest.raises(DatasetError, match=r"None of the photos .* all folders below /x\. Name their folder"):
        require_trainable(made(("cup",), 1, problems=(problem,)))
