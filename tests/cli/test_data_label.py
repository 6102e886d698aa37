"""``blu data label``: a COCO file from tags or regions and a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blu_export.cli.main import main
from blu_export.data.formats.coco import load_coco
from blu_export.data.options import ReadOptions

DEMO = Path(__file__).parents[2] / "models" / "demo"


def label(tmp_path: Path, tags: object, *options: str) -> int:
    """The exit code; the file is ``out.json``."""
    (tmp_path / "tags.json").write_text(json.dumps(tags))
    arguments = [str(DEMO), "--tags", str(tmp_path / "tags.json"), "--out", str(tmp_path / "out.json"), *options]
    with pytest.raises(SystemExit) as exit_:
        main(["data", "label", *arguments])
    return int(exit_.value.code or 0)


def test_photos_whose_tags_are_found_are_in_the_file(tmp_path: Path) -> None:
    assert label(tmp_path, {"astronaut.jpg": []}) == 0
    dataset = load_coco(tmp_path / "out.json")
    assert dataset.class_names[1:4] == ("top", "outwear", "trousers")
    assert [record.annotations for record in dataset.records] == [()]
    assert dataset.load_image(0).shape == (512, 512, 3)


@pytest.mark.parametrize(
    ("tags", "options", "code", "message"),
    [
        ({"astronaut.jpg": ["helmet"]}, [], 2, "no class helmet"),
        ({"astronaut.jpg": "hat"}, [], 3, "does not name the classes of astronaut.jpg"),
        ({"absent.jpg": ["hat"]}, [], 3, "absent.jpg"),
        ({}, ["--keep", "0.1", "--doubt", "0.2"], 2, "--doubt 0.2 is more than --keep 0.1"),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tags: object, options: list[str], code: int, message: str
) -> None:
    assert label(tmp_path, tags, *options) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def write_regions(path: Path, iscrowd: int) -> None:
    """Regions on the astronaut: the whole photo."""
    outline = [[0, 0, 512, 0, 512, 512, 0, 512]]
    region = {"id": 1, "image_id": 1, "category_id": 5, "iscrowd": iscrowd, "bbox": [0, 0, 512, 512]}
    image = {"id": 1, "file_name": "astronaut.jpg", "width": 512, "height": 512}
    regions = [region | {"segmentation": outline}]
    categories = [{"id": 5, "name": "person"}]
    path.write_text(json.dumps({"images": [image], "categories": categories, "annotations": regions}))


def label_regions(tmp_path: Path, *options: str) -> int:
    arguments = [str(DEMO), "--regions", str(tmp_path / "regions.json"), "--out", str(tmp_path / "out.json"), *options]
    with pytest.raises(SystemExit) as exit_:
        main(["data", "label", *arguments])
    return int(exit_.value.code or 0)


def test_finds_in_regions_are_in_the_file(tmp_path: Path) -> None:
    write_regions(tmp_path / "regions.json", 1)
    assert label_regions(tmp_path, "--keep", "0.05") == 0
    dataset = load_coco(tmp_path / "out.json", options=ReadOptions(keep_empty_classes=True))
    *objects, crowd = dataset.records[0].annotations
    assert objects and not any(each.iscrowd for each in objects)
    assert crowd.iscrowd and dataset.class_names[crowd.category] == "top"  # the model has no persons


def test_objects_are_not_regions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_regions(tmp_path / "regions.json", 0)
    assert label_regions(tmp_path) == 3
    assert "without iscrowd" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--tags", "tags.json", "--regions", "regions.json"]])
def test_tags_or_regions(capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["data", "label", str(DEMO), *given])
    assert exit_.value.code == 2
    assert "--tags and --regions" in capsys.readouterr().err
