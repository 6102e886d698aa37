"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from blu_export.files import atomic_write, describe_file, human_size, sha256_of


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.json"
    with atomic_write(target) as temporary:
        temporary.write_text("content")
        assert temporary.suffix == ".json"
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="no umask on Windows")
def test_the_mode_is_that_of_open(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a"):
        pass
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_description(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 1234)
    digest = hashlib.sha256(b"x" * 1234).hexdigest()
    assert sha256_of(path) == digest
    assert describe_file(path) == f"{path} (1.2 kB, sha256 {digest})"
    assert [human_size(size) for size in (0, 999, 1000, 12_400_000, 5 * 10**15)] == [
        "0 B", "999 B", "1.0 kB", "12.4 MB", "5000.0 TB",
    ]  # fmt: skip
