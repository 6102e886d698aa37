"""Photos that EXIF turns, and annotations made on them as they are stored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blu_export.data import dataset as module
from blu_export.data.check import check
from blu_export.data.formats.coco import load_coco
from blu_export.data.options import Decoding, ReadOptions
from blu_export.errors import DatasetError


def turned_set(folder: Path, size: dict[str, int], polygon: list[float], orientation: int = 6) -> Path:
    """One photo, stored 40 wide and 20 high with its left half white, that EXIF turns upright."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "a.png", exif=exif)
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", **size}],
        "categories": [{"id": 1, "name": "half"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [polygon]}],
    }
    (folder / "x.json").write_text(json.dumps(content))
    return folder / "x.json"


STORED, TURNED = [0, 0, 20, 0, 20, 20, 0, 20], [0, 0, 20, 0, 20, 20, 0, 20]
WIDE = [0, 0, 40, 0, 40, 20, 0, 20]


@pytest.mark.parametrize(
    ("size", "polygon", "shape"),
    [
        ({"width": 40, "height": 20}, STORED, (20, 40)),  # the annotated size is the stored one
        ({"width": 20, "height": 40}, TURNED, (40, 20)),
        ({}, TURNED, (40, 20)),  # no size: upright, as far as the polygon tells
        ({}, WIDE, (20, 40)),  # the polygon fits the stored photo alone
        ({"width": 20, "height": 40}, WIDE, (20, 40)),
    ],
)
def test_auto_takes_what_was_annotated(
    tmp_path: Path, size: dict[str, int], polygon: list[float], shape: tuple[int, int]
) -> None:
    dataset = load_coco(turned_set(tmp_path, size, polygon))
    image, (mask,) = dataset.load_image(0), dataset.load_masks(0)
    assert image.shape[:2] == mask.shape == shape
    if polygon != WIDE:
        assert (image[mask] == 255).all()
    kinds = [problem.kind for problem in check(dataset).problems]
    assert kinds == (["unturned"] if shape == (20, 40) else [])


def test_apply_and_ignore(tmp_path: Path) -> None:
    path = turned_set(tmp_path, {"width": 40, "height": 20}, STORED)
    assert load_coco(path, options=ReadOptions(exif="ignore")).load_image(0).shape == (20, 40, 3)
    applied = load_coco(path, options=ReadOptions(exif="apply"))
    assert [problem.kind for problem in check(applied).problems] == ["wrong size"]
    path = turned_set(tmp_path, {}, STORED)
    assert load_coco(path, options=ReadOptions(exif="ignore")).records[0].width == 40


def test_upside_down_cannot_be_told_by_size(tmp_path: Path) -> None:
    dataset = load_coco(turned_set(tmp_path, {"width": 40, "height": 20}, STORED, orientation=3))
    assert [problem.kind for problem in check(dataset).problems] == ["turn unknown"]


def test_that_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module._say_turn_unknown.cache_clear()
    path = turned_set(tmp_path, {"width": 40, "height": 20}, STORED, orientation=3)
    with Image.open(tmp_path / "a.png") as image:
        image.convert("RGB").save(tmp_path / "a.jpg", exif=image.getexif())
    path.write_text(path.read_text().replace("a.png", "a.jpg"))
    dataset = load_coco(path)
    with caplog.at_level(logging.INFO):
        dataset.load_image(0)
        dataset.load_image(0)
    assert caplog.text.count("does not tell if") == 1


def test_gray_of_fewer_bits_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 40), 4095, np.uint16)).save(tmp_path / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 40}], "categories": []}
    (tmp_path / "a.json").write_text(json.dumps(content | {"annotations": []}))
    assert load_coco(tmp_path / "a.json").load_image(0).max() == 15
    options = ReadOptions(decoding=Decoding(bits=12))
    assert load_coco(tmp_path / "a.json", options=options).load_image(0).min() == 255


def test_swapped_sizes_are_said(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 20}], "categories": []}
    (tmp_path / "a.json").write_text(json.dumps(content | {"annotations": []}))
    dataset = load_coco(tmp_path / "a.json")
    with pytest.raises(DatasetError, match="40x20, its annotation says 20x40: width and height are swapped"):
        dataset.load_image(0)
    found = {problem.kind: problem.detail for problem in check(dataset).problems}
    assert found["wrong size"] == "40x20, annotated 20x40: width and height are swapped"
