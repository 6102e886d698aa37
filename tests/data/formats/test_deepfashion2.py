"""DeepFashion2: its own layout, read once into an index."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blu_export.data.dataset import Annotation, Record
from blu_export.data.formats import deepfashion2 as module
from blu_export.data.formats.deepfashion2 import _flatten, _records, index_path, load_deepfashion2, parse_annotation
from blu_export.data.load import has_split, load_dataset
from blu_export.data.options import ReadOptions
from blu_export.errors import DatasetError


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each reading was about."""
    counts: list[int] = []
    read = module.read_annotations

    def counted(source: str, names: list[str], *rest: Any) -> Any:
        counts.append(len(names))
        return read(source, names, *rest)

    monkeypatch.setattr(module, "read_annotations", counted)
    return counts


def test_items_masks_and_classes(deepfashion2: Path) -> None:
    dataset = load_dataset(str(deepfashion2), "train")
    assert len(dataset.class_names) == 14
    assert [record.image_id for record in dataset.records] == [1, 2, 3]
    assert [len(record.annotations) for record in dataset.records] == [2, 2, 1]
    first, second = dataset.records[0].annotations
    assert (first.category, dataset.class_names[first.category]) == (2, "long sleeve top")  # item1, written last
    assert (second.category, dataset.class_names[second.category]) == (13, "sling dress")
    assert first.box == (10, 10, 40, 40)
    assert (dataset.records[0].height, dataset.records[0].width) == (60, 80)
    mask = dataset.load_masks(0)[0]
    assert mask.sum() == 2 * 20 * 20 - 10 * 10  # the union counts the overlap once
    assert mask[12, 12]
    assert mask[38, 38]
    assert not mask[12, 38]
    assert dataset.load_image(0).shape == (60, 80, 3)


def test_both_parts_are_found(deepfashion2: Path) -> None:
    assert has_split(deepfashion2, "train")
    assert has_split(deepfashion2, "val")
    assert len(load_dataset(deepfashion2, "val")) == 1
    assert len(load_dataset(deepfashion2 / "validation", "train")) == 1  # a part by its own path
    assert not has_split(deepfashion2 / "validation", "val")


def test_the_index_is_used_until_files_change(deepfashion2: Path, reads: list[int]) -> None:
    folder = deepfashion2 / "train"
    first = load_deepfashion2(folder)
    again = load_deepfashion2(folder)
    assert reads == [3]
    for one, other in zip(first.records, again.records, strict=True):
        assert (one.uri, one.height, one.width) == (other.uri, other.height, other.width)
        assert [a.box for a in one.annotations] == [a.box for a in other.annotations]
    np.testing.assert_array_equal(first.load_masks(1), again.load_masks(1))

    annotation = folder / "annos" / "000001.json"
    values = json.loads(annotation.read_text())
    del values["item2"]
    annotation.write_text(json.dumps(values))
    assert len(load_deepfashion2(folder, cached=True).records[0].annotations) == 2  # asked not to look
    assert len(load_deepfashion2(folder).records[0].annotations) == 1
    (folder / "annos" / "000003.json").unlink()
    assert len(load_deepfashion2(folder)) == 2
    load_deepfashion2(folder, cached=False)
    assert reads == [3, 3, 2, 2]


def test_an_index_can_be_used_without_the_files(deepfashion2: Path) -> None:
    folder = deepfashion2 / "train"
    load_deepfashion2(folder)
    for path in (folder / "annos").iterdir():
        path.unlink()
    assert len(load_deepfashion2(folder, cached=True)) == 3
    with pytest.raises(DatasetError, match="no annotations in"):
        load_deepfashion2(folder)


def test_a_quick_look_reads_few_files_and_makes_no_index(deepfashion2: Path, reads: list[int]) -> None:
    folder = deepfashion2 / "train"
    for cached in (None, True):
        assert [record.image_id for record in load_dataset(deepfashion2, "train", limit=2, cached=cached).records] == [
            1,
            2,
        ]
    assert reads == [2, 2]
    assert not index_path(str(folder)).exists()
    assert len(load_deepfashion2(folder)) == 3
    assert len(load_deepfashion2(folder, limit=2)) == 2  # by the index
    assert reads == [2, 2, 3]
    (folder / "annos" / "000003.json").touch()
    assert len(load_deepfashion2(folder, limit=1)) == 1  # the index is out of date, and stays
    assert len(load_deepfashion2(folder, limit=9, cached=True)) == 3
    assert len(load_deepfashion2(folder, limit=2, cached=False)) == 2  # asked to read all
    assert len(load_deepfashion2(folder)) == 3
    assert reads == [2, 2, 3, 1, 3]


@pytest.mark.parametrize("damage", ["cut", "text", "flipped", "format"])
def test_a_damaged_index_is_made_again(
    deepfashion2: Path, damage: str, reads: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    folder = deepfashion2 / "train"
    load_deepfashion2(folder)
    index = index_path(str(folder))
    content = bytearray(index.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "text":
        content[:] = b"index"
    elif damage == "flipped":
        content[content.index(np.array([60, 80], np.int32).tobytes())] ^= 1
    else:
        with np.load(index) as file:
            np.savez(index, **dict(file) | {"format": np.array(0)})
        content[:] = index.read_bytes()
    index.write_bytes(content)
    dataset = load_deepfashion2(folder)
    assert reads == [3, 3]
    assert dataset.records[0].height == 60
    assert ("is damaged" in caplog.text) == (damage != "format")


def test_many_files_are_read_by_several_processes(deepfashion2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = deepfashion2 / "train"
    expected = load_deepfashion2(folder)
    monkeypatch.setattr(module, "FEW", 1)
    monkeypatch.setattr(module, "PART", 1)
    shown: list[Any] = []

    def progress(items: Iterable[Any], total: int, unit: str) -> Iterable[Any]:
        shown.append((total, unit))
        for item in items:
            shown.append(item)
            yield item

    dataset = load_deepfashion2(folder, cached=False, progress=progress)
    assert [record.uri for record in dataset.records] == [record.uri for record in expected.records]
    np.testing.assert_array_equal(dataset.load_masks(0), expected.load_masks(0))
    assert shown[0] == (3, "files")
    assert len(shown) == 1 + 3


def test_broken_files_cost_their_photos(deepfashion2: Path) -> None:
    folder = deepfashion2 / "train"
    (folder / "annos" / "000001.json").write_text("{")
    (folder / "image" / "000002.jpg").unlink()
    for cached in (False, None, True):  # the index remembers
        dataset = load_deepfashion2(folder, cached=cached)
        assert [record.image_id for record in dataset.records] == [3]
        assert [problem.kind for problem in dataset.problems] == ["broken record", "missing photo"]
        assert "000001.json" in dataset.problems[0].detail
    with pytest.raises(DatasetError, match="2 entries of .* are broken"):
        load_deepfashion2(folder, options=ReadOptions(strict=True))
    (folder / "image" / "000003.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(DatasetError, match="3 entries of .* are broken: .*broken photo ×1"):
        load_deepfashion2(folder, cached=False)


def test_broken_items_cost_themselves(deepfashion2: Path) -> None:
    path = deepfashion2 / "train" / "annos" / "000001.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            content
            | {
                "item3": content["item1"] | {"category_id": 14},
                "item4": content["item1"] | {"segmentation": [[0, 0, 9000, 0, 9000, 9]]},
                "item5": content["item1"] | {"segmentation": []},
            }
        )
    )
    dataset = load_deepfashion2(deepfashion2 / "train")
    assert len(dataset.records[0].annotations) == 3
    assert [problem.kind for problem in dataset.problems] == ["broken mask", "broken record", "no mask"]


def test_other_names_of_folders_and_what_macos_leaves(deepfashion2: Path) -> None:
    (deepfashion2 / "train" / "annos" / "._000001.json").write_bytes(b"\0\5\x16\7")
    (deepfashion2 / "train" / "image").rename(deepfashion2 / "train" / "images")
    (deepfashion2 / "validation").rename(deepfashion2 / "val")
    (deepfashion2 / "train").rename(deepfashion2 / "t")
    (deepfashion2 / "train").mkdir()
    (deepfashion2 / "t").rename(deepfashion2 / "train" / "train")
    for split, count in (("train", 3), ("val", 1)):
        dataset = load_dataset(deepfashion2, split)
        assert (len(dataset), dataset.problems) == (count, ())
        assert dataset.load_image(0).shape == (60, 80, 3)


@pytest.mark.parametrize("content", ["[]", "3", '{"item1": ' + 100_000 * "[", "{"])
def test_foreign_annotations(content: str) -> None:
    with pytest.raises(ValueError, match="not an annotation|Expecting"):
        parse_annotation(content.encode())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"category_id": 14}, "category 14 is not 1 to 13"),
        ({"category_id": 1, "bounding_box": [1, 2, 3], "segmentation": []}, "not enough values"),
        ({"category_id": 1, "bounding_box": [1, 2, 3, 4]}, "segmentation"),
        ({"category_id": 1, "bounding_box": [1, 2, 3, 4], "segmentation": [1]}, "odd"),
        (3, "not subscriptable"),
    ],
)
def test_foreign_items(item: object, message: str) -> None:
    annotations, broken = parse_annotation(json.dumps({"item1": item}).encode())
    assert annotations == []
    assert message in broken[0]


def test_a_photo_without_items() -> None:
    assert parse_annotation(b'{"source": "shop", "items": 3, "itemX": {}}') == ([], [])


def test_a_turned_photo_has_the_size_it_is_shown_at(deepfashion2: Path) -> None:
    folder = deepfashion2 / "validation"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(folder / "image" / "000001.jpg", exif=exif)
    dataset = load_deepfashion2(folder)
    assert (dataset.records[0].height, dataset.records[0].width) == (80, 60)
    assert dataset.load_image(0).shape == (80, 60, 3)


def test_a_long_header_is_read_to_its_end(deepfashion2: Path) -> None:
    folder = deepfashion2 / "validation"
    Image.new("RGB", (30, 20)).save(folder / "image" / "000001.jpg", comment=b"x" * 60_000)
    record = load_deepfashion2(folder).records[0]
    assert (record.height, record.width) == (20, 30)


FLOATS = st.floats(-10, 3000, width=32)
ANNOTATIONS = st.builds(
    Annotation,
    category=st.integers(1, 13),
    box=st.tuples(FLOATS, FLOATS, FLOATS, FLOATS),
    segmentation=st.lists(st.lists(FLOATS, max_size=12), max_size=3),
)
RECORDS = st.lists(
    st.builds(
        Record,
        image_id=st.integers(1, 999_999),
        uri=st.just(""),
        height=st.integers(1, 5000),
        width=st.integers(1, 5000),
        annotations=st.lists(ANNOTATIONS, max_size=3).map(tuple),
    ),
    max_size=4,
)


@given(RECORDS)
def test_the_index_holds_everything(records: list[Record]) -> None:
    restored = _records(_flatten(records), "folder")
    assert len(restored) == len(records)
    for one, other in zip(records, restored, strict=True):
        assert other.uri == f"folder/{one.image_id:06}.jpg"
        assert (one.image_id, one.height, one.width) == (other.image_id, other.height, other.width)
        for a, b in zip(one.annotations, other.annotations, strict=True):
            assert (a.category, a.box) == (b.category, b.box)
            assert [list(polygon) for polygon in b.segmentation] == a.segmentation
