"""What a format is: the files of one photo, or one file of all photos."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import UsageError
from blu_export.instances import Instances

JPEG_QUALITY = 92
SHOWN_SCORE = 0.5
"""Score shown by default. A model whose AP is measured also returns doubtful detections."""


@dataclass(frozen=True)
class Result:
    """The detections of one photo or frame, and what formats say of it."""

    found: Instances
    name: str
    """Of the photo, as the user named it."""
    frame: int | None = None
    """Number of the frame, from 1; None for a photo."""
    image: NDArray[np.uint8] | None = None
    """uint8 [H, W, 3] RGB; None where it is not known."""

    def picture(self) -> NDArray[np.uint8]:
        """The photo's pixels, uint8 [H, W, 3] RGB.

        Raises:
            UsageError: no one has them.
        """
        if self.image is not None:
            return self.image
        if self.found.photo is None:
            raise UsageError(
                "These detections do not know their photo, which this format draws on.",
                "Use those that detector(photo) returns, or give it: found.save(path, image=…).",
            )
        return self.found.photo()

    @property
    def file_name(self) -> str:
        """The photo's name without folders; a name for photos that have none."""
        return Path(self.name).name or "photo.jpg"


class Format(ABC):
    """One way to write detections down."""

    suffix: ClassVar[str]
    """How the name of its file ends, or of the first of several."""
    for_people: ClassVar[bool] = False
    """Whether it is looked at rather than computed with: then doubtful detections are left out."""


class PhotoFormat(Format):
    """Files of their own for each photo."""

    @abstractmethod
    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """Endings of the names, which follow the photo's stem, and contents of the files."""

    def closing(self, class_names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        """Names and contents of files that stand once beside those of all photos."""
        return iter(())


class SetFormat(Format):
    """One file for all photos, written piece by piece: those of many photos need not fit in memory."""

    file_name: ClassVar[str]
    newline: ClassVar[str | None] = None
    """As ``open`` takes it."""

    @abstractmethod
    def start(self) -> str:
        """The text before the first photo."""

    @abstractmethod
    def add(self, result: Result) -> str:
        """The text of one photo."""

    @abstractmethod
    def end(self, class_names: tuple[str, ...]) -> str:
        """The text after the last one."""


def encode_picture(pixels: NDArray[np.uint8], kind: str) -> bytes:
    """A picture as a file's content: ``kind`` is JPEG or PNG; uint8 [H, W, 3] RGB or [H, W, 4] RGBA."""
    from PIL import Image

    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if kind == "JPEG" else {"compress_level": 3}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def instance_name(found: Instances, index: int) -> str:
    """``1.coat``: the number of an instance from 1, and its class, fit for a file's name."""
    name = found.class_names[found.class_ids[index]]
    safe = "".join(char if char.isalnum() or char in "-_" else "-" for char in name)[:60]
    return f"{index + 1}.{safe}"
