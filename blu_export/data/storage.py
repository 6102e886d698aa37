"""Where data sets lie: folders, buckets and anything else that fsspec reaches, by path or URL.

Paths are text, joined by ``/``. A URL is anything with ``://``; S3 is set up as every program that
uses boto is: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, …
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from blu_export.data.cache import DiskCache, photo_cache
from blu_export.errors import DatasetError, MissingDependencyError, UsageError
from blu_export.extras import import_extra

TIMEOUT = 30.0
"""Seconds without a byte after which an answer is given up."""
ATTEMPTS = 4
"""Times that a request is made before its failure counts."""
MOST_FILES, MOST_DEPTH = 1_000_000, 6
"""Files below a folder, and folders inside each other, that are looked at to find photos."""
FIRST_PAUSE = 0.1
"""Seconds before the second attempt; each further one waits four times as long."""

T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A file in a folder: its name, and what tells this content from an older one."""

    name: str
    size: int
    version: str


class Storage(Protocol):
    """What reading a data set asks of the place it lies in. Safe to use from several threads."""

    parallel: int
    """Files worth reading at a time, per process."""

    def read(self, path: str, length: int | None = None) -> bytes:
        """A file's bytes, or the first ``length`` of them.

        Raises:
            DatasetError: it is not there or cannot be read.
        """

    def fetch(self, path: str, version: str = "") -> bytes:
        """The same for a whole file that never changes, or whose versions are told apart: where there is
        a network between, it comes from the disk cache the second time.
        """

    def file(self, path: str) -> File | None:
        """What is known of a file; None where there is none."""

    def is_folder(self, path: str) -> bool:
        """Whether there is such a folder."""

    def files(self, folder: str) -> list[File]:
        """The files directly in a folder, by name.

        Raises:
            DatasetError: there is no such folder, or it cannot be listed.
        """

    def below(self, folder: str) -> list[str]:
        """The files in and below a folder, by their paths inside it; at most MOST_FILES.

        Raises:
            DatasetError: there is no such folder, or it cannot be listed.
        """


def open_storage(source: str) -> Storage:
    """The storage that a path or URL lies in."""
    if "://" not in source:
        return LocalStorage()
    return RemoteStorage(source, photo_cache())


def join(folder: str, name: str) -> str:
    """A path or URL inside a folder; ``name`` itself where it is absolute."""
    if not folder or name.startswith("/") or "://" in name:
        return name
    return f"{folder.rstrip('/')}/{name}"


def parent(path: str) -> str:
    """The folder of a file: "." for a bare name."""
    folder, slash, _ = path.rpartition("/")
    return (folder or "/") if slash else "."


class LocalStorage:
    """The disks of this machine."""

    parallel = 1

    def read(self, path: str, length: int | None = None) -> bytes:
        """See Storage."""
        try:
            with open(path, "rb") as file:
                return file.read(-1 if length is None else length)
        except OSError as error:
            raise _unreadable(path, error) from error

    def fetch(self, path: str, version: str = "") -> bytes:
        """See Storage."""
        return self.read(path)

    def file(self, path: str) -> File | None:
        """See Storage."""
        if not os.path.isfile(path):
            return None
        status = os.stat(path)
        return File(os.path.basename(path), status.st_size, str(status.st_mtime_ns))

    def is_folder(self, path: str) -> bool:
        """See Storage."""
        return os.path.isdir(path)

    def files(self, folder: str) -> list[File]:
        """See Storage."""
        try:
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
        except OSError as error:
            raise _unreadable(folder, error) from error
        return [File(name, status.st_size, str(status.st_mtime_ns)) for name, status in sorted(found)]

    def below(self, folder: str) -> list[str]:
        """See Storage."""
        found: list[str] = []
        seen = set()  # links may lead back
        try:
            for place, folders, names in os.walk(folder, followlinks=True, onerror=lambda error: _raise(error, folder)):
                inside = os.path.relpath(place, folder)
                prefix = "" if inside == "." else f"{inside}/"
                found += [f"{prefix}{name}" for name in names if not name.startswith("._")]
                seen.add(os.path.realpath(place))
                deep = prefix.count("/") >= MOST_DEPTH
                folders[:] = sorted(
                    name
                    for name in folders
                    if not deep and name[0] != "." and os.path.realpath(os.path.join(place, name)) not in seen
                )
                if len(found) >= MOST_FILES:
                    break
        except OSError as error:
            raise _unreadable(folder, error) from error
        return sorted(found[:MOST_FILES])


class RemoteStorage:
    """What fsspec reaches by the protocol of ``url``: S3 and everything that speaks it, HTTP, …

    Failed requests are repeated a few times where repeating may help: dropped connections, answers
    that do not come, servers in trouble. What is missing or forbidden fails at once.

    Args:
        url: any URL there.
        cache: where ``fetch`` keeps files.
        timeout: seconds without a byte after which an answer is given up.
        attempts: times that a request is made.

    Raises:
        UsageError: there is no such protocol, or no bucket or server is named.
        MissingDependencyError: its package is not installed.
    """

    parallel = 32

    def __init__(self, url: str, cache: DiskCache, timeout: float = TIMEOUT, attempts: int = ATTEMPTS) -> None:
        self._cache, self._attempts = cache, attempts
        protocol, _, place = url.partition("://")
        if not place.strip("/"):
            raise UsageError(f"{url} names no bucket or server.", f"Write {protocol}://NAME/folder.")
        fsspec = import_extra("fsspec")
        self._failures: tuple[type[Exception], ...] = (OSError,)
        options: dict[str, Any] = {}
        if protocol in ("s3", "s3a"):
            import_extra("s3fs")
            from aiohttp import ClientError as HttpError
            from botocore.exceptions import BotoCoreError, ClientError

            # ValueError: what botocore raises for an endpoint that is not a URL.
            self._failures += (HttpError, BotoCoreError, ClientError, ValueError)
            # boto would repeat inside our repetitions.
            config = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"total_max_attempts": 1}}
            # One stream per file: asking for its size first would double the requests.
            options = {"config_kwargs": config, "max_concurrency": 1}
        elif protocol in ("http", "https"):
            from aiohttp import ClientError as HttpError
            from aiohttp import ClientTimeout

            self._failures += (HttpError,)
            options = {"client_kwargs": {"timeout": ClientTimeout(connect=timeout, sock_read=timeout)}}
        try:
            self._files = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
        except ValueError as error:
            raise UsageError(f"There is no storage '{protocol}://'.", "Use s3://, https:// or a folder.") from error
        except ImportError as error:  # fsspec says which package
            what = f"{protocol}:// needs a package that is not installed."
            raise MissingDependencyError(what, f"{error}.") from error
        self._files.retries = 1  # s3fs, likewise

    def read(self, path: str, length: int | None = None) -> bytes:
        """See Storage."""
        with _named(path, self._failures):
            return bytes(self._repeat(lambda: self._files.cat_file(path, start=length and 0, end=length)))

    def fetch(self, path: str, version: str = "") -> bytes:
        """See Storage."""
        return self._cache.get(f"{path}\n{version}", lambda: self.read(path))

    def file(self, path: str) -> File | None:
        """See Storage."""
        entry = self._info(path)
        return _file(entry) if entry["type"] == "file" else None

    def is_folder(self, path: str) -> bool:
        """See Storage."""
        return bool(self._info(path)["type"] == "directory")

    def files(self, folder: str) -> list[File]:
        """See Storage."""
        with _named(folder, self._failures):
            found = self._repeat(lambda: self._files.ls(folder, detail=True))
        # S3 lists the folder itself too, if there is an object of its name.
        files = [_file(entry) for entry in found if entry["type"] == "file"]
        return sorted((file for file in files if file.name), key=lambda file: file.name)

    def below(self, folder: str) -> list[str]:
        """See Storage."""
        if folder.startswith(("http://", "https://")):
            raise DatasetError(f"{folder} cannot be listed.", "Name the folder of the photos with --images.")
        with _named(folder, self._failures):
            found = self._repeat(lambda: self._files.find(folder, maxdepth=MOST_DEPTH))
        start = len(self._files._strip_protocol(folder).rstrip("/")) + 1
        return sorted(path[start:] for path in found[:MOST_FILES])

    def _info(self, path: str) -> dict[str, Any]:
        with _named(path, self._failures):
            try:
                return dict(self._repeat(lambda: self._files.info(path)))
            except FileNotFoundError:
                return {"type": "nothing"}

    def _repeat(self, request: Callable[[], T]) -> T:
        pause = FIRST_PAUSE
        for _ in range(self._attempts - 1):
            try:
                return request()
            except self._failures as error:
                if _is_final(error):
                    raise
            time.sleep(pause)
            pause *= 4
        return request()


def _raise(error: OSError, folder: str) -> None:
    """Fail for the folder itself; one below it that cannot be listed is skipped."""
    if error.filename == folder:
        raise error


def _file(entry: dict[str, Any]) -> File:
    """From fsspec's description; the version is what changes with the content, as far as the server says."""
    version = next((entry[name] for name in ("ETag", "etag", "mtime", "LastModified") if entry.get(name)), "")
    return File(str(entry["name"]).rpartition("/")[2], int(entry["size"] or 0), str(version))


def _is_final(error: Exception) -> bool:
    """Whether the same request would fail again: missing, forbidden, not understood, no credentials, no URL."""
    if isinstance(error, ValueError):
        return True
    if isinstance(error, OSError):
        missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
        return isinstance(error, missing) or error.errno == errno.EINVAL
    if not type(error).__module__.startswith("botocore"):
        return False
    from botocore.exceptions import ConnectionError, HTTPClientError

    return not isinstance(error, (ConnectionError, HTTPClientError))


@contextmanager
def _named(path: str, failures: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except failures as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DatasetError:
    """The error to show: what happened to which path, and what to do about it."""
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
    if isinstance(error, FileNotFoundError):
        return DatasetError(f"{path} cannot be read: it does not exist.", "Check the path.")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return DatasetError(
            f"{path} cannot be read without credentials.",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true.",
        )
    if isinstance(error, PermissionError):
        fix = "Check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, …) and what they allow."
        return DatasetError(f"Access to {path} is refused: {reason}.", fix if "://" in path else "Check its mode.")
    if reason.startswith("Invalid endpoint"):
        fix = "AWS_ENDPOINT_URL needs a scheme: write http://localhost:9000 for localhost:9000."
        return DatasetError(f"{path} cannot be read: {reason}.", fix)
    if "://" in path:
        return DatasetError(
            f"{path} cannot be read: {reason}.",
            "Check the network and the endpoint (AWS_ENDPOINT_URL), then try again.",
        )
    return DatasetError(f"{path} cannot be read: {reason}.", "Check the path.")
