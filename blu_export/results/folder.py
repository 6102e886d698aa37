"""A folder of results: each format's files in it, whole or absent, under names that do not collide."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from blu_export.draw import overlay
from blu_export.files import atomic_write
from blu_export.results import FORMATS
from blu_export.results.base import Format, PhotoFormat, Result, SetFormat
from blu_export.video import VideoWriter

MAX_STEM_BYTES = 200
"""A stem leaves room for a number and a suffix in the 255 bytes that a name may have."""


class Writer(ABC):
    """Writes results in one format into a folder; ``written`` lists its files as they are done."""

    for_people = False

    def __init__(self) -> None:
        self.written: list[Path] = []

    @abstractmethod
    def write(self, stem: str, result: Result, fps: float = 0.0) -> None:
        """Write one photo, or one frame of a video of ``fps`` frames per second; ``stem`` starts its files' names."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the files that hold several photos; after an error they go."""


def open_writer(name: str, folder: Path, class_names: Sequence[str]) -> Writer:
    """The writer of a format of FORMATS."""
    form = FORMATS[name]()
    if name == "overlay":
        return OverlayWriter(folder, form, tuple(class_names))
    if isinstance(form, SetFormat):
        return SetWriter(folder, form, tuple(class_names))
    return PhotoWriter(folder, form, tuple(class_names))


class PhotoWriter(Writer):
    """Files of their own for each photo; frames have their number in the name."""

    def __init__(self, folder: Path, form: Format, class_names: tuple[str, ...]) -> None:
        super().__init__()
        assert isinstance(form, PhotoFormat)
        self.for_people = form.for_people
        self._folder, self._format, self._class_names = folder, form, class_names

    def write(self, stem: str, result: Result, fps: float = 0.0) -> None:
        """See Writer."""
        number = "" if result.frame is None else f".{result.frame:06d}"
        for suffix, content in self._format.files(result):
            self._put(f"{stem}{number}{suffix}", content)

    def _put(self, name: str, content: bytes) -> None:
        with atomic_write(self._folder / name) as temporary:
            temporary.write_bytes(content)
        self.written.append(self._folder / name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what stands once beside all photos."""
        if kind is None:
            for name, content in self._format.closing(self._class_names):
                self._put(name, content)


class SetWriter(Writer):
    """One file for all photos."""

    def __init__(self, folder: Path, form: SetFormat, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.for_people = form.for_people
        self._format, self._class_names, self._path = form, class_names, folder / form.file_name
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self._path))
            self._file = stack.enter_context(temporary.open("w", encoding="utf-8", newline=form.newline))
            self._file.write(form.start())
            self._stack = stack.pop_all()

    def write(self, stem: str, result: Result, fps: float = 0.0) -> None:
        """See Writer."""
        self._file.write(self._format.add(result))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file."""
        if kind is None:
            self._file.write(self._format.end(self._class_names))
            self.written.append(self._path)
        self._stack.__exit__(kind, error, trace)


class OverlayWriter(PhotoWriter):
    """NAME.overlay.jpg for photos, NAME.overlay.mp4 for the frames of a video."""

    _video: VideoWriter | None = None

    def write(self, stem: str, result: Result, fps: float = 0.0) -> None:
        """See Writer."""
        if result.frame is None:
            super().write(stem, result)
            return
        path, drawn = self._folder / f"{stem}.overlay.mp4", overlay(result.picture(), result.found)
        if self._video is not None and self._video.path != path:
            self._video.__exit__(None, None, None)
            self._video = None
        if self._video is None:
            self._video = VideoWriter(path, fps)
            self.written.append(path)
        self._video.add(drawn)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last video."""
        if self._video is not None:
            self._video.__exit__(kind, error, trace)


class Stems:
    """Unique stems: photos of one name in different folders do not overwrite each other."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._videos: dict[Path, str] = {}

    def of(self, name: str, video: Path | None = None) -> str:
        """A stem for a photo; the frames of one video share a stem."""
        if video is not None:
            if video not in self._videos:
                self._videos[video] = self._unique(video.stem)
            return self._videos[video]
        return self._unique(Path(name).stem or "photo")

    def _unique(self, stem: str) -> str:
        encoded = os.fsencode(stem)
        if len(encoded) > MAX_STEM_BYTES:
            stem = encoded[:MAX_STEM_BYTES].decode(errors="ignore")
        name, number = stem, 1
        while name.casefold() in self._taken:  # casefold: some file systems ignore case
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        return name
