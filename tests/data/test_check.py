"""``blu data check``: what it counts, and what it finds wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tcp_line import Line

from blu_export.cli.main import main
from blu_export.data.check import check, choose
from blu_export.data.dataset import Annotation, Dataset, Record
from blu_export.data.formats.coco import load_coco
from blu_export.data.problems import USELESS


@pytest.fixture
def blu(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``blu data check``; returns exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["data", "check", *map(str, arguments)])
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return run


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def kinds(folder: Path) -> list[str]:
    dataset = load_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017")
    return [problem.kind for problem in check(dataset).problems if problem.kind not in USELESS]


def test_counts(coco_folder: Path) -> None:
    report = check(load_coco(coco_folder / "annotations" / "instances_val2017.json", coco_folder / "val2017"))
    values = report.to_json()
    assert (values["photos"], values["photos_without_objects"], values["objects"], values["crowds"]) == (2, 1, 1, 1)
    assert values["object_sizes"] == {"small": 1, "medium": 0, "large": 0}
    assert values["photo_width"] == {"min": 80, "median": 80.0, "max": 80}
    assert values["classes"] == [
        {"name": "kite", "objects": 1, "photos": 1, "median_area": 400.0, "small": 1, "medium": 0, "large": 0}
    ]
    assert (values["errors"], values["warnings"], values["problems"]) == (0, 0, [])


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("bbox", [70, 10, 20, 20], ["box outside", "box and mask differ"]),
        ("bbox", [10, 10, 20, 53], ["box outside", "box and mask differ"]),
        ("bbox", [-10, 10, 40, 20], ["box outside"]),
        ("bbox", [10, 10, 71, 20], ["box and mask differ"]),  # beyond the edge by a rounding
        ("bbox", [10, 30, 30, 10], ["box and mask differ"]),
        ("bbox", [9.4, 10.6, 20.5, 20], []),
        ("segmentation", [[10, 10, 20, 20]], ["broken mask"]),
        ("segmentation", [], ["no mask"]),
        ("segmentation", {"size": [60, 80], "counts": [4800]}, ["empty mask"]),
        ("segmentation", {"size": [60, 80], "counts": [4700, 1]}, ["broken mask"]),
        ("segmentation", {"size": [80, 60], "counts": [0, 4800]}, ["broken mask"]),
        ("segmentation", {"size": [60, 80], "counts": "nonsense"}, ["broken mask"]),
        ("segmentation", {"size": [60, 80]}, ["broken mask"]),
        ("segmentation", {"size": [60, 80], "counts": [10, -20, 4810]}, ["broken mask"]),
        ("segmentation", [[10, 10, 3e8, 10, 30, 30]], ["broken mask"]),
        ("segmentation", [[10, 10, float("nan"), 10, 30, 30]], ["broken mask"]),
        ("segmentation", [10, 10, 30, 10, 30, 30], []),
        ("segmentation", None, ["no mask"]),
    ],
)
def test_what_is_wrong_with_an_object(coco_folder: Path, field: str, value: object, found: list[str]) -> None:
    edit(coco_folder, lambda content: content["annotations"][0].update({field: value}))
    assert kinds(coco_folder) == found


def test_what_is_wrong_with_a_photo(coco_folder: Path) -> None:
    photos = coco_folder / "val2017"
    Image.new("RGB", (60, 80)).save(photos / "1.png")
    (photos / "2.png").unlink()
    assert kinds(coco_folder) == ["wrong size", "missing photo"]
    (photos / "2.png").write_bytes(b"no picture")
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:60])
    assert kinds(coco_folder) == ["broken photo", "broken photo"]


def test_every_class_gets_its_photos() -> None:
    def record(number: int, category: int) -> Record:
        return Record(number, "", 10, 10, (Annotation(category, (0, 0, 5, 5), []),))

    records = tuple(record(number, 2 if number in (50, 77) else 1) for number in range(100))
    dataset = Dataset(("BG", "common", "rare"), records)
    chosen = choose(dataset, 8)
    assert len(chosen) == len(set(chosen)) == 8
    assert {50, 77} <= set(chosen)
    assert len(choose(dataset, 1000)) == 100


def test_the_command(blu: Callable[..., tuple[int, str, str]], coco_folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    code, out, err = blu(coco_folder, "--split", "val", "--out", sheet)
    assert code == 0
    assert "2 photos" in out
    assert "kite" in out
    assert "nothing wrong" in out
    assert f"wrote {sheet}" in err
    with Image.open(sheet) as picture:
        # Two tiles, and the annotated square painted over the first photo's noise.
        assert picture.width > 700
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_errors_are_an_exit_code(blu: Callable[..., tuple[int, str, str]], coco_folder: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        (coco_folder / "val2017" / f"{number}.png").write_bytes(b"")
    code, out, err = blu(coco_folder, "--split", "val", "--out", tmp_path / "sheet.png")
    assert code == 3
    assert "error: broken photo ×2" in out
    assert out.count("1.png") == 1
    assert "2 errors" in err
    assert "no contact sheet" in err
    assert not (tmp_path / "sheet.png").exists()


def test_warnings_are_none(blu: Callable[..., tuple[int, str, str]], coco_folder: Path) -> None:
    edit(coco_folder, lambda content: content["annotations"][0].update(segmentation=[]))
    code, out, _ = blu(coco_folder, "--split", "val", "--no-sheet")
    assert code == 0
    assert "warning: no mask ×1" in out


@pytest.mark.parametrize("bucket", [False, True])
def test_both_parts_as_json(
    blu: Callable[..., tuple[int, str, str]], deepfashion2: Path, request: pytest.FixtureRequest, bucket: bool
) -> None:
    source = request.getfixturevalue("s3")(deepfashion2) if bucket else deepfashion2
    code, out, _ = blu(source, "--json", "--no-sheet", "--limit", 2)
    assert code == 0
    values = json.loads(out)
    assert (values["train"]["photos"], values["val"]["photos"]) == (2, 1)
    assert values["train"]["classes"][1] == {
        "name": "long sleeve top",
        "objects": 2,
        "photos": 2,
        "median_area": 700.0,
        "small": 2,
        "medium": 0,
        "large": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent"], 3, "There is no absent."),
        (["absent", "--split", "test"], 2, "no part 'test'"),
        (["absent", "--limit", "0"], 2, "limit"),
        (["s3://bucket", "--split", "val"], 3, "s3://bucket"),
    ],
)
def test_refusals(
    blu: Callable[..., tuple[int, str, str]], arguments: list[str], code: int, message: str, line: Line
) -> None:
    result, _, err = blu(*arguments)
    assert result == code
    assert message in err


def test_another_file_type_for_the_sheet(blu: Callable[..., tuple[int, str, str]], coco_folder: Path) -> None:
    code, _, err = blu(coco_folder, "--split", "val", "--out", "sheet.gif")
    assert code == 2
    assert ".jpg" in err


def test_the_report_is_saved_whole_and_strict_refuses(
    blu: Callable[..., tuple[int, str, str]], coco_folder: Path, tmp_path: Path
) -> None:
    def break_some(content: dict[str, Any]) -> None:
        content["annotations"] += [content["annotations"][0] | {"id": 100 + k, "category_id": 77} for k in range(9)]
        content["annotations"][0]["iscrowd"] = 1

    edit(coco_folder, break_some)
    code, out, err = blu(coco_folder, "--split", "val", "--no-sheet", "--save", tmp_path / "report.json")
    assert code == 0
    assert "unknown category ×9" in out
    assert "WARNING: there is nothing to train on" in err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["problem_counts"] == {"nothing to train on": 1, "unknown category": 9}
    assert len(report["problems"]) == 10
    code, _, err = blu(coco_folder, "--split", "val", "--no-sheet", "--strict")
    assert (code, "9 entries" in err) == (3, True)
    code, _, err = blu(coco_folder, "--exif", "sometimes")
    assert (code, "no --exif sometimes" in err) == (2, True)
