"""Which COCO file in a folder is which part of a data set."""

from __future__ import annotations

import re

from blu_export.data.finder import ANNOTATION_FOLDERS
from blu_export.data.storage import Storage, join
from blu_export.errors import DatasetError

SPLITS = ("train", "val")
PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""What files and folders of a part are called."""
OTHER_PARTS = ("test", "testing")
_USUAL = {"train": ("instances_train", "instances_train2017"), "val": ("instances_val", "instances_val2017")}
_FOLDERS = ("", "annotations")
_NOT_INSTANCES = ("captions", "keypoints", "panoptic", "stuff", "info", "results", "detections")
"""Words in the names of COCO files that hold something else."""
MOST_BELOW = 2
"""Folders inside each other in which a COCO file is looked for: Supervisely's are ds0/annotations/."""
_HEAD = 65_536
"""Bytes of a file in which it is looked for what it is."""


def coco_file(folder: str, split: str, storage: Storage) -> str | None:
    """The COCO file of one part of a folder: named after it, or alone in a folder named after it; None: there is none.

    Raises:
        DatasetError: there are several.
    """
    usual = [join(join(folder, below), f"{name}.json") for below in _FOLDERS for name in _USUAL[split]]
    if found := next((file for file in usual if storage.file(file)), None):
        return found
    for part in PART_NAMES[split]:
        below = join(folder, part)
        if storage.is_folder(below) and (files := _candidates(below, storage)):
            return _one(below, [file for file in files if _part(file) in (None, split)], storage)
    return _one(folder, [file for file in _candidates(folder, storage) if _part(file) == split], storage)


def whole_coco_file(folder: str, storage: Storage) -> str | None:
    """The COCO file of a folder that has no parts, or of the only folder in it that has one; None: there is none.

    Raises:
        DatasetError: there are several.
    """
    if found := _one(folder, [file for file in _candidates(folder, storage) if _part(file) is None], storage):
        return found
    if storage.parallel > 1 or not storage.is_folder(folder):  # a bucket is not searched
        return None
    below = [path for path in storage.below(folder) if path.count("/") <= MOST_BELOW and path.lower().endswith(".json")]
    files = [join(folder, path) for path in below if not set(_words(path)) & set(_NOT_INSTANCES)]
    return _one(folder, [file for file in files if _part(file) is None], storage)


def _candidates(folder: str, storage: Storage) -> list[str]:
    """Files in a folder, and in its folder of annotations, that may be COCO's."""
    if folder.startswith(("http://", "https://")) or not storage.is_folder(folder):
        return []
    places = [folder, *(join(folder, name) for name in (*ANNOTATION_FOLDERS, "Annotations"))]
    files = [join(place, file.name) for place in places if storage.is_folder(place) for file in storage.files(place)]
    return [
        file for file in dict.fromkeys(files)
        if file.lower().endswith(".json") and not set(_words(file)) & set(_NOT_INSTANCES)
        and not file.rpartition("/")[2].startswith("._")
    ]  # fmt: skip


def _one(folder: str, files: list[str], storage: Storage) -> str | None:
    """The one that is a COCO file."""
    if len(files) > 16:  # a file per photo: another tool's
        return None
    found = [file for file in files if looks_like_coco(storage.read(file, _HEAD))]
    if len(found) > 1:
        names = ", ".join(file.rpartition("/")[2] for file in found)
        raise DatasetError(f"{folder} holds several COCO files: {names}.", "Name the one that is meant.")
    return found[0] if found else None


def looks_like_coco(head: bytes) -> bool:
    """Whether the first bytes of a file are a COCO file's: an object with one of its lists, or with info."""
    text = head.replace(b"\0", b"")
    if b'"item"' in text and b'"slots"' in text:  # Darwin's own, which has annotations too
        return False
    return re.search(rb'^[^\[]{0,16}\{\s*"', text) is not None and any(
        re.search(rb'"' + key + rb'"\s*:', text) for key in (b"images", b"annotations", b"categories", b"licenses")
    )


def _words(file: str) -> list[str]:
    return re.findall("[a-z]+", file.rpartition("/")[2].lower())


def _part(file: str) -> str | None:
    """The part that a file's name says; None where it says none."""
    words = _words(file)
    for split, names in PART_NAMES.items():
        if set(names) & set(words):
            return split
    return "test" if set(OTHER_PARTS) & set(words) else None
