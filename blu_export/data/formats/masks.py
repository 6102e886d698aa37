"""Folders of instance masks: one PNG per object, or one PNG per photo with a color for each object.

``images/x.jpg`` with ``masks/x/*.png`` or ``masks/x.png``; or ``x/images/x.png`` with ``x/masks/*.png``. Black is the
background. A file of one object called ``cup_1.png`` is of the class cup; others are of the class "object".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.data.formats.parts import NAMELESS, Numbered, encode_picture, folder_of, photos_in, read_mask_picture
from blu_export.data.storage import Storage, join
from blu_export.errors import DatasetError

PHOTOS, MASKS = ("images", "img", "JPEGImages"), ("masks", "mask", "instances")
_NAMED = re.compile(r"([^\W\d_][^\d]*?)[ _.-]*\d+")


def find(source: str, split: str, storage: Storage, whole: bool) -> str | None:
    """The folder of a part; with ``whole`` the source itself."""
    return folder_of(source, split, storage, whole, lambda folder, storage: bool(_photos(folder, storage)))


def _photos(folder: str, storage: Storage) -> list[tuple[str, str]]:
    """(path of a photo, the PNG file or the folder of PNG files of its masks), both inside the folder."""
    photos = next((name for name in PHOTOS if photos_in(join(folder, name), storage)), None)
    masks = next((name for name in MASKS if storage.is_folder(join(folder, name))), None)
    if photos and masks:
        names = photos_in(join(folder, photos), storage)
        stems = [name.rpartition(".")[0] for name in names]
        return [(f"{photos}/{name}", f"{masks}/{stem}") for name, stem in zip(names, stems, strict=True)]
    # A folder a photo; listed as paths, for there are no folders in a listing of a bucket.
    below = [path.split("/") for path in storage.below(folder)] if not folder.startswith("http") else []
    own = sorted({parts[0] for parts in below if len(parts) == 3 and parts[1] in MASKS})
    pairs = {parts[0]: "/".join(parts) for parts in below if len(parts) == 3 and parts[1] in PHOTOS}
    kinds = {parts[0]: parts[1] for parts in below if len(parts) == 3 and parts[1] in MASKS}
    return [(pairs[name], f"{name}/{kinds[name]}") for name in own if name in pairs]


def entries(folder: str, storage: Storage) -> Iterator[tuple[str, int, Any]]:
    """COCO sections of the folder; photos without masks show nothing."""
    classes, count = Numbered(), 0
    for number, (photo, place) in enumerate(_photos(folder, storage)):
        try:
            masks = _read(join(folder, place), storage)
        except (ValueError, DatasetError) as error:
            yield "images", number, f"{photo}: {error}"
            continue
        image: dict[str, Any] = {"id": number, "file_name": join(folder, photo)}
        if masks:
            image |= dict(zip(("height", "width"), masks[0][1].shape, strict=True))
        yield "images", number, image
        for name, mask in masks:
            entry = {"image_id": number, "category_id": classes(name), "segmentation": encode_picture(mask)}
            yield "annotations", count, entry
            count += 1
    yield from classes.entries()


def _read(place: str, storage: Storage) -> list[tuple[str, NDArray[np.bool_]]]:
    """(class, mask) of each object of a photo."""
    if storage.file(f"{place}.png"):
        values = read_mask_picture(storage.read(f"{place}.png"))
        return [(NAMELESS, values == value) for value in np.unique(values).tolist() if value]
    if not storage.is_folder(place):
        return []
    found = []
    for file in storage.files(place):
        if file.name.lower().endswith(".png") and not file.name.startswith("._"):
            mask = read_mask_picture(storage.read(join(place, file.name))) > 0
            if mask.any():
                found.append((_class(file.name), mask))
    return found


def _class(file: str) -> str:
    """The class that a file's name tells; a hash or a number tells none."""
    stem = file.rpartition(".")[0]
    named = _NAMED.fullmatch(stem)
    return named[1] if named and not re.fullmatch("[0-9a-f]{8,}", stem) and named[1].lower() not in MASKS else NAMELESS
