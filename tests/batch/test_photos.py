"""Where photos come from."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_jobs import write_photo

from blu_export.batch.photos import list_photos, read_photo
from blu_export.errors import BluError, DatasetError, UsageError


def test_a_folder_and_what_is_below_it(photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(1, 2)
    write_photo(folder / "below" / "x.jpg", 3)
    (folder / "notes.md").write_text("no photo")
    expected = [str(folder / "00.png"), str(folder / "01.png"), str(folder / "below" / "x.jpg")]
    assert list_photos(str(folder)) == expected
    monkeypatch.chdir(folder.parent)
    assert list_photos("photos") == expected
    assert list_photos("photos/*.png") == expected[:2]
    assert list_photos("photos/00.png") == expected[:1]


def test_a_list_is_relative_to_itself_and_names_photos_once(photos: Callable[..., Path], tmp_path: Path) -> None:
    folder = photos(1, 2)
    names = tmp_path / "names.txt"
    names.write_text(f"photos/01.png\n\n{folder / '00.png'}\r\nphotos/01.png\nmissing.png\ns3://bucket/a.jpg\n")
    assert list_photos(str(names)) == [
        str(folder / "01.png"),
        str(folder / "00.png"),
        str(tmp_path / "missing.png"),
        "s3://bucket/a.jpg",
    ]


def test_a_list_names_photos_once_by_any_path(photos: Callable[..., Path], tmp_path: Path) -> None:
    folder = photos(1, 2)
    names = tmp_path / "names.txt"
    names.write_text(f"photos/00.png\nphotos/../photos/00.png\n./photos//00.png\n{folder}/../photos/00.png\n")
    assert list_photos(str(names)) == [str(folder / "00.png")]
    (tmp_path / "link").symlink_to(folder)
    write_photo(folder / "below" / "00.png", 3)
    (tmp_path / "deep").symlink_to(folder / "below")
    names.write_text("deep/../01.png\nphotos/01.png\n")  # after a link the dots lead elsewhere than they read
    assert list_photos(str(names)) == [str(folder / "01.png")]


def test_names_in_a_buckets_list_lose_their_dots(tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe_file("/dots/lists/all.txt", b"../a.jpg\nmemory://dots/a.jpg\n")
    try:
        assert list_photos("memory://dots/lists/all.txt") == ["memory://dots/a.jpg"]
    finally:
        files.rm("/dots", recursive=True)


def test_pipes_sockets_and_devices_are_passed_over(
    photos: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = photos(1)
    os.mkfifo(folder / "a.jpg")
    (folder / "b.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "c.jpg"))  # a socket's path may not be long
        names = tmp_path / "names.txt"
        names.write_text("photos/a.jpg\nphotos/00.png\n")
        for source in (folder, folder / "*", names):
            assert list_photos(str(source)) == [str(folder / "00.png")]
    assert "3 pipes, sockets or devices are skipped" in caplog.text
    with pytest.raises(UsageError, match="There are no photos"):
        list_photos(str(folder / "a.jpg"))
    late = read_photo(str(folder / "a.jpg"))  # of a plan that was made before it was one
    assert isinstance(late, BluError) and "pipe" in str(late)


def test_sources_without_photos_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There are no photos in"):
        list_photos(str(tmp_path))
    with pytest.raises(DatasetError, match="There is no .*absent"):
        list_photos(str(tmp_path / "absent"))
    with pytest.raises(DatasetError, match="absent.txt"):
        list_photos(str(tmp_path / "absent.txt"))
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="not UTF-8"):
        list_photos(str(binary))


def test_a_folder_that_cannot_be_listed_is_an_error(
    photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(1)
    write_photo(folder / "below" / "x.jpg", 2)
    forbid(monkeypatch, folder / "below")
    with pytest.raises(DatasetError, match=r"photos/below cannot be listed: Permission denied"):
        list_photos(str(folder))


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take away the right to list a folder; root would keep it."""
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if os.fspath(path) == str(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_what_cannot_be_read_is_an_error_with_its_name() -> None:
    assert "memory://nowhere/a.jpg" in str(read_photo("memory://nowhere/a.jpg"))
