"""``blu evaluate`` where the photos are not beside their annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blu_export.cli import main as cli

HINT = "write: blu evaluate [MODEL] FOLDER --annotations FILE.json"


@pytest.fixture
def lone(tmp_path: Path) -> Path:
    """An annotation file, whose photo is in the folder ``elsewhere``."""
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(np.full((40, 60, 3), 204, np.uint8)).save(tmp_path / "elsewhere" / "a.png")
    box = {"bbox": [0, 0, 60, 40], "area": 2400, "segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "coat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **box}],
    }
    (tmp_path / "lone.json").write_text(json.dumps(content))
    return tmp_path / "lone.json"


@pytest.fixture
def evaluate(fake_onnx: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run ``blu evaluate MODEL ARGUMENTS``: (exit code, stderr)."""
    model = fake_onnx()

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["evaluate", str(model), *map(str, arguments)])
        return int(end.value.code or 0), capsys.readouterr().err

    return run


def test_the_folder_is_named_with_annotations(evaluate: Callable[..., tuple[int, str]], lone: Path) -> None:
    code, said = evaluate(lone.parent / "elsewhere", "--annotations", lone)
    assert (code, HINT in said) == (0, False), said


def test_a_photo_below_the_file_is_found(evaluate: Callable[..., tuple[int, str]], lone: Path) -> None:
    assert evaluate(lone)[0] == 0


def test_photos_that_are_not_there_tell_how(evaluate: Callable[..., tuple[int, str]], lone: Path) -> None:
    (lone.parent / "elsewhere" / "a.png").rename(lone.parent / "elsewhere" / "b.png")
    code, said = evaluate(lone)
    assert (code, "a.png is not in" in said, HINT in said) == (3, True, True), said
    lone.with_name("a.png").write_bytes(b"")  # damaged: the folder is right
    code, said = evaluate(lone)
    assert (code, HINT in said) == (3, False), said


def test_one_missing_photo_is_left_out(evaluate: Callable[..., tuple[int, str]], lone: Path, tmp_path: Path) -> None:
    content = json.loads(lone.read_text())
    content["images"].append({"id": 2, "file_name": "gone.png", "height": 40, "width": 60})
    lone.write_text(json.dumps(content))
    code, said = evaluate(lone, "--out", tmp_path / "report", "--save", tmp_path / "results.json")
    assert code == 3
    assert "1 of 2 photos are left out" in said
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert report["photos"] == 1
    assert [Path(uri).name for uri in report["photos_left_out"]] == ["gone.png"]
    assert (tmp_path / "report" / "confusion.png").stat().st_size > 1000
    rows = (tmp_path / "report" / "confusion.csv").read_text().splitlines()
    assert rows[0] == "annotated \\ found,background,coat"
    assert (tmp_path / "results.json").exists()


def test_the_setting_of_training_tells_how(evaluate: Callable[..., tuple[int, str]], lone: Path) -> None:
    code, said = evaluate(lone, "--set", f"data.images={lone.parent / 'elsewhere'}")
    assert (code, HINT in said) == (2, True), said


def test_large_photos_are_read_where_it_is_allowed(evaluate: Callable[..., tuple[int, str]], lone: Path) -> None:
    code, said = evaluate(lone, "--max-pixels", "2000")
    assert (code, "--max-pixels 2400" in said) == (3, True), said
    assert evaluate(lone, "--max-pixels", "2400")[0] == 0
