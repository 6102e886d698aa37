"""What arguments of a command line stand for."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from blu_export.sources import find_images


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


def test_files_passed_over_are_counted(photos: Path) -> None:
    for name in ("a.psd", "b.psd", "notes", ".hidden"):
        (photos / "deep" / name).touch()
    passed_over: Counter[str] = Counter()
    find_images([photos], passed_over=passed_over)
    assert passed_over[".psd"] == 2 and passed_over[""] == 1
