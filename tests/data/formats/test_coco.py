"""The COCO reader."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blu_export.data.dataset import Dataset, Segmentation, decode_mask, encode_mask
from blu_export.data.formats.coco import load_coco
from blu_export.data.ids import Ids
from blu_export.data.options import ReadOptions
from blu_export.data.problems import Problem
from blu_export.data.segmentation import normalize
from blu_export.errors import DatasetError

RLE = {"size": [4, 6], "counts": [8, 4, 4, 4, 4]}  # columns 2 and 4


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """One photo with a polygon object of category 90 and a crowd of category 7; one photo without."""
    (tmp_path / "images").mkdir()
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    content = {
        "images": [
            {"id": 5, "file_name": "a.png", "height": 4, "width": 6},
            {"id": 6, "file_name": "b.png", "height": 4, "width": 6},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 90,
                "bbox": [1, 0, 3, 2],
                "segmentation": [[1, 0, 4, 0, 4, 2, 1, 2]],
            },
            {"id": 2, "image_id": 5, "category_id": 7, "bbox": [2, 0, 3, 4], "segmentation": RLE, "iscrowd": 1},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def left_out(dataset: Dataset) -> list[Problem]:
    """Problems, but for the photo that is never there."""
    return [problem for problem in dataset.problems if problem.kind != "missing photo"]


def test_reads_categories_boxes_and_crowds(coco: Path) -> None:
    dataset = load_coco(coco)
    assert dataset.class_names == ("BG", "train", "toothbrush")
    assert [len(record.annotations) for record in dataset.records] == [2, 0]
    brush, trains = dataset.records[0].annotations
    assert (brush.category, brush.box, brush.iscrowd) == (2, (0, 1, 2, 4), False)
    assert (trains.category, trains.iscrowd) == (1, True)
    assert len(dataset.limited(1)) == 1


def test_masks_of_polygons_and_rle(coco: Path) -> None:
    masks = load_coco(coco).load_masks(0)
    assert masks.shape == (2, 4, 6)
    expected = np.zeros((4, 6), bool)
    expected[0:2, 1:4] = True
    np.testing.assert_array_equal(masks[0], expected)
    np.testing.assert_array_equal(masks[1], np.isin(np.arange(6), (2, 4))[None].repeat(4, 0))
    assert load_coco(coco).load_masks(1).shape == (0, 4, 6)


def test_polygons_of_one_object_are_united() -> None:
    mask = decode_mask([[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]], 8, 8)
    assert mask[3, 3]
    assert mask.sum() == 16 + 16 - 4
    assert not decode_mask([[1, 1, 2, 2]], 8, 8).any()  # two points have no area


SIDES = st.integers(1, 40)


@given(SIDES, SIDES, st.lists(st.lists(st.floats(-1, 2, width=32), min_size=6, max_size=14), max_size=3))
def test_masks_equal_pycocotools(height: int, width: int, shares: list[list[float]]) -> None:
    from pycocotools import mask as coco_mask

    polygons = [[share * (height if i % 2 else width) for i, share in enumerate(polygon)] for polygon in shares]
    expected = np.zeros((height, width), bool)
    for polygon in polygons:
        expected |= coco_mask.decode(coco_mask.frPyObjects([polygon], height, width))[..., 0].astype(bool)
    np.testing.assert_array_equal(decode_mask(polygons, height, width), expected)
    counts = encode_mask(polygons, height, width)["counts"]
    for written in (counts, counts.encode()):
        rle = {"size": [height, width], "counts": written}
        np.testing.assert_array_equal(decode_mask(rle, height, width), expected)


BROKEN = [
    ([[0, 0, math.nan, 0, 4, 2]], "not a number"),
    ([[0, 0, 4, 0, 4, math.inf]], "not a number"),
    ([[0, 0, 3e8, 0, 4, 2]], "coordinate 3e+08 is not near a photo of 6x4"),
    ([[0, 0, 4, 0, 4, -4.1]], "coordinate -4.1"),
    ([[0, 0, None, 0, 4, 2]], "not a number"),
    ([[0, 0, 4, 0, 4, 2, 1]], "7 numbers, which is odd"),
    ([[0, 0, 4, 0]], "fewer than three points"),
    ([[0, 0, 4, "a", 4, 2]], "could not convert"),
    ([{"x": 1}, {"x": 2}], "'y'"),
    ("square", "Expecting value"),
    (3, "int is not an outline"),
    ({"size": [4, 6]}, "counts"),
    ({"size": [4, 6], "counts": "zzzzzz"}, "not COCO's"),
    ({"size": [4, 6], "counts": None}, "not text"),
    ({"size": [6, 4], "counts": [24]}, "does not fit a photo of"),
    ({"size": [4, 6], "counts": [3, 20]}, "do not add up to 24"),
    ({"size": [4, 6], "counts": [3, -20, 41]}, "do not add up"),
    ({"size": [4, 6], "counts": [2**40]}, "do not add up"),
    ({"size": [4, 6], "counts": [math.inf]}, "not numbers"),
]


@pytest.mark.parametrize(("segmentation", "message"), BROKEN)
def test_a_broken_mask_costs_one_object(coco: Path, segmentation: Any, message: str) -> None:
    edit(coco, lambda content: content["annotations"][0].update(segmentation=segmentation))
    dataset = load_coco(coco)
    assert [annotation.iscrowd for annotation in dataset.records[0].annotations] == [True]
    (problem,) = left_out(dataset)
    assert problem.kind == "broken mask"
    assert problem.detail.startswith("annotations[0], toothbrush: ")
    assert message in problem.detail
    with pytest.raises(DatasetError, match=r"1 entries of .* would be left out: broken mask ×1"):
        load_coco(coco, options=ReadOptions(strict=True))


SQUARE = [1, 0, 3, 0, 3, 2, 1, 2]
BYTES = encode_mask({"size": [4, 6], "counts": [4, 8, 12]}, 4, 6)["counts"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (SQUARE, [SQUARE]),
        ([[1, 0], [3, 0], [3, 2], [1, 2]], [SQUARE]),
        ([[[1, 0], [3, 0], [3, 2], [1, 2]]], [SQUARE]),
        ([{"x": x, "y": y} for x, y in ((1, 0), (3, 0), (3, 2), (1, 2))], [SQUARE]),
        ([list(map(str, SQUARE))], [SQUARE]),
        ("[[1, 0, 3, 0, 3, 2, 1, 2]]", [SQUARE]),
        ([SQUARE, [2, 2], []], [SQUARE]),
        ([RLE], RLE),
        ([RLE, {"size": [4, 6], "counts": [0, 4, 20]}], {"size": [4, 6], "counts": [0, 4, 4, 4, 4, 4, 4]}),
        ({"size": ["4", 6.0], "counts": [8, 4.0, 4, 4, 4]}, RLE),
        ({"size": [4, 6], "counts": f"b'{BYTES}'"}, {"size": [4, 6], "counts": [4, 8, 12]}),
    ],
)
def test_forms_of_a_mask(coco: Path, written: Any, meant: Any) -> None:
    edit(coco, lambda content: content["annotations"][0].update(segmentation=written, bbox=None))
    dataset = load_coco(coco)
    np.testing.assert_array_equal(dataset.load_masks(0)[0], decode_mask(meant, 4, 6))
    assert dataset.records[0].annotations[0].box[1] == dataset.load_masks(0)[0].any(axis=0).argmax()
    assert not left_out(dataset)


def test_text_of_bytes_keeps_its_backslashes() -> None:
    counts = "0\\a"
    assert normalize({"size": [4, 6], "counts": repr(counts.encode())}) == {"size": [4, 6], "counts": counts}


def test_an_rle_with_its_size_swapped_is_read_where_the_box_agrees(coco: Path) -> None:
    swapped = {"size": [6, 4], "counts": [4, 8, 12]}  # columns 1 and 2
    edit(coco, lambda content: content["annotations"][0].update(segmentation=swapped, bbox=[1, 0, 2, 4]))
    assert load_coco(coco).load_masks(0)[0][:, 1:3].all()
    edit(coco, lambda content: content["annotations"][0].update(bbox=[4, 0, 2, 4]))
    assert [problem.kind for problem in left_out(load_coco(coco))] == ["broken mask"]


def test_polygons_may_pass_the_edge_by_a_photo() -> None:
    outside: Segmentation = [[-6, -4, 12, -4, 12, 8, -6, 8]]
    assert decode_mask(outside, 4, 6).all()


def test_load_image(coco: Path) -> None:
    dataset = load_coco(coco)
    np.testing.assert_array_equal(dataset.load_image(0), np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    with pytest.raises(DatasetError, match="b.png cannot be read"):
        dataset.load_image(1)


def test_image_of_another_size_is_refused(coco: Path) -> None:
    Image.new("RGB", (9, 9)).save(coco.parent / "images" / "b.png")
    with pytest.raises(DatasetError, match="is 9x9, its annotation says 6x4"):
        load_coco(coco).load_image(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": {}}, "annotations is a dict, not a list"),
        ({"images": None}, "images is a NoneType"),
        ({"categories": "cat"}, "categories is a str"),
    ],
)
def test_other_files_are_refused(coco: Path, change: dict[str, Any], message: str) -> None:
    edit(coco, lambda content: content.update(change))
    with pytest.raises(DatasetError, match=f"not a COCO instances file: {message}"):
        load_coco(coco)
    edit(coco, lambda content: content.pop(next(iter(change))))
    if "annotations" not in change:
        with pytest.raises(DatasetError, match="is absent"):
            load_coco(coco)


@pytest.mark.parametrize("content", ['{"images": []', "[1]", "", "{,}", "[" * 100_000])
def test_what_is_not_json_is_refused(coco: Path, content: str) -> None:
    coco.write_text(content)
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        load_coco(coco)


@pytest.mark.parametrize(
    ("section", "change", "kind", "detail"),
    [
        ("annotations", {"image_id": 4711}, "unknown photo", "annotations[1]: images has no id 4711"),
        ("annotations", {"image_id": None}, "unknown photo", "annotations[1]: images has no id None"),
        ("annotations", {"image_id": [5]}, "unknown photo", "annotations[1]: images has no id [5]"),
        ("annotations", {"category_id": 77}, "unknown category", "annotations[1]: categories has no id 77"),
        ("annotations", {"category_id": None}, "unknown category", "categories has no id None"),
        ("annotations", {"iscrowd": "perhaps"}, "broken record", "annotations[1]: iscrowd is 'perhaps'"),
        ("annotations", 3, "broken record", "annotations[1] is '3', not an object"),
        ("images", {"file_name": 3}, "broken record", "images[1]: the file_name is 3"),
        ("images", {"id": [6]}, "broken record", "images[1]: the id [6] is neither a number nor text"),
        ("images", {"id": None}, "broken record", "images[1]: the id None"),
        ("categories", {"id": True}, "broken record", "categories[1]: the id True"),
        ("categories", {"name": None}, "broken record", "categories[1]: the name is None"),
    ],
)
def test_a_broken_entry_costs_that_entry(coco: Path, section: str, change: Any, kind: str, detail: str) -> None:
    def change_one(content: dict[str, Any]) -> None:
        entries = content[section]
        entries[1] = entries[1] | change if isinstance(change, dict) else change

    edit(coco, change_one)
    problems = left_out(load_coco(coco))
    assert problems[0].kind == kind
    assert detail in problems[0].detail
    with pytest.raises(DatasetError, match="would be left out"):
        load_coco(coco, options=ReadOptions(strict=True))


@pytest.mark.parametrize(
    ("section", "entry", "message"),
    [
        ("images", {"id": 5, "file_name": "other.png"}, "Two photos of .* have the id 5: a.png and other.png"),
        ("categories", {"id": 7, "name": "tram"}, "Two categories of .* have the id 7: train and tram"),
    ],
)
def test_what_is_ambiguous_stops(coco: Path, section: str, entry: dict[str, Any], message: str) -> None:
    edit(coco, lambda content: content[section].append(entry))
    with pytest.raises(DatasetError, match=message):
        load_coco(coco)


def test_two_categories_of_one_name_stop_unless_one_is_empty(coco: Path) -> None:
    edit(coco, lambda content: content["categories"].append({"id": 8, "name": "train "}))
    assert load_coco(coco).class_names == ("BG", "train", "toothbrush")
    assert load_coco(coco, options=ReadOptions(keep_empty_classes=True)).category_ids == (0, 7, 90)
    edit(coco, lambda content: content["annotations"].append(content["annotations"][0] | {"id": 3, "category_id": 8}))
    with pytest.raises(DatasetError, match="Two categories of .* have the name 'train': ids 7 and 8"):
        load_coco(coco)


def test_entries_that_are_there_twice_count_once(coco: Path) -> None:
    def double(content: dict[str, Any]) -> None:
        for section in content.values():
            section.append(dict(section[0]))
        content["annotations"].append(content["annotations"][0] | {"bbox": [1, 0, 3, 3]})  # another object, by mistake

    edit(coco, double)
    dataset = load_coco(coco)
    assert (len(dataset), len(dataset.class_names), len(dataset.records[0].annotations)) == (2, 3, 3)
    assert [problem.kind for problem in dataset.problems].count("listed twice") == 3


@pytest.mark.parametrize("name", ["BG", "background", "_background_", " Background "])
def test_the_background_is_no_class(coco: Path, name: str) -> None:
    edit(coco, lambda content: content["categories"].insert(0, {"id": 0, "name": name}))
    edit(coco, lambda content: content["annotations"].append(content["annotations"][0] | {"id": 3, "category_id": 0}))
    dataset = load_coco(coco)
    assert dataset.class_names == ("BG", "train", "toothbrush")
    assert "background object" in [problem.kind for problem in dataset.problems]


def test_classes_without_objects_are_left_out_with_a_line(coco: Path) -> None:
    edit(coco, lambda content: content["categories"].insert(0, {"id": 0, "name": "things"}))
    dataset = load_coco(coco)
    assert dataset.class_names == ("BG", "train", "toothbrush")
    assert any("without objects are left out: things" in note for note in dataset.notes)
    assert load_coco(coco, options=ReadOptions(keep_empty_classes=True)).class_names[1] == "things"
    assert load_coco(coco, options=ReadOptions(limit=0)).class_names == dataset.class_names


@pytest.mark.parametrize("convert", [float, str, lambda number: f"{number:06d}", lambda number: f" {number} "])
def test_ids_of_another_kind_are_matched(coco: Path, convert: Callable[[int], object]) -> None:
    def change(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["image_id"], entry["category_id"] = convert(entry["image_id"]), convert(entry["category_id"])

    edit(coco, change)
    assert [a.category for a in load_coco(coco).records[0].annotations] == [2, 1]


def test_ids_that_only_differ_in_kind_stay_apart() -> None:
    ids: Ids[str] = Ids()
    ids.add("12", "text")
    ids.add(12, "number")
    assert [ids.find(key) for key in ("12", 12, 12.0, "012", True, None, [])] == ["text", "number", "number"] + [
        None
    ] * 4


@pytest.mark.parametrize(
    ("value", "crowd"),
    [
        ("0", False),
        ("1", True),
        (False, False),
        (True, True),
        (None, False),
        ("false", False),
        (1.0, True),
        ("", False),
    ],
)
def test_crowds_as_they_are_written(coco: Path, value: object, crowd: bool) -> None:
    edit(coco, lambda content: content["annotations"][0].update(iscrowd=value))
    assert load_coco(coco).records[0].annotations[0].iscrowd is crowd


@pytest.mark.parametrize(
    "value", [None, "", [], math.nan, [math.nan] * 4, ["a", 0, 3, 2], [0, 0, 3], [0, 0, -3, 2], 10**400]
)
def test_boxes_and_areas_that_are_none_come_from_the_mask(coco: Path, value: object) -> None:
    edit(coco, lambda content: content["annotations"][0].update(bbox=value, area=value))
    annotation = load_coco(coco).records[0].annotations[0]
    assert (annotation.box, annotation.area) == ((0, 1, 2, 4), None)


@pytest.mark.parametrize("value", [None, "tall", -60, 0, math.inf, 10**7, 60_000_000])
def test_sizes_that_are_none_come_from_the_photo(coco: Path, value: object) -> None:
    edit(coco, lambda content: content["images"][0].update(height=value))
    dataset = load_coco(coco)
    assert (dataset.records[0].height, dataset.records[0].width) == (4, 6)
    assert any("1 of 2 photos have no size in the file" in note for note in dataset.notes)
    edit(coco, lambda content: content["images"][1].update(height=value))  # is not there
    assert [record.image_id for record in load_coco(coco).records] == [5]


def test_text_in_other_encodings(coco: Path) -> None:
    edit(coco, lambda content: content["categories"][0].update(name="杯子"))
    text = json.dumps(json.loads(coco.read_text()), ensure_ascii=False)
    for encoding, guessed in (("utf-8-sig", False), ("utf-16", False), ("utf-16-le", False), ("gb18030", True)):
        coco.write_bytes(text.encode(encoding))
        dataset = load_coco(coco)
        assert dataset.class_names[2] == "杯子"
        assert any("read as gb18030, which is a guess" in note for note in dataset.notes) == guessed


def test_numbers_may_be_text(coco: Path) -> None:
    content = json.loads(coco.read_text())
    content["images"][0]["height"] = "4"
    content["annotations"][0]["bbox"] = ["1", "0", "3", "2"]
    coco.write_text(json.dumps(content))
    record = load_coco(coco).records[0]
    assert (record.height, record.annotations[0].box) == (4, (0, 1, 2, 4))


@pytest.mark.parametrize("text", ["", "[1, 2]", '"x"', "{"])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=str(path.name)):
        load_coco(path)
    with pytest.raises(DatasetError, match="absent.json cannot be read: it does not exist"):
        load_coco(tmp_path / "absent.json")
