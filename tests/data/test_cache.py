"""The disk cache: bounded, checked, shared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blu_export.data.cache import PHOTO_BYTES, DiskCache, photo_cache

STORED = 100
CONTENT = STORED - 32
"""A digest of 32 bytes goes with each file."""


def fill(cache: DiskCache, *keys: str) -> None:
    for key in keys:
        assert cache.get(key, lambda key=key: key.encode() * CONTENT) == key.encode() * CONTENT


def refuse() -> bytes:
    raise AssertionError("it should have been in the cache")


def size_of(cache: DiskCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.glob("??/*"))


def test_content_is_fetched_once(tmp_path: Path) -> None:
    fill(DiskCache(tmp_path, 10**6), "a")
    assert DiskCache(tmp_path, 10**6).get("a", refuse) == b"a" * CONTENT
    with pytest.raises(AssertionError, match="should have been"):
        DiskCache(tmp_path, 10**6).get("b", refuse)
    assert len(list(tmp_path.glob("??/*"))) == 1  # what failed left nothing


def test_size_is_bounded_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10 * STORED)
    for number, key in enumerate("abcdefghij"):
        fill(cache, key)
        os.utime(cache._path(key), ns=(number, number))
    assert size_of(cache) == cache.limit
    cache.get("a", refuse)  # used just now
    fill(cache, "k")
    assert size_of(cache) <= cache.limit
    for key in "adefghijk":
        cache.get(key, refuse)
    for key in "bc":
        assert cache.get(key, lambda: b"") == b""
    for number in range(50):
        fill(cache, chr(0x100 + number))
        assert size_of(cache) <= cache.limit


def test_what_is_larger_than_the_cache_is_passed_through(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, STORED)
    assert cache.get("a", lambda: b"x" * STORED) == b"x" * STORED
    assert size_of(cache) == 0
    fill(DiskCache(tmp_path, 0), "b")


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * STORED])
def test_a_damaged_file_is_fetched_again(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path, 10**6)
    fill(cache, "a", "b")
    cache._path("a").write_bytes(damage)
    fill(cache, "a")
    assert "is damaged" in caplog.text
    for key in "ab":
        cache.get(key, refuse)


@pytest.mark.parametrize("count", ["", "many", None])
def test_a_lost_count_is_made_again(tmp_path: Path, count: str | None) -> None:
    cache = DiskCache(tmp_path, 3 * STORED)
    fill(cache, "a", "b", "c")
    (tmp_path / "bytes").unlink() if count is None else (tmp_path / "bytes").write_text(count)
    fill(cache, "d", "e")
    assert size_of(cache) <= cache.limit


WORKER = """
import sys
from pathlib import Path
from blu_export.data.cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), int(sys.argv[2]))
sys.stdin.read(1)  # both start now
for turn in range(3):
    for key in map(str, range(40)):
        content = key.encode() * 50
        assert cache.get(key, lambda: content) == content
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1500)
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(cache.limit)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"x")
        worker.stdin.flush()
    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors.decode()
        assert b"damaged" not in errors
    assert 0 < size_of(cache) <= cache.limit
    assert int((tmp_path / "bytes").read_text()) >= size_of(cache)
    assert not list(tmp_path.glob("??/.*"))  # no unfinished files


def test_a_folder_that_cannot_be_written_to_costs_only_speed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "below", 10**6)
    fill(cache, "a", "a")
    assert caplog.text.count("Nothing can be kept") == 1


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLU_CACHE", str(tmp_path / "x"))
    assert photo_cache() == DiskCache(tmp_path / "x" / "files", PHOTO_BYTES)
    monkeypatch.setenv("BLU_CACHE", "off")
    cache = photo_cache()
    fill(cache, "a")
    assert size_of(cache) == 0
