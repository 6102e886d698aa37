"""Opening a data set by its path or URL: which layout it has, and which of its parts is asked for."""

from __future__ import annotations

import json
import os

from blu_export.data import deepfashion2
from blu_export.data.coco import load_coco
from blu_export.data.dataset import Dataset
from blu_export.data.deepfashion2 import Progress, load_deepfashion2, no_progress
from blu_export.data.storage import Storage, join, open_storage, parent
from blu_export.errors import DatasetError
from blu_export.rle import Rle, run_lengths

SPLITS = ("train", "val")

_NAMES = {"train": ("instances_train", "instances_train2017"), "val": ("instances_val", "instances_val2017")}
_FOLDERS = ("", "annotations")


def load_dataset(
    source: str | os.PathLike[str],
    split: str,
    images: str | None = None,
    *,
    limit: int | None = None,
    cached: bool | None = None,
    progress: Progress = no_progress,
    storage: Storage | None = None,
) -> Dataset:
    """Read annotations; photos are read when they are needed.

    Args:
        source: path or URL of a COCO instances file, of a folder that holds ``instances_train.json``
            and ``instances_val.json`` (COCO's own names and its ``annotations`` folder too), or of a
            folder in the layout of DeepFashion2.
        split: ``train`` or ``val``: which part of a folder.
        images: folder or URL of the photos of a COCO file, where it is not the usual one.
        limit: take the first so many photos; all for None.
        cached: what to do about DeepFashion2's index, see ``load_deepfashion2``.
        progress: shows how far reading many files has come.
        storage: reads it; by default what the path or URL asks for.

    Raises:
        DatasetError: there is no such data set, or it is broken.
    """
    source = os.fspath(source)
    storage = storage or open_storage(source)
    if source.endswith(".json"):
        file: str | None = source
    else:
        file = _coco_file(source, split, storage)
    if file is not None:
        return load_coco(file, images or _images_of(file, storage), storage=storage).limited(limit)
    for folder in (join(source, deepfashion2.FOLDERS[split]), source):
        if storage.is_folder(join(folder, deepfashion2.ANNOTATIONS)):
            return load_deepfashion2(folder, limit=limit, cached=cached, progress=progress, storage=storage)
    if not (storage.is_folder(source) or storage.file(source)):
        raise DatasetError(f"There is no {source}.", "Check the path.")
    raise DatasetError(
        f"{source} is no data set with a part '{split}'.",
        f"Give a COCO file, a folder with {_NAMES[split][0]}.json, or one with DeepFashion2's "
        f"{deepfashion2.FOLDERS[split]}/{deepfashion2.ANNOTATIONS}.",
    )


def load_cutouts(source: str | os.PathLike[str]) -> dict[str, Rle]:
    """Cut-outs of persons: a JSON object, file name of a photo to the compressed COCO RLE of the person on it.

    Empty masks are left out.

    Raises:
        DatasetError: the file is missing or not such a file.
    """
    source = os.fspath(source)
    try:
        content = json.loads(open_storage(source).read(source))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"The cut-outs {source} cannot be read: {error}.", "Give a JSON file.") from error
    try:
        return {name: mask for name, mask in content.items() if run_lengths(mask, tuple(mask["size"]))[1::2].any()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{source} does not hold cut-outs: {error!r}.",
            'Write {"photo.jpg": {"size": [height, width], "counts": "…"}, …}.',
        ) from error


def has_split(source: str | os.PathLike[str], split: str) -> bool:
    """Whether a folder holds that part; a file, or one part of DeepFashion2, is not such a folder."""
    source = os.fspath(source)
    if source.endswith(".json"):
        return False
    storage = open_storage(source)
    if _coco_file(source, split, storage) is not None:
        return True
    return storage.is_folder(join(join(source, deepfashion2.FOLDERS[split]), deepfashion2.ANNOTATIONS))


def _coco_file(folder: str, split: str, storage: Storage) -> str | None:
    files = [join(join(folder, below), f"{name}.json") for below in _FOLDERS for name in _NAMES[split]]
    return next((file for file in files if storage.file(file)), None)


def _images_of(file: str, storage: Storage) -> str | None:
    """COCO's own layout: ``annotations/instances_val2017.json`` beside ``val2017/``."""
    folder, name = file.rpartition("/")[::2]
    if folder.rpartition("/")[2] != "annotations":
        return None
    images = join(parent(folder), name.removesuffix(".json").removeprefix("instances_"))
    return images if storage.is_folder(images) else None
