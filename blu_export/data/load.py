"""Opening a data set by its path or URL: which layout it has, and which of its parts is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from blu_export.data.coco import load_coco
from blu_export.data.dataset import Dataset, read_local
from blu_export.errors import DatasetError

_NAMES = {"train": ("instances_train", "instances_train2017"), "val": ("instances_val", "instances_val2017")}
_DIRECTORIES = ("", "annotations")


def load_dataset(
    source: str, split: str, images: str | None = None, read: Callable[[str], bytes] = read_local
) -> Dataset:
    """Read annotations; photos are read when they are needed.

    Args:
        source: a COCO instances file, or a folder that holds ``instances_train.json`` and
            ``instances_val.json`` (COCO's own names and its ``annotations`` folder too).
        split: ``train`` or ``val``: which part of a folder.
        images: folder of the photos, where it is not the usual one.
        read: gives the bytes of a path.

    Raises:
        DatasetError: there is no such data set, or it is broken.
    """
    path = Path(source)
    file = path if path.suffix == ".json" else _coco_file(path, split)
    if file is None:
        raise DatasetError(
            f"{source} is no data set with a part '{split}'.",
            f"Give a COCO file, or a folder with {_NAMES[split][0]}.json.",
        )
    return load_coco(file, images or _images_of(file), read=read)


def has_split(source: str, split: str) -> bool:
    """Whether a folder holds that part."""
    return Path(source).suffix != ".json" and _coco_file(Path(source), split) is not None


def _coco_file(folder: Path, split: str) -> Path | None:
    files = [folder / directory / f"{name}.json" for directory in _DIRECTORIES for name in _NAMES[split]]
    return next((file for file in files if file.is_file()), None)


def _images_of(file: Path) -> str | None:
    """COCO's own layout: ``annotations/instances_val2017.json`` beside ``val2017/``."""
    folder = file.parents[1] / file.stem.removeprefix("instances_") if file.parent.name == "annotations" else None
    return str(folder) if folder is not None and folder.is_dir() else None
