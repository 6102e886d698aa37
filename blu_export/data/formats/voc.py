"""Pascal VOC with mask pictures, as VOC itself, CVAT and Datumaro write it.

``SegmentationObject/NAME.png`` has a color for each object, 0 where there is none and 255 along edges. An object's
class is that of the same number in ``Annotations/NAME.xml``, or the color of ``SegmentationClass/NAME.png`` at its
place, by labelmap.txt or by VOC's own order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from blu_export.data.finder import IMAGE_SUFFIXES
from blu_export.data.formats.parts import NAMELESS, Numbered, encode_picture, folder_of, photos_in, read_mask_picture
from blu_export.data.layout import PART_NAMES
from blu_export.data.storage import Storage, join, parent
from blu_export.errors import DatasetError

OBJECTS, CLASSES, BOXES, PHOTOS = "SegmentationObject", "SegmentationClass", "Annotations", "JPEGImages"
VOID, VOID_COLOR = 255, 224 << 16 | 224 << 8 | 192
VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_LISTS = "ImageSets/Segmentation"


def find(source: str, split: str, storage: Storage, whole: bool) -> str | None:
    """The list of a part's photos, or the folder of a part; with ``whole`` the source itself."""
    if storage.is_folder(join(source, OBJECTS)):
        lists = [join(source, f"{_LISTS}/{name}.txt") for name in PART_NAMES[split]]
        return next((path for path in lists if storage.file(path)), source if whole else None)
    return folder_of(source, split, storage, whole, lambda folder, storage: storage.is_folder(join(folder, OBJECTS)))


def entries(found: str, storage: Storage) -> Iterator[tuple[str, int, Any]]:
    """COCO sections of a folder, or of the photos that a list in it names."""
    folder = parent(parent(parent(found))) if found.endswith(".txt") else found
    pictures = {file.name.rpartition(".")[0] for file in storage.files(join(folder, OBJECTS))}
    photos = {name.rpartition(".")[0]: name for name in photos_in(join(folder, PHOTOS), storage)}
    wanted = sorted(photos.keys() | pictures)
    if found.endswith(".txt"):
        wanted = [line.split()[0] for line in storage.read(found).decode("utf-8").splitlines() if line.strip()]
    colors, classes, count = _colors(folder, storage), Numbered(), 0
    for number, stem in enumerate(wanted):
        path = join(folder, f"{PHOTOS}/{photos.get(stem, stem + IMAGE_SUFFIXES[0])}")
        if stem not in pictures:
            yield "images", number, {"id": number, "file_name": path}
            continue
        try:
            objects = read_mask_picture(storage.read(join(folder, f"{OBJECTS}/{stem}.png")))
            masks = _masks(objects)
            names = _class_names(folder, stem, masks, colors, storage)
        except (ValueError, DatasetError, ElementTree.ParseError) as error:
            yield "images", number, f"{stem}: {error}"
            continue
        height, width = objects.shape
        yield "images", number, {"id": number, "file_name": path, "height": height, "width": width}
        for class_name, mask in zip(names, masks, strict=True):
            entry = {"image_id": number, "category_id": classes(class_name), "segmentation": encode_picture(mask)}
            yield "annotations", count, entry
            count += 1
    yield from classes.entries()


def _masks(objects: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """The objects of a picture, by ascending value."""
    return [objects == value for value in np.unique(objects).tolist() if value not in (0, VOID, VOID_COLOR)]


def _class_names(
    folder: str, stem: str, masks: list[NDArray[np.bool_]], colors: dict[int, str], storage: Storage
) -> list[str]:
    """The class of each mask."""
    picture = join(folder, f"{CLASSES}/{stem}.png")
    named = join(folder, f"{BOXES}/{stem}.xml")
    if storage.file(named):
        text = storage.read(named)
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise ValueError("its XML defines entities")
        names = [each.findtext("name", "").strip() for each in ElementTree.fromstring(text).iter("object")]
        if len(names) == len(masks):
            return [name or NAMELESS for name in names]
    if not storage.file(picture):
        return [NAMELESS] * len(masks)
    values = read_mask_picture(storage.read(picture))
    found = []
    for mask in masks:
        inside, counts = np.unique(values[mask], return_counts=True)
        found.append(colors.get(int(inside[counts.argmax()]), NAMELESS))
    return found


def _colors(folder: str, storage: Storage) -> dict[int, str]:
    """Class names by palette index and by color."""
    names = dict(enumerate(VOC_NAMES))
    colors = {_palette(index): name for index, name in names.items()}
    path = join(folder, "labelmap.txt")
    if storage.file(path):  # name:r,g,b:parts:actions
        lines = [line for line in storage.read(path).decode("utf-8").splitlines() if line[:1] not in ("#", "")]
        labels = {}
        for line in lines:
            name, color = line.split(":")[:2]
            red, green, blue = (int(value) for value in color.split(","))
            labels[red << 16 | green << 8 | blue] = name
        order = [name for name in labels.values()]
        # A palette holds VOC's colors in its order; labels may have others, which RGB pictures hold.
        by_index = {index: labels[_palette(index)] for index in range(256) if _palette(index) in labels}
        return {**(by_index or dict(enumerate(order))), **labels}
    return names | colors


def _palette(index: int) -> int:
    """VOC's color of an index: its bits, the lowest first, spread over the highest bits of red, green and blue."""
    red = green = blue = 0
    for place in range(8):
        red |= (index >> 0 & 1) << (7 - place)
        green |= (index >> 1 & 1) << (7 - place)
        blue |= (index >> 2 & 1) << (7 - place)
        index >>= 3
    return red << 16 | green << 8 | blue
