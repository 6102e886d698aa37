"""``blu infer`` from the outside: formats, many photos, bad photos, videos."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner, Result

from blu_export.cli import main as cli
from blu_export.errors import UsageError

FakeOnnx = Callable[..., Path]
Infer = Callable[..., Result]


@pytest.fixture(scope="module")
def infer(fake_onnx: FakeOnnx) -> Infer:
    """Run ``blu infer ARGUMENTS`` on the fake model in this process."""
    model = fake_onnx()

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        command = ["infer", *map(str, arguments), "--model", str(model), "--threads", "1"]
        return CliRunner().invoke(cli.app, command, input=stdin)

    return run


def save(path: Path, level: int = 204, height: int = 40, width: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(path)
    return path


def test_table_is_the_default_and_nothing_is_written(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = infer(save(tmp_path / "photo.png"), "--verbose")
    assert result.exit_code == 0
    assert "photo.png  60×40  1 found, 1 below 0.5 not shown" in result.stdout.replace("\n", "")
    row = next(line.split() for line in result.stdout.splitlines() if "coat" in line)
    assert row[2:6] == ["0", "0", "60", "40"]
    assert row[6:] == ["2400", "100.0", "%"]
    assert "runtime onnxruntime" in result.stderr
    for stage in ("decode", "mold", "run", "unmold", "1 photo in"):
        assert stage in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_every_format(infer: Infer, tmp_path: Path) -> None:
    photos = [save(tmp_path / "in" / f"{name}.png", level) for name, level in (("a", 255), ("b", 102))]
    out = tmp_path / "out"
    formats = [option for name in ("json", "coco", "npz", "overlay") for option in ("--format", name)]
    result = infer(tmp_path / "in", "--out", out, *formats)
    assert (result.exit_code, result.stdout) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "a.detections.json", "a.detections.npz", "a.overlay.jpg",
        "b.detections.json", "b.detections.npz", "b.overlay.jpg", "detections.coco.json",
    ]  # fmt: skip

    record = json.loads((out / "a.detections.json").read_text())
    assert record["image"] == str(photos[0])

    with np.load(out / "b.detections.npz") as arrays:
        assert set(arrays) == {"rois", "class_ids", "scores", "masks", "image_size", "class_names"}
        assert arrays["masks"].shape == (40, 60, 2)
        np.testing.assert_array_equal(arrays["class_ids"], [1, 2])

    coco = COCO(str(out / "detections.coco.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == list(map(str, photos))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["coat", "shoe"]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert len(annotations) == 2
    assert annotations[0]["category_id"] == 1
    assert coco.annToMask(annotations[0]).sum() == 40 * 60

    overlay = np.asarray(Image.open(out / "a.overlay.jpg"))
    assert overlay.shape == (40, 60, 3)
    assert (overlay != 255).any()


def test_json_lines_on_stdout(infer: Infer, tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png")
    result = infer(tmp_path, "--json", "--batch", 2)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(record["image"]).name for record in records] == ["a.png", "b.png", "c.png"]


def test_one_bad_photo_among_many(infer: Infer, tmp_path: Path) -> None:
    for index in range(9):
        save(tmp_path / f"{index}.png")
    (tmp_path / "4.png").write_bytes(b"not a picture")
    result = infer(tmp_path, tmp_path / "none.jpg", "--format", "json", "--out", tmp_path / "out", "--batch", 3)
    assert result.exit_code == 3
    assert sorted(path.name[0] for path in (tmp_path / "out").iterdir()) == list("01235678")
    assert "2 of 10 could not be processed" in result.stderr
    assert result.stderr.count("skipped: ") == 2


def test_photos_of_one_name_do_not_overwrite_each_other(infer: Infer, tmp_path: Path) -> None:
    for index, name in enumerate(("a/x.png", "b/x.png", "b/X.bmp", "b/x-2.png")):
        save(tmp_path / name, 50 * (index + 1))
    out = tmp_path / "out"
    assert infer(tmp_path / "a", tmp_path / "b", "--format", "json", "--out", out).exit_code == 0
    images = {json.loads(path.read_text())["image"] for path in out.iterdir()}
    assert images == {str(path) for folder in "ab" for path in (tmp_path / folder).iterdir()}


def test_people_are_shown_what_is_likely_and_files_hold_everything(infer: Infer, tmp_path: Path) -> None:
    photo = save(tmp_path / "photo.png")
    scores = [found["score"] for found in json.loads(infer(photo, "--json").stdout)["detections"]]
    assert min(scores) < 0.5 < max(scores)
    assert "2 found" in infer(photo, "--min-score", "0").stdout
    pictures = []
    for options in ((), ("--min-score", "0")):
        assert infer(photo, "--format", "overlay", "--out", tmp_path / "out", *options).exit_code == 0
        pictures.append((tmp_path / "out" / "photo.overlay.jpg").read_bytes())
    assert pictures[0] != pictures[1]


def test_class_and_score_filters(infer: Infer, tmp_path: Path) -> None:
    photo = save(tmp_path / "photo.png", 255)
    shoes = infer(photo, "--class", "shoe", "--min-score", "0").stdout
    assert "shoe" in shoes
    assert "coat" not in shoes
    assert "0 found" in infer(photo, "--class", "coat", "--min-score", "0.99").stdout
    unknown = infer(photo, "--class", "BG").exception
    assert isinstance(unknown, UsageError)
    assert "coat, shoe" in str(unknown)


def test_standard_input(infer: Infer) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 50, 3), 9, np.uint8)).save(buffer, "PNG")
    result = infer("-", stdin=buffer.getvalue())
    assert result.exit_code == 0
    assert "stdin  50×30" in result.stdout
    assert infer("-", stdin=b"").exit_code == 3


def test_unknown_format(infer: Infer) -> None:
    assert isinstance(infer("a.jpg", "--format", "xml").exception, UsageError)


def test_no_photos_are_an_error(infer: Infer, tmp_path: Path) -> None:
    for nothing in (tmp_path, tmp_path / "*.jpg"):
        error = infer(nothing).exception
        assert isinstance(error, UsageError)
        assert str(nothing) in str(error)


def test_a_second_run_does_not_look_at_the_pictures_of_the_first(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "deep" / "photo.png")
    for _ in range(2):
        assert infer(".", "--format", "overlay").exit_code == 0
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.overlay.jpg"]


def test_urls_are_told_where_to_go(infer: Infer) -> None:
    for url in ("https://example.com/a.jpg", "s3://bucket/photos"):
        error = infer(url).exception
        assert isinstance(error, UsageError)
        assert str(error).startswith(f"{url} is not a file of this machine. Buckets are for blu batch;")


def test_a_photo_with_a_very_long_name_is_written_like_others(infer: Infer, tmp_path: Path) -> None:
    for name in ("a", "n" * 250, "ü" * 125, "ü" * 124, "z"):  # 255 bytes with their suffix are the most there can be
        Image.fromarray(np.full((30, 50, 3), 9, np.uint8)).save(tmp_path / f"{name}.png"[-251:])
    out = tmp_path / "out"
    assert infer(tmp_path, "--format", "json", "--format", "overlay", "--out", out).exit_code == 0
    assert len(list(out.glob("*.json"))) == len(list(out.glob("*overlay*"))) == 5


def test_a_video_becomes_an_overlay_video_and_a_record_per_frame(infer: Infer, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for level in (50, 150, 250):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    photo = save(tmp_path / "clip.png")
    out = tmp_path / "out"
    result = infer(clip, photo, "--format", "overlay", "--format", "json", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "clip-2.detections.json", "clip-2.overlay.jpg",
        "clip.000001.detections.json", "clip.000002.detections.json", "clip.000003.detections.json",
        "clip.overlay.mp4",
    ]  # fmt: skip
    capture = cv2.VideoCapture(str(out / "clip.overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    capture.release()


def test_a_crash_leaves_no_half_files(infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "detections.coco.json").write_text("old")
    photo = save(tmp_path / "photo.png")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blu_export.results.overlay.overlay", interrupted)
    assert infer(photo, "--format", "coco", "--format", "overlay", "--out", out).exit_code == 130
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("detections.coco.json", "old")]
