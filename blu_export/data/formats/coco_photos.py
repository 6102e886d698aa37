"""The photos that a COCO file lists: found, and with the size that the annotations are meant on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blu_export.data.dataset import Segmentation
from blu_export.data.finder import PhotoFinder, photo_head
from blu_export.data.heads import ExifPolicy, PhotoHead
from blu_export.data.problems import Problem
from blu_export.data.segmentation import coordinate_range, polygons_box
from blu_export.data.storage import join
from blu_export.errors import DatasetError

EDGE = 2.0
"""Pixels by which an outline may pass the photo's edge and still be of it."""


@dataclass(slots=True)
class Listed:
    """An entry of ``images``."""

    key: Any
    name: str
    size: tuple[int, int] | None
    """(height, width); None: the photo tells."""
    number: int


@dataclass(frozen=True, slots=True)
class Found:
    """A photo whose size is known."""

    key: Any
    uri: str
    height: int
    width: int
    number: int


def finish_photos(
    listed: Sequence[Listed], outlines: Sequence[list[Segmentation]], finder: PhotoFinder, exif: ExifPolicy
) -> tuple[list[Found], list[Problem], list[str]]:
    """Find the photos and know their sizes.

    Args:
        listed: the photos.
        outlines: those of the objects of each photo.
        finder: finds them.
        exif: whether photos are turned as their EXIF says.

    Returns:
        the photos, those left out excepted; what is wrong; and notes for people. A photo that is not there but whose
        size is annotated stays: results can be judged without photos.
    """
    uris = finder.locate([photo.name for photo in listed])
    unsized = [i for i, photo in enumerate(listed) if photo.size is None]
    unfit = [
        i for i, photo in enumerate(listed)
        if photo.size is not None and exif == "auto" and outlines[i] and _fits(outlines[i], photo.size[::-1])
        and not _fits(outlines[i], photo.size)
    ]  # fmt: skip
    heads = _read_heads(finder, uris, [*unsized, *unfit])
    found, problems, absent = [], [], 0
    for number, (photo, uri) in enumerate(zip(listed, uris, strict=True)):
        place = uri or join(finder.usual, photo.name)
        absent += uri is None
        if uri is None:
            problems.append(Problem("missing photo", place, f"{photo.name} is not in {finder.tried}"))
        head = heads.get(number)
        if isinstance(head, str) and photo.size is None:
            problems.append(Problem("broken photo", place, head))
        size = photo.size
        if isinstance(head, PhotoHead):
            size = _size_of(head, outlines[number], exif) if size is None else _unturned(head, size)
        if size is not None:
            found.append(Found(photo.key, place, *size, photo.number))
    notes = []
    if unsized:
        notes.append(f"{len(unsized)} of {len(listed)} photos have no size in the file: taken from the photos")
    if absent:
        notes.append(
            f"{absent} of {len(listed)} photos are not there; looked for in {finder.tried} (--images names another)"
        )
    return found, problems, notes


def _read_heads(finder: PhotoFinder, uris: Sequence[str | None], wanted: Sequence[int]) -> dict[int, PhotoHead | str]:
    """What the first bytes of some photos tell; why, where they cannot be read."""

    def read(number: int) -> PhotoHead | str:
        uri = uris[number]
        assert uri is not None
        try:
            return photo_head(finder.storage, uri)
        except DatasetError as error:
            return error.what

    there = [number for number in wanted if uris[number] is not None]
    if finder.storage.parallel == 1:
        return {number: read(number) for number in there}
    with ThreadPoolExecutor(finder.storage.parallel) as threads:
        return dict(zip(there, threads.map(read, there), strict=True))


def _size_of(head: PhotoHead, outlines: list[Segmentation], exif: ExifPolicy) -> tuple[int, int]:
    """The size that outlines are of, where none is annotated."""
    stored = head.height, head.width
    if exif == "ignore":
        return stored
    fits_stored_alone = bool(outlines) and _fits(outlines, stored) and not _fits(outlines, head.turned)
    return stored if exif == "auto" and fits_stored_alone else head.turned


def _unturned(head: PhotoHead, size: tuple[int, int]) -> tuple[int, int]:
    """The stored size, where outlines fit only that and the annotated one is that of the photo turned."""
    stored = head.height, head.width
    return stored if head.orientation >= 5 and head.turned == size else size


def _fits(outlines: list[Segmentation], size: tuple[int, int]) -> bool:
    """Whether all outlines lie on a photo of (height, width)."""
    for outline in outlines:
        if isinstance(outline, dict):
            if tuple(outline["size"]) != size:
                return False
        elif outline and coordinate_range(outline)[1] > min(size):
            _, _, y2, x2 = polygons_box(outline)
            if y2 > size[0] + EDGE or x2 > size[1] + EDGE:
                return False
    return True
