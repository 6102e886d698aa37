"""Tracks: one number for one thing, over frames left out, crossings, gaps and doubtful detections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blu_export import Detections
from blu_export.tracks import Tracker

CLASSES = ("BG", "coat", "shoe")
SIZE = (400, 600)
Place = Callable[[float], tuple[float, float]]
"""Frame -> (y, x) of a thing's upper left corner."""


def frame(*things: tuple[float, float, int, float], side: int = 40) -> Detections:
    """Things (y, x, class, score) of that many pixels a side."""
    things = tuple(sorted(things, key=lambda thing: -thing[3]))
    rois = np.array([(y, x, y + side, x + side) for y, x, *_ in things]).round().astype(int).reshape(-1, 4)
    crops = tuple(np.ones((side, side), bool) for _ in things)
    ids, scores = np.array([each[2] for each in things], int), np.array([each[3] for each in things])
    return Detections(rois, ids, scores, crops, SIZE, CLASSES)


def follow(places: list[Place], frames: range, seed: int = 0) -> list[set[int]]:
    """The numbers that each thing had, where boxes tremble by a pixel or two."""
    random = np.random.default_rng(seed)
    tracker = Tracker(fps=25)
    numbers: list[set[int]] = [set() for _ in places]
    for number in frames:
        spots = [np.add(place(number), random.normal(0, 1, 2)) for place in places]
        found = tracker.update(frame(*((*spot, 1, 0.9 - 0.01 * i) for i, spot in enumerate(spots))), number)
        assert found.track_ids is not None
        for roi, track in zip(found.rois, found.track_ids.tolist(), strict=True):
            nearest = min(range(len(spots)), key=lambda i: float(np.abs(spots[i] - roi[:2]).sum()))
            numbers[nearest].add(track)
    return numbers


@pytest.mark.parametrize("stride", [1, 2, 5, 10])
def test_numbers_survive_frames_left_out(stride: int) -> None:
    places: list[Place] = [
        lambda t: (20, 10 + 3 * t),
        lambda t: (150, 500 - 4 * t),
        lambda t: (300 - 2 * t, 30 + 1.5 * t),
    ]
    numbers = follow(places, range(0, 100, stride))
    assert [len(each) for each in numbers] == [1, 1, 1]
    assert len(set.union(*numbers)) == 3


def test_things_that_pass_each_other_keep_their_numbers() -> None:
    numbers = follow([lambda t: (100, 20 + 5 * t), lambda t: (125, 500 - 5 * t)], range(90))
    assert [len(each) for each in numbers] == [1, 1]


def test_a_thing_that_is_hidden_for_a_second_comes_back() -> None:
    tracker = Tracker(fps=25)
    seen = [tracker.update(frame((50, 20 + 4 * t, 1, 0.9)) if t < 30 or t > 50 else frame(), t) for t in range(80)]
    assert {int(found.track_ids[0]) for found in seen if len(found)} == {1}
    assert tracker.update(frame((50, 20, 1, 0.9)), 1000).track_ids.tolist() == [2]  # long gone


def test_a_doubtful_detection_keeps_its_track_and_begins_none() -> None:
    tracker = Tracker()
    assert tracker.update(frame((50, 50, 1, 0.3))).track_ids.tolist() == [-1]
    assert tracker.update(frame((50, 50, 1, 0.9))).track_ids.tolist() == [1]
    assert tracker.update(frame((52, 50, 1, 0.2), (200, 200, 1, 0.1))).track_ids.tolist() == [1, -1]


def test_classes_are_told_apart() -> None:
    tracker = Tracker()
    assert tracker.update(frame((50, 50, 1, 0.9), (50, 50, 2, 0.8))).track_ids.tolist() == [1, 2]
    assert tracker.update(frame((50, 50, 2, 0.9), (50, 50, 1, 0.8))).track_ids.tolist() == [2, 1]


def test_tracks_are_in_every_form() -> None:
    found = Tracker().update(frame((50, 50, 1, 0.9), (200, 200, 2, 0.3)))
    assert [each.track_id for each in found] == [1, None]
    assert [each["track"] for each in found.to_json()["detections"]] == [1, -1]
    assert [each["track_id"] for each in found.to_coco()] == [1, -1]
    assert Detections.from_json(found.to_json()).track_ids.tolist() == [1, -1]
    assert found[[1]].track_ids.tolist() == [-1]
    assert found.filter(0.5).track_ids.tolist() == [1]
