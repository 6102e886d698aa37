"""Detections for pandas, supervision and notebooks."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from blu_export import Detections
from blu_export.errors import UsageError

SIZE = (40, 60)
CLASSES = ("BG", "coat", "shoe <b>")


def make(**fields: object) -> Detections:
    crops = (np.ones((20, 30), bool), np.eye(10, dtype=bool))
    rois = np.array([[5, 5, 25, 35], [30, 50, 40, 60]])
    return Detections(rois, np.array([1, 2]), np.array([0.75, 0.5]), crops, SIZE, CLASSES, **fields)  # type: ignore[arg-type]


def test_pandas() -> None:
    pytest.importorskip("pandas")
    table = make().to_pandas()
    assert table["class"].tolist() == ["coat", "shoe <b>"]
    assert table["score"].tolist() == [0.75, 0.5]
    assert table[["x", "y", "width", "height", "area"]].values.tolist() == [[5, 5, 30, 20, 600], [50, 30, 10, 10, 10]]
    assert "track" not in table and "frame" not in table
    assert make().with_tracks([4, -1]).to_pandas()["track"].tolist() == [4, -1]


def test_supervision_and_back() -> None:
    sv = pytest.importorskip("supervision")
    found = make().with_tracks([4, 9])
    theirs = found.to_supervision()
    assert isinstance(theirs, sv.Detections)
    assert theirs.xyxy.tolist() == [[5, 5, 35, 25], [50, 30, 60, 40]]
    assert theirs.data["class_name"].tolist() == ["coat", "shoe <b>"]
    back = Detections.from_supervision(theirs, CLASSES)
    assert back.rois.tolist() == found.rois.tolist()
    assert back.track_ids.tolist() == [4, 9]
    np.testing.assert_array_equal(back.masks, found.masks)
    np.testing.assert_array_equal(back.scores, found.scores)
    # Their own tools take it.
    assert len(theirs[theirs.confidence > 0.6]) == 1
    sv.MaskAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), theirs)


def test_supervision_without_masks_or_detections() -> None:
    sv = pytest.importorskip("supervision")
    empty = Detections.from_supervision(sv.Detections.empty(), CLASSES, SIZE)
    assert (len(empty), empty.image_size) == (0, SIZE)
    boxes = sv.Detections(xyxy=np.array([[1.0, 2, 3, 4]]), confidence=np.array([0.5]), class_id=np.array([1]))
    with pytest.raises(UsageError, match="no mask"):
        Detections.from_supervision(boxes, CLASSES, SIZE)
    none = Detections.empty(SIZE, CLASSES)
    assert len(Detections.from_supervision(none.to_supervision(), CLASSES, SIZE)) == 0


def test_a_notebook_shows_the_picture_or_a_table() -> None:
    alone = make()
    assert alone._repr_png_() is None
    table = alone._repr_html_()
    assert table is not None and "<td>0.750000</td>" in table and "shoe &lt;b&gt;" in table
    image = np.full((*SIZE, 3), 90, np.uint8)
    known = make(photo=lambda: image)
    assert known._repr_html_() is None
    picture = known._repr_png_()
    assert picture is not None
    assert Image.open(io.BytesIO(picture)).size == (60, 40)
    assert known.filter(0.6)._repr_png_() not in (None, picture)


def test_plot() -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    picture = make(photo=lambda: image).plot(labels=False)
    assert isinstance(picture, Image.Image)
    assert (np.asarray(picture) != image).any()
    assert make().plot(image).size == (60, 40)
    with pytest.raises(UsageError, match="do not know their photo"):
        make().plot()


def test_merge() -> None:
    found = make()
    merged = Detections.merge([found[[1]], found[[0]]])
    assert merged.scores.tolist() == [0.75, 0.5]
    np.testing.assert_array_equal(merged.masks, found.masks)
    for other in (Detections.empty((9, 9), CLASSES), Detections.empty(SIZE, ("BG", "hat"))):
        with pytest.raises(UsageError, match="one photo"):
            Detections.merge([found, other])
    with pytest.raises(UsageError):
        Detections.merge([])
