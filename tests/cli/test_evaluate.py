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


def test_a_photo_that_is_not_there_tells_how(evaluate: Callable[..., tuple[int, str]], lone: Path) -> None:
    code, said = evaluate(lone)
    assert (code, f"a.png cannot be read: it does not exist. Where the photos lie elsewhere, {HINT}" in said) == (
        3, True,
    ), said  # fmt: skip
    lone.with_name("a.png").write_bytes(b"")  # damaged: the folder is right
    code, said = evaluate(lone)
    assert (code, HINT in said) == (3, False), said


def test_the_setting_of_training_tells_how(evaluate: Callable[..., tuple[int, str]], lone: Path) -> None:
    code, said = evaluate(lone, "--set", f"data.images={lone.parent / 'elsewhere'}")
    assert (code, HINT in said) == (2, True), said
