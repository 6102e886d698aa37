"""Photos and videos named on a command line: files, folders, globs, standard input, frames."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blu_export.errors import ImageError, UsageError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif", ".gif", ".bmp", ".tif", ".tiff"}
)
STDIN = "-"
MAX_STDIN_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Input:
    """One photo or frame to detect on."""

    name: str
    """As shown to people: the path, ``stdin``, or the video's path and frame number."""
    source: Any
    """What image.decode takes."""
    video: Path | None = None
    """The video that a frame is of."""
    frame: int = 0
    """Number of that frame, from 1."""
    fps: float = 0.0
    """Frames per second of that video."""


def find_images(
    arguments: Iterable[str | os.PathLike[str]],
    suffixes: Iterable[str] = IMAGE_SUFFIXES,
    skip: str | os.PathLike[str] | None = None,
    passed_over: Counter[str] | None = None,
) -> list[Path]:
    """The files that arguments name, each once, in a stable order.

    A folder stands for the files in and below it that have one of ``suffixes`` and do not start with
    a dot; a glob pattern for what it matches; anything else for itself, whether it exists or not:
    reading it is what reports that. A folder ``skip`` below another is skipped: results lie in it. Files of other
    suffixes in folders are counted in ``passed_over``, by suffix.

    Raises:
        UsageError: an argument is a URL.
        OSError: a folder cannot be listed; it names the folder.
    """
    known = frozenset(suffixes)
    results = None if skip is None else os.path.realpath(skip)
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if "://" in os.fspath(argument):
            raise UsageError(
                f"{argument} is not a file of this machine.",
                "Buckets are for blu batch; a photo from the web: curl -L URL | blu infer -",
            )
        if not path.exists() and glob.has_magic(str(path)):
            paths = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        else:
            paths = [path]
        for path in paths:
            found.update(dict.fromkeys(_walk(path, known, results, passed_over) if path.is_dir() else [path]))
    return list(found)


def _walk(folder: Path, suffixes: frozenset[str], skip: str | None, passed_over: Counter[str] | None) -> Iterator[Path]:
    def stop(error: OSError) -> None:  # os.walk by itself skips folders that it cannot list
        raise error

    for parent, folders, files in os.walk(folder, onerror=stop):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent, name)) != skip
        )
        for name in sorted(files):
            if name.startswith("."):
                continue
            suffix = Path(name).suffix.lower()
            if suffix in suffixes:
                yield Path(parent, name)
            elif passed_over is not None:
                passed_over[suffix] += 1


def read_stdin() -> bytes:
    """The encoded image on standard input.

    Raises:
        ImageError: it is empty or unreasonably long.
    """
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if not data:
        raise ImageError("Standard input is empty.", "Pipe an image into it: blu infer - < photo.jpg")
    if len(data) > MAX_STDIN_BYTES:
        raise ImageError(f"Standard input is longer than {MAX_STDIN_BYTES >> 20} MB.")
    return data
