"""``blu data label``: a COCO file from tags and a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blu_export.cli.main import main
from blu_export.data.formats.coco import load_coco

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
