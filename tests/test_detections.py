"""Detections: validation, selection, and every form that they can be written in and read back from."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from blu_export.detections import Detections
from blu_export.errors import UsageError
from blu_export.rle import crop_mask, decode_rle, encode_rle, paste_mask

CLASSES = ("BG", "coat", "shoe", "straw hat")


def make(count: int = 5, image_size: tuple[int, int] = (40, 60), seed: int = 0) -> Detections:
    random = np.random.default_rng(seed)
    height, width = image_size
    corners = random.integers(0, [height, width], (count, 2))
    sizes = [random.integers(1, [height - y + 1, width - x + 1]) for y, x in corners]
    return Detections(
        np.concatenate([corners, corners + np.reshape(sizes, (-1, 2))], axis=1).astype(np.int32),
        random.integers(1, len(CLASSES), count).astype(np.int32),
        np.sort(random.random(count).astype(np.float32))[::-1],
        tuple(random.random(size) < random.random() for size in sizes),
        image_size,
        CLASSES,
    )


def same(a: Detections, b: Detections) -> bool:
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("rois", "class_ids", "scores"))
        and all(np.array_equal(first, second) for first, second in zip(a.crops, b.crops, strict=True))
        and (a.image_size, a.class_names) == (b.image_size, b.class_names)
    )


def test_printing_takes_a_line() -> None:
    found = make(count=4, image_size=(550, 832))
    names = ", ".join(f"{each.class_name} {each.score:.3f}" for each in found[:3])
    assert repr(found) == f"Detections(4 on 832×550: {names}, …)"
    assert repr(found[:3]) == f"Detections(3 on 832×550: {names})"
    assert repr(found[:0]) == "Detections(0 on 832×550)"
    one = Detections([[1, 2, 3, 4]], [3], [0.25], (np.ones((2, 2), bool),), (9, 9), CLASSES)  # type: ignore[arg-type]
    assert repr(list(one)) == "[Detection(straw hat 0.250 at (1, 2, 3, 4))]"


@st.composite
def some_detections(draw: st.DrawFn) -> Detections:
    """Any number of any boxes, full height and width included, with masks of few and many runs."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rois, crops = [], []
    for _ in range(draw(st.integers(0, 4))):
        y1, x1 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        y2, x2 = draw(st.integers(y1 + 1, height)), draw(st.integers(x1 + 1, width))
        bits = draw(st.integers(0, 2 ** ((y2 - y1) * (x2 - x1)) - 1) | st.sampled_from([0, -1]))
        crop = [(bits >> i) & 1 == 1 for i in range((y2 - y1) * (x2 - x1))]
        rois.append((y1, x1, y2, x2))
        crops.append(np.array(crop).reshape(y2 - y1, x2 - x1))
    ids = draw(st.lists(st.integers(1, len(CLASSES) - 1), min_size=len(rois), max_size=len(rois)))
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=len(rois), max_size=len(rois)))
    return Detections(np.array(rois), np.array(ids), np.array(scores), tuple(crops), (height, width), CLASSES)  # type: ignore[arg-type]


def test_the_dict_is_the_originals() -> None:
    found = make()
    values = found.to_dict()
    assert {name: (value.dtype, value.shape) for name, value in values.items()} == {
        "rois": (np.int32, (5, 4)),
        "class_ids": (np.int32, (5,)),
        "scores": (np.float32, (5,)),
        "masks": (np.bool_, (40, 60, 5)),
    }
    for i, (y1, x1, y2, x2) in enumerate(found.rois):
        mask = values["masks"][..., i]
        np.testing.assert_array_equal(mask[y1:y2, x1:x2], found.crops[i])
        assert mask.sum() == found.crops[i].sum() == found.areas[i]


def test_nothing_found() -> None:
    found = Detections.empty((40, 60), CLASSES)
    assert {name: (value.dtype, value.shape) for name, value in found.to_dict().items()} == {
        "rois": (np.int32, (0, 4)),
        "class_ids": (np.int32, (0,)),
        "scores": (np.float32, (0,)),
        "masks": (np.bool_, (40, 60, 0)),
    }
    assert (found.rles(), found.to_coco(1), list(found), len(found)) == ([], [], [], 0)
    assert found.areas.shape == (0,)
    assert same(found, make()[[]])
    assert same(found, found[np.zeros(0, bool)])


def test_selection() -> None:
    found = make()
    for index, rows in [
        (2, [2]),
        (-1, [4]),
        (np.int64(1), [1]),
        (slice(1, None, 2), [1, 3]),
        ([4, 0], [4, 0]),
        (np.array([True, False, False, True, False]), [0, 3]),
        ([], []),
    ]:
        chosen = found[index]
        np.testing.assert_array_equal(chosen.rois, found.rois[rows])
        np.testing.assert_array_equal(chosen.scores, found.scores[rows])
        assert [crop is found.crops[row] for crop, row in zip(chosen.crops, rows, strict=True)] == [True] * len(rows)
    for wrong in (5, [9], np.ones(4, bool)):
        with pytest.raises(IndexError):
            found[wrong]


def test_filter() -> None:
    found = make(30)
    assert found.filter().class_ids.tolist() == found.class_ids.tolist()
    strict = found.filter(0.5, ["shoe", 3])
    assert 0 < len(strict) < 30
    assert strict.scores.min() >= 0.5
    assert set(strict.class_ids.tolist()) == {2, 3}
    for wrong in ("BG", "cup", 0, 4):
        with pytest.raises(UsageError, match="Classes are coat, shoe, straw hat"):
            found.filter(classes=[wrong])


def test_iteration() -> None:
    found = make()
    for i, each in enumerate(found):
        np.testing.assert_array_equal(each.roi, found.rois[i])
        assert (each.class_id, each.class_name) == (found.class_ids[i], CLASSES[found.class_ids[i]])
        assert (each.score, each.crop is found.crops[i]) == (pytest.approx(found.scores[i]), True)


def test_detections_cannot_be_reassigned() -> None:
    with pytest.raises(FrozenInstanceError):
        make().rois = np.zeros((0, 4), np.int32)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rois": [[0, 0, 5, 6], [3, 3, 3, 5]]}, r"rois\[1\] = \[3, 3, 3, 5\] is not a box in 10 rows"),
        ({"rois": [[0, 0, 11, 6], [3, 3, 4, 5]]}, r"rois\[0\] = .* in 10 rows"),
        ({"rois": [[0, -1, 5, 6], [3, 3, 4, 5]]}, r"rois\[0\] = .* in 20 columns"),
        ({"class_ids": [1, 0]}, r"class_ids\[1\] = 0 is not a class of 3"),
        ({"class_ids": [4, 1]}, r"class_ids\[0\] = 4 is not a class of 3"),
        ({"class_ids": [1, 2, 3]}, r"2 boxes cannot have class_ids \(3,\)"),
        ({"scores": [0.5, float("nan")]}, r"scores\[1\] = nan is not between 0 and 1"),
        ({"scores": [1.5, 0.5]}, r"scores\[0\] = 1.5 is not between"),
        ({"scores": 0.5}, r"scores \(\)"),
        ({"crops": ()}, "2 boxes cannot have 0 masks"),
        ({"crops": (np.ones((5, 6), bool), np.ones((2, 1), bool))}, r"crops\[1\] is bool \(2, 1\).* bool \(1, 2\)"),
        ({"crops": (np.ones((5, 6)), np.ones((1, 2), bool))}, r"crops\[0\] is float64"),
    ],
)
def test_values_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {
        "rois": [[0, 0, 5, 6], [3, 3, 4, 5]],
        "class_ids": [1, 2],
        "scores": [0.9, 0.8],
        "crops": (np.ones((5, 6), bool), np.ones((1, 2), bool)),
        "image_size": (10, 20),
        "class_names": CLASSES,
    }
    assert len(Detections(**values)) == 2
    with pytest.raises(UsageError, match=message):
        Detections(**{**values, **changes})


@given(some_detections())
def test_crop_and_paste_are_inverses(found: Detections) -> None:
    for i, (crop, roi) in enumerate(zip(found.crops, found.rois, strict=True)):
        full = paste_mask(crop, roi, found.image_size)
        np.testing.assert_array_equal(full, found.masks[..., i])
        np.testing.assert_array_equal(crop_mask(full, roi), crop)
        assert full.sum() == crop.sum()


@given(some_detections())
def test_rles_are_those_of_the_full_masks(found: Detections) -> None:
    expected = coco_mask.encode(np.asfortranarray(found.masks, np.uint8)) if len(found) else []
    assert found.rles() == [{**rle, "counts": rle["counts"].decode()} for rle in expected]
    for i, rle in enumerate(found.rles()):
        np.testing.assert_array_equal(coco_mask.decode(rle), found.masks[..., i])
        np.testing.assert_array_equal(decode_rle(rle, found.image_size), found.masks[..., i])


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30) | st.text(max_size=9))
def test_runs_that_do_not_fit_are_an_error(counts: str) -> None:
    with contextlib.suppress(ValueError):
        assert decode_rle({"size": [5, 7], "counts": counts}, (5, 7)).shape == (5, 7)
    with pytest.raises(ValueError, match="photo"):
        decode_rle({"size": [5, 7], "counts": counts}, (7, 5))


def test_long_runs() -> None:
    found = make(image_size=(900, 1100))
    for i, rle in enumerate(found.rles()):
        np.testing.assert_array_equal(coco_mask.decode(rle), found.masks[..., i])
        np.testing.assert_array_equal(decode_rle(rle, found.image_size), found.masks[..., i])


def test_the_rle_of_a_large_photo_needs_no_large_mask() -> None:
    rle = encode_rle(np.ones((2, 3), bool), [70_000, 50_000, 70_002, 50_003], (80_000, 50_003))
    assert coco_mask.area(rle) == 6
    assert coco_mask.toBbox(rle).tolist() == [50_000, 70_000, 3, 2]


@given(some_detections())
def test_json_round_trip(found: Detections) -> None:
    assert same(Detections.from_json(json.loads(json.dumps(found.to_json()))), found)


@given(some_detections())
def test_dict_round_trip(found: Detections) -> None:
    assert same(Detections.from_dict(found.to_dict(), CLASSES), found)


@settings(deadline=None)
@given(some_detections())
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, found: Detections) -> None:
    path = tmp_path_factory.mktemp("saved") / "found.npz"
    found.save(path)
    assert same(Detections.load(path), found)


def test_json_of_something_else() -> None:
    good = json.loads(json.dumps(make().to_json()))
    assert same(Detections.from_json(good), make())
    huge = {"size": [10**9, 10**9], "counts": "0"}
    for wrong in (
        {},
        good | {"image_size": [40]},
        good | {"image_size": ["a", "b"]},
        good | {"image_size": [60, 40]},
        good | {"image_size": [10**9, 10**9], "detections": [{**good["detections"][0], "mask": huge}]},
        good | {"detections": 5},
        good | {"detections": [{**good["detections"][0], "box": [0, 0, 2**40, 5]}]},
        good | {"detections": [{**good["detections"][0], "mask": None}]},
        good | {"detections": [{**good["detections"][0], "mask": {"size": [40, 60], "counts": "zzz"}}]},
        good | {"class_names": None},
    ):
        with pytest.raises(UsageError):
            Detections.from_json(wrong)


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "found.npz"
    make().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    assert same(Detections.load(path), make())
    for wrong in (
        {"rois": arrays["rois"] * 2},
        {"masks": arrays["masks"][..., :1]},
        {"masks": arrays["masks"][:3]},
        {"image_size": np.array([1])},
        {"class_names": np.array("no JSON")},
        {"scores": np.array([{}], object)},  # would be a pickle
    ):
        np.savez(path, **(arrays | wrong))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="found.npz holds no saved detections|rois|mask"):
            Detections.load(path)
    path.write_bytes(b"PK\3\4 and nothing more")
    with pytest.raises(UsageError, match="holds no saved detections"):
        Detections.load(path)
    with pytest.raises(FileNotFoundError):
        Detections.load(tmp_path / "none.npz")


def test_coco_results_are_those_that_pycocotools_reads() -> None:
    found = make()
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 7, "height": 40, "width": 60}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES) if i],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(json.loads(json.dumps(found.to_coco(7))))
    annotations: list[dict[str, Any]] = results.loadAnns(results.getAnnIds(imgIds=[7]))
    assert [each["category_id"] for each in annotations] == found.class_ids.tolist()
    assert [each["score"] for each in annotations] == found.scores.tolist()
    for i, each in enumerate(annotations):
        mask: NDArray[np.uint8] = results.annToMask(each)
        np.testing.assert_array_equal(mask, found.masks[..., i])
        x, y, width, height = each["bbox"]
        assert [y, x, y + height, x + width] == found.rois[i].tolist()
    assert [each["area"] for each in found.to_coco(7)] == found.areas.tolist()


def test_overlaps_across_classes_go() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 1, 10, 11], [0, 20, 10, 30]], np.int32)
    crops = tuple(np.ones((10, 10), bool) for _ in boxes)
    scores = np.array([0.5, 0.9, 0.4], np.float32)
    found = Detections(boxes, np.array([1, 2, 1], np.int32), scores, crops, (10, 40), ("BG", "cup", "box"))
    assert found.without_overlaps(0.5).scores.tolist() == scores[[1, 2]].tolist()
    assert len(found.without_overlaps(0.9)) == 3
    assert len(Detections.empty((10, 40), ("BG", "cup")).without_overlaps(0.5)) == 0
