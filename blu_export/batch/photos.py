"""Where photos come from: a folder, a glob, a list of names, a bucket."""

from __future__ import annotations

import glob
import logging
import os
import posixpath
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from blu_export.errors import BluError, DatasetError, ImageError, UsageError
from blu_export.extras import import_extra
from blu_export.sources import IMAGE_SUFFIXES, find_images

if TYPE_CHECKING:
    from blu_export.data.storage import Storage

log = logging.getLogger(__name__)

LIST_SUFFIXES = frozenset({".txt", ".lst"})
READERS = 8
"""Files that a worker reads at a time, ahead of the network."""
_storages: dict[str, Storage] = {}
"""By protocol; that of this machine has none."""


def list_photos(source: str) -> list[str]:
    """Absolute paths or URLs of all photos that a source names, each once, in a stable order.

    Args:
        source: a folder or bucket prefix, with what is below it; a glob; a list (.txt, one path or URL per line,
            relative to the list); or one photo. Pipes, sockets and devices are skipped.

    Raises:
        DatasetError: there is no such source, or a folder in it cannot be listed.
        UsageError: there is no photo in it.
    """
    remote = "://" in source
    if PurePosixPath(source).suffix.lower() in LIST_SUFFIXES:
        found = _read_list(source)
    elif remote:
        found = _list_remote(source)
    else:
        if not os.path.exists(source) and not glob.has_magic(source):
            raise DatasetError(f"There is no {source}.", "Name a folder, a glob, a list in a .txt file, or a URL.")
        try:
            found = [os.path.abspath(path) for path in find_images([source])]
        except OSError as error:
            raise DatasetError(
                f"{error.filename} cannot be listed: {error.strerror}.", "Check its permissions."
            ) from error
    found = _passing_over_special_files(list(dict.fromkeys(found)))
    if not found:
        raise UsageError(f"There are no photos in {source}.", f"Photos end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found


def _read_list(source: str) -> list[str]:
    from blu_export.data.storage import join, parent

    try:
        text = _storage(source).read(source).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source} is not a list of photos: it is not UTF-8.", "Write one name per line.") from error
    folder = parent(source) if "://" in source else os.path.abspath(parent(source))
    return [_normal(join(folder, line.strip())) for line in text.splitlines() if line.strip()]


def _normal(photo: str) -> str:
    """A path or URL without ``.`` and ``..``, so that a photo has one name."""
    if "://" in photo:
        protocol, _, path = photo.partition("://")
        return f"{protocol}://{posixpath.normpath(path)}" if ".." in path.split("/") else photo
    normal = os.path.normpath(photo)
    if ".." not in photo.split("/") or "\0" in photo or os.path.realpath(normal) == os.path.realpath(photo):
        return normal
    return os.path.realpath(photo)  # a link stands before the dots


def _passing_over_special_files(photos: list[str]) -> list[str]:
    """Those that are not pipes, sockets or devices, which may keep a reader waiting for ever."""
    special = [photo for photo in photos if _is_special(photo)]
    if special:
        log.warning("%d pipes, sockets or devices are skipped, starting with %s", len(special), special[0])
    known = set(special)
    return [photo for photo in photos if photo not in known]


def _is_special(photo: str) -> bool:
    if "://" in photo:
        return False
    try:
        mode = os.stat(photo).st_mode
    except (OSError, ValueError):  # reading it is what reports that
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _list_remote(source: str) -> list[str]:
    protocol = source.partition("://")[0]
    _storage(source).is_folder(source)  # its errors say what is missing: a package, credentials, the network
    files = import_extra("fsspec").filesystem(protocol, use_listings_cache=False)
    try:
        paths = files.glob(source) if glob.has_magic(source) else files.find(source)
    except OSError as error:
        raise DatasetError(f"{source} cannot be listed: {error}.", "Check the URL and the credentials.") from error
    return [str(files.unstrip_protocol(path)) for path in sorted(paths) if Path(path).suffix.lower() in IMAGE_SUFFIXES]


def _storage(source: str) -> Storage:
    """The storage that a path or URL lies in: one for all URLs of a protocol."""
    from blu_export.data.storage import open_storage

    protocol = source.partition("://")[0] if "://" in source else ""
    if protocol not in _storages:
        _storages[protocol] = open_storage(source)
    return _storages[protocol]


def read_photo(photo: str) -> Path | bytes | BluError:
    """What image.decode takes, for a path or URL; the error where a URL cannot be read."""
    if _is_special(photo):  # it has become one since it was listed
        return ImageError(f"{photo} is a pipe, socket or device.", "Copy its content to a file.")
    if "://" not in photo:
        return Path(photo)
    try:
        return _storage(photo).read(photo)
    except BluError as error:
        return ImageError(error.what, error.fix)


def read_ahead(photos: Sequence[str]) -> Iterator[Path | bytes | BluError]:
    """``read_photo`` of each, in order, a few at a time."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(READERS, "blu-read") as pool:
        for photo in photos:
            waiting.append(pool.submit(read_photo, photo))
            if len(waiting) >= READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
