"""A disk cache for what comes over a network: bounded, checked, shared by several processes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blu_export.cache import cache_folder
from blu_export.files import atomic_write

PHOTO_BYTES = 20 * 10**9
KEPT_SHARE = 0.9
"""A full cache is emptied down to this share of its limit, so that not every write has to look for old files."""

_DIGEST_BYTES = 32
_COUNT = "bytes"
_LOCK = "lock"

log = logging.getLogger(__name__)


def photo_cache() -> DiskCache:
    """Of photos that came over a network: ``files`` in the user's cache, PHOTO_BYTES at most; see ``cache``."""
    folder = cache_folder("files")
    return DiskCache(folder or Path(os.devnull), PHOTO_BYTES if folder else 0)


@dataclass(frozen=True)
class DiskCache:
    """Files by key, together never larger than ``limit`` bytes; the longest unused ones go first.

    Each file is a SHA-256 followed by the content that it is of: a damaged one is noticed, deleted and
    fetched again. Files appear whole, by a rename, and are written one at a time, under a lock that all
    processes share. What they take together is counted in a file beside them, so that the folder is
    listed only when room has to be made; the count may run ahead of the truth, but not behind it.
    A folder that cannot be written to costs the speed, not the run: that is logged once.
    """

    folder: Path
    limit: int

    def get(self, key: str, fetch: Callable[[], bytes]) -> bytes:
        """The content of ``key``: from disk, or from ``fetch`` and then kept."""
        path = self._path(key)
        content = self._load(path)
        if content is None:
            content = fetch()
            try:
                self._keep(path, content)
            except OSError as error:
                _warn_once(f"Nothing can be kept in {self.folder} ({error}): photos are fetched each time.")
        return content

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def _load(self, path: Path) -> bytes | None:
        try:
            stored = path.read_bytes()
            os.utime(path)  # used just now
        except OSError:  # not there, or just making room
            return None
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() == digest:
            return content
        log.warning("%s in the cache is damaged; it is fetched again.", path.name)
        path.unlink(missing_ok=True)
        return None

    def _keep(self, path: Path, content: bytes) -> None:
        from filelock import FileLock

        size = _DIGEST_BYTES + len(content)
        if size > self.limit * KEPT_SHARE:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        count = self.folder / _COUNT
        with FileLock(self.folder / _LOCK, poll_interval=0.005):
            if path.exists():  # another process was faster
                return
            try:
                total = int(count.read_text())
            except (OSError, ValueError):
                total = self._shrink_to(self.limit)
            if total + size > self.limit:
                total = self._shrink_to(int(self.limit * KEPT_SHARE) - size)
            count.write_text(str(total + size))
            with atomic_write(path) as temporary:
                temporary.write_bytes(hashlib.sha256(content).digest() + content)

    def _shrink_to(self, limit: int) -> int:
        """Delete the longest unused files until the rest fits; returns the bytes of the rest."""
        found = []
        for path in self.folder.glob("??/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        log.warning(message)
