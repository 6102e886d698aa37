"""README and docs: commands that need neither a GPU, a network nor minutes are run as they stand, on sample files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doc_commands import commands
from PIL import Image
from small_models import small_export, small_weights
from typer.testing import CliRunner

from blu_export.cli import main as cli
from blu_export.embedded import DEMO_PHOTO, embedded

OUTPUTS = ("-o", "--out", "--save")

NOT_RUN = {
    r"s3://": "needs a bucket",
    r"rtsp://| infer 0 ": "needs a camera",
    r"^blu serve": "serves until it is stopped; tests/serve has it",
    r"^blu build-engine|\.engine\b|--device cuda": "needs TensorRT or a GPU; tests/tensorrt has it",
    r"^blu train .*--weights imagenet": "downloads weights; tests/train has it",
    r"^blu train (?!.*--dry-run)": "trains for minutes; tests/train has it",
    r"^blu export onnx .*(?:coco|mine|shapes)\.h5": "exports a full-size model: minutes; tests/export has it",
    r"^blu export onnx .*--int8": "calibrates for minutes; tests/quantize has it",
    r"^blu benchmark": "times models for minutes; tests/benchmark has it",
}
"""Commands that are parsed only (test_docs.py), as a pattern and why."""


def why_not(line: str) -> str | None:
    """Why a command is not run; None where it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, f"{line} ")), None)


def cases() -> list[Any]:
    """The commands as parameters of a test."""
    found = []
    for page, line in sorted(set(commands())):
        marks = [pytest.mark.skip(reason=why)] if (why := why_not(line)) else []
        if re.search(r"\.(?:mp4|mov)\b", line):
            marks.append(pytest.mark.skipif(find_spec("av") is None, reason="needs the extra video"))
        found.append(pytest.param(page, line, marks=marks))
    return found


def test_reasons_not_to_run_are_of_commands_that_there_are() -> None:
    lines = {line for _, line in commands()}
    assert len({line for line in lines if why_not(line) is None}) > 20
    for pattern in NOT_RUN:
        assert any(re.search(pattern, f"{line} ") for line in lines), pattern


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands name: photos, a video, data sets in several layouts, models."""
    folder = tmp_path_factory.mktemp("samples")
    with Image.open(embedded(DEMO_PHOTO)) as opened:
        photo = opened.convert("RGB").resize((240, 160))
    for name in ("street", "photo", "aerial"):
        photo.save(folder / f"{name}.jpg")
    _data_sets(folder, photo)
    for name in ("photos.txt", "hundred.txt"):
        (folder / name).write_text("street.jpg\nphoto.jpg\n")
    for name in ("coco.onnx", "model.onnx"):
        (folder / name).symlink_to(embedded())
    (folder / "first.onnx").symlink_to(small_export())
    for run in ("mine", "first", "today"):
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "best.h5").symlink_to(small_weights())
    if find_spec("av") is not None:
        for name in ("street.mp4", "clip.mp4", "clip.mov"):
            _video(folder / name, np.asarray(photo))
    return folder


def _data_sets(folder: Path, photo: Image.Image) -> None:
    """COCO in photos/, coco/, dataset/, data/garments/ and as single files; LabelMe in labeled/; VIA."""
    parts = {"train": range(1, 7), "val": range(7, 11)}
    for root in ("photos", "coco", "dataset", "data/garments"):
        (folder / root / "images").mkdir(parents=True)
        for part, numbers in parts.items():
            for number in numbers:
                photo.save(folder / root / "images" / f"{number}.jpg")
            (folder / root / f"instances_{part}.json").write_text(json.dumps(_coco(numbers)))
    for place, prefix in (("jpegs", ""), (".", "photos/images/")):
        (folder / place).mkdir(exist_ok=True)
        for name, numbers in (*((f"instances_{part}", parts[part]) for part in parts), ("annotations", range(1, 11))):
            (folder / place / f"{name}.json").write_text(json.dumps(_coco(numbers, prefix)))
    for name, file, content in (
        ("tagged", "tags.json", {"1.jpg": []}),
        ("street", "persons.json", _coco(range(1, 3), crowds=True)),
    ):
        shutil.copytree(folder / "photos" / "images", folder / name / "images")
        (folder / name / file).write_text(json.dumps(content))
    results = [{"image_id": 7, "category_id": 1, "score": 0.9, "bbox": [40, 30, 80, 60], "segmentation": [_outline()]}]
    (folder / "results.json").write_text(json.dumps(results))
    via: dict[str, Any] = {}
    (folder / "labeled").mkdir()
    for number in range(1, 11):
        name = f"street{number}"
        photo.save(folder / "labeled" / f"{name}.jpg")
        photo.save(folder / f"{name}.jpg")
        points = np.reshape(_outline(), (-1, 2)).tolist()
        shape = {"label": "hat", "points": points, "shape_type": "polygon", "group_id": None, "flags": {}}
        label = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": f"{name}.jpg", "imageData": None}
        label |= {"imageWidth": photo.width, "imageHeight": photo.height}
        (folder / "labeled" / f"{name}.json").write_text(json.dumps(label))
        xs, ys = [x for x, _ in points], [y for _, y in points]
        region = {
            "shape_attributes": {"name": "polygon", "all_points_x": xs, "all_points_y": ys},
            "region_attributes": {"class": "hat"},
        }
        via[f"{name}.jpg1"] = {"filename": f"{name}.jpg", "size": 1, "regions": [region], "file_attributes": {}}
    (folder / "via_project.json").write_text(json.dumps(via))


def _outline() -> list[int]:
    return [40, 30, 120, 30, 120, 90, 40, 90]


def _coco(numbers: range, prefix: str = "", crowds: bool = False) -> dict[str, Any]:
    """One hat, or many of them, on each photo."""
    return {
        "categories": [{"id": 1, "name": "hat"}],
        "images": [
            {"id": number, "file_name": f"{prefix}{number}.jpg", "width": 240, "height": 160} for number in numbers
        ],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "iscrowd": int(crowds)}
            | {"segmentation": [_outline()], "bbox": [40, 30, 80, 60], "area": 4800}
            for number in numbers
        ],
    }


def _video(path: Path, picture: Any) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(("page", "line"), cases())
def test_commands_run_and_write_what_they_name(
    page: str, line: str, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(samples, folder, symlinks=True)
    words = shlex.split(line)[1:]
    outputs = [folder / words[place + 1] for place, word in enumerate(words) if word in OUTPUTS]
    for path in outputs:  # what another command of the page needs
        path.unlink(missing_ok=True)
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, f"{page}: {line}\n{done.output}\n{done.exception!r}"
    for path in outputs:
        assert path.exists(), f"{page}: {line} wrote no {path.name}"
