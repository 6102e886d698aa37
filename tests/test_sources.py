"""What arguments of a command line stand for."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from blu_export.errors import ImageError
from blu_export.sources import count_frames, find_images, read_video


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp", ".hidden/d.jpg", ".e.jpg", "clip.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_a_folder_stands_for_the_images_below_it(photos: Path) -> None:
    assert find_images([photos]) == [photos / "a.PNG", photos / "b.jpg", photos / "deep" / "c.webp"]


def test_globs_files_and_folders_name_each_file_once(photos: Path) -> None:
    found = find_images([str(photos / "*.jpg"), photos, str(photos / "b.jpg"), str(photos / "**" / "*.webp")])
    assert found == [photos / "b.jpg", photos / "a.PNG", photos / "deep" / "c.webp"]


def test_what_does_not_exist_is_reported_when_it_is_read(photos: Path) -> None:
    assert find_images(["none.jpg", photos / "notes.txt", "-"]) == [
        Path("none.jpg"), photos / "notes.txt", Path("-"),
    ]  # fmt: skip


def test_a_folder_that_cannot_be_listed_is_not_passed_over(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:  # as for a user without the right, which root has everywhere
        if os.fspath(path) == str(photos / "deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError) as raised:
        find_images([photos])
    assert raised.value.filename == str(photos / "deep")
    assert find_images([photos / "b.jpg"]) == [photos / "b.jpg"]


def test_results_below_a_folder_are_passed_over(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    (photos / "deep" / "deep").mkdir()
    (photos / "deep" / "deep" / "f.png").touch()
    assert find_images(["."], skip=photos / "deep") == [Path("a.PNG"), Path("b.jpg")]
    assert find_images(["."], skip="deep/deep") == [Path("a.PNG"), Path("b.jpg"), Path("deep", "c.webp")]
    assert find_images(["deep"], skip="deep") == [Path("deep", "c.webp"), Path("deep", "deep", "f.png")]  # by name


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    odd = tmp_path / "photo[1].jpg"
    odd.touch()
    assert find_images([odd]) == [odd]


def make_video(path: Path, levels: list[int], size: tuple[int, int] = (64, 48)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10, size)
    assert writer.isOpened()
    for level in levels:
        writer.write(np.full((size[1], size[0], 3), (0, 0, level), np.uint8))  # BGR: red
    writer.release()
    return path


def test_video_frames_are_rgb_in_order(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", [0, 100, 200])
    frames = list(read_video(path))
    assert [frame.frame for frame in frames] == [1, 2, 3]
    assert frames[0].fps == pytest.approx(10)
    assert count_frames(path) == 3
    for frame, level in zip(frames, (0, 100, 200), strict=True):
        assert frame.source.shape == (48, 64, 3)
        np.testing.assert_allclose(frame.source.mean(axis=(0, 1)), [level, 0, 0], atol=12)


def test_videos_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="There is no video"):
        list(read_video(tmp_path / "none.mp4"))
    (tmp_path / "noise.mp4").write_bytes(bytes(1000))
    with pytest.raises(ImageError, match="No frame"):
        list(read_video(tmp_path / "noise.mp4"))


def test_a_damaged_video_makes_ffmpeg_and_opencv_say_nothing(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "clip.mp4", [0, 100]).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    # A process of its own: FFmpeg's level is set once, here by make_video.
    program = "import sys, pathlib, blu_export.sources as s; print(s.count_frames(pathlib.Path(sys.argv[1])))"
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "cut.mp4"], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("None\n", "")
