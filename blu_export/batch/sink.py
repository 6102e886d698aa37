"""The folder or bucket prefix that results go to; each file in it is whole or absent."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from blu_export.errors import DatasetError
from blu_export.extras import import_extra
from blu_export.files import atomic_write

SCRATCH_PREFIX = ".coco-"
"""Of the folder in which a file for ``upload`` is made; a leading dot hides it from readers of Parquet folders."""
LEFTOVERS = (".part-*.parquet", "._plan.*.json", f"{SCRATCH_PREFIX}*")
"""What atomic_write and write_coco have under way, when they are killed."""


class Sink:
    """A place for results.

    Args:
        url: a folder, which is made where it is not there, or a URL like ``s3://bucket/results``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else os.path.abspath(url)
        self._remote: Any = None
        if "://" in url:
            from blu_export.data.storage import open_storage

            open_storage(url).is_folder(self.url)  # its errors say what is missing: a package, credentials, the network
            self._remote = import_extra("fsspec").filesystem(url.partition("://")[0], use_listings_cache=False)

    def path(self, name: str) -> str:
        """Path or URL of a file in it."""
        return f"{self.url}/{name}"

    def names(self) -> set[str]:
        """Names of the files in it; none where it does not exist yet."""
        try:
            if self._remote is None:
                return set(os.listdir(self.url))
            return {str(path).rpartition("/")[2] for path in self._remote.ls(self.url, detail=False)}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise DatasetError(
                f"{self.url} cannot be listed: {error}.", "Check the path and its permissions."
            ) from error

    def open(self, name: str) -> IO[bytes]:
        """A file in it, for reading in any order; OSError where it cannot be read."""
        if self._remote is None:
            return open(self.path(name), "rb")
        opened: IO[bytes] = self._remote.open(self.path(name), "rb")
        return opened

    def write(self, name: str, data: bytes) -> None:
        """Write a file; one of that name is replaced.

        Raises:
            DatasetError: it cannot be written.
        """
        try:
            if self._remote is None:
                with atomic_write(self.path(name)) as temporary:
                    temporary.write_bytes(data)
            else:
                self._remote.pipe_file(self.path(name), data)
        except OSError as error:
            reason = error.strerror or error
            raise DatasetError(
                f"{self.path(name)} cannot be written: {reason}.", "Check free space and permissions."
            ) from error

    def upload(self, file: Path, name: str) -> None:
        """Put a file of this machine there: the same as ``write`` for what does not fit in memory."""
        try:
            if self._remote is None:
                file.replace(self.path(name))
            else:
                self._remote.put_file(str(file), self.path(name))
        except OSError as error:
            reason = error.strerror or error
            raise DatasetError(
                f"{self.path(name)} cannot be written: {reason}.", "Check free space and permissions."
            ) from error

    @property
    def folder(self) -> str | None:
        """The folder's path, if it is on this machine."""
        return self.url if self._remote is None else None

    def remove(self, name: str) -> None:
        """Remove a file of a bucket, if it is there."""
        with suppress(OSError):
            self._remote.rm_file(self.path(name))

    def scratch(self) -> Path | None:
        """Where a file for ``upload`` should be made: on the same disk, if it is one; None: anywhere."""
        return Path(self.url) if self._remote is None else None

    def tidy(self) -> None:
        """Remove what killed writers left behind. Nothing may be writing."""
        if self._remote is not None:
            return
        for path in (path for pattern in LEFTOVERS for path in Path(self.url).glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
