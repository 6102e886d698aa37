"""The data sets of other tools, told apart by looking, and read by way of COCO's reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from blu_export.data.dataset import Dataset
from blu_export.data.finder import PhotoFinder
from blu_export.data.formats import cvat, darwin, labelme, masks, via, voc, yolo
from blu_export.data.formats.coco import read_content
from blu_export.data.json_text import START
from blu_export.data.options import ReadOptions
from blu_export.data.storage import Storage, open_storage, parent
from blu_export.errors import DatasetError


@dataclass(frozen=True)
class Reader:
    """How files of a tool are found and read."""

    name: str
    find: Callable[[str, str, Storage, bool], str | None]
    """(source, part, storage, whether the source may be the part) -> path of the part; None: it is not this tool's."""
    entries: Callable[[str, Storage], Iterator[tuple[str, int, Any]]]
    """COCO sections of what ``find`` found."""


READERS = (
    Reader("VIA", via.find, via.entries),
    Reader("CVAT", cvat.find, cvat.entries),
    Reader("Darwin", darwin.find, darwin.entries),
    Reader("LabelMe", labelme.find, labelme.entries),
    Reader("Pascal VOC", voc.find, voc.entries),
    Reader("masks", masks.find, masks.entries),
    Reader("YOLO", yolo.find, yolo.entries),
)


def find_other(source: str, split: str, storage: Storage, whole: bool) -> tuple[Reader, str] | None:
    """The reader of a part of a data set, and the path of the part; None: no reader takes it."""
    for reader in READERS:
        if (found := reader.find(source, split, storage, whole)) is not None:
            return reader, found
    return None


def load_other(reader: Reader, found: str, source: str, split: str, storage: Storage, options: ReadOptions) -> Dataset:
    """Read what ``find_other`` found.

    Raises:
        DatasetError: it cannot be read.
    """
    root = parent(source) if storage.file(source) else source
    photos = storage if options.images is None else open_storage(options.images)
    usual = options.images or (parent(found) if storage.file(found) else found)
    finder = PhotoFinder(photos, usual, options.images or root, split)
    try:
        begun = [("images", START, None), ("categories", START, None)]  # also where there are none
        return read_content(chain(begun, reader.entries(found, storage)), source, finder, options)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{found} cannot be read as {reader.name}: {error}.", "Export it again.") from error
