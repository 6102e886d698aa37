"""Dividing a data set into parts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from blu_export.cli.main import main
from blu_export.data.dataset import Annotation, Dataset, Record
from blu_export.data.load import load_dataset
from blu_export.data.split import split_dataset
from blu_export.errors import UsageError

SHARES = {"train": 0.8, "val": 0.2}


def made(count: int = 100) -> Dataset:
    """Photos of ten folders; class 1 on all, class 2 on every tenth."""

    def record(number: int) -> Record:
        categories = (1, 2) if number % 10 == 3 else (1,)
        annotations = tuple(Annotation(c, (0, 0, 5, 5), [[0, 0, 5, 0, 5, 5]]) for c in categories)
        return Record(number, f"/data/day{number // 10}/{number:03}.jpg", 10, 10, annotations)

    return Dataset(("BG", "common", "rare"), tuple(map(record, range(count))))


def classes(dataset: Dataset) -> Counter[int]:
    return Counter(annotation.category for record in dataset.records for annotation in record.annotations)


def test_classes_are_spread_alike() -> None:
    parts = split_dataset(made(), SHARES)
    assert {part: len(dataset) for part, dataset in parts.items()} == {"train": 80, "val": 20}
    assert classes(parts["val"]) == {1: 20, 2: 2}
    uris = [record.uri for dataset in parts.values() for record in dataset.records]
    assert sorted(uris) == [record.uri for record in made().records]


def test_the_same_call_gives_the_same_in_any_order() -> None:
    dataset = made()
    backwards = Dataset(dataset.class_names, dataset.records[::-1])
    first, second = (split_dataset(each, SHARES)["val"] for each in (dataset, backwards))
    assert {record.uri for record in first.records} == {record.uri for record in second.records}
    other = split_dataset(dataset, SHARES, seed=1)["val"]
    assert {record.uri for record in other.records} != {record.uri for record in first.records}


@pytest.mark.parametrize("group", ["folder", r"day(\d)", r"day\d"])
def test_groups_stay_together(group: str) -> None:
    parts = split_dataset(made(), SHARES, group)
    days = {part: {record.uri.split("/")[2] for record in dataset.records} for part, dataset in parts.items()}
    assert not days["train"] & days["val"]
    assert len(days["val"]) == 2


def test_two_entries_of_one_photo_stay_together() -> None:
    dataset = made(20)
    twice = Dataset(dataset.class_names, dataset.records + dataset.records)
    parts = split_dataset(twice, {"train": 0.5, "val": 0.5})
    assert len(parts["val"]) == 20
    assert not {record.uri for record in parts["train"].records} & {record.uri for record in parts["val"].records}


def test_refusals() -> None:
    with pytest.raises(UsageError, match="do not add up to 1"):
        split_dataset(made(), {"train": 0.8, "val": 0.3})
    with pytest.raises(UsageError, match="--group"):
        split_dataset(made(), SHARES, "(")


def test_the_command(coco_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = coco_folder / "annotations" / "instances_val2017.json"
    content = json.loads(source.read_text())
    content["annotations"][1] |= {"iscrowd": 0}
    source.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as end:
        main(["data", "split", str(coco_folder), str(tmp_path / "parts"), "--part", "val", "--val", "0.5"])
    assert not end.value.code
    assert "val: 1 photos, of them with kite 1" in capsys.readouterr().err
    for part in ("train", "val"):
        dataset = load_dataset(tmp_path / "parts", part)
        assert len(dataset) == 1
        assert dataset.load_image(0).shape == (60, 80, 3)
        assert dataset.category_ids == (0, 5)
