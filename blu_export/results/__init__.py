"""Detections as files: one module per format, one table of them, for the commands and for ``found.save`` alike.

base ── a Result, and formats of a photo or of a set
├─ json, npz, polygons, labelme, voc, yolo ── a file per photo
├─ coco, csv ── a file for all
└─ overlay, mask, crop, cutout ── pictures
folder ── files under names that do not collide      outline ── masks as polygons
load, convert ── back from files, and on to other libraries
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blu_export.errors import UsageError
from blu_export.files import atomic_write
from blu_export.results.base import Format, PhotoFormat, Result, SetFormat
from blu_export.results.coco import CocoFormat
from blu_export.results.crop import CropFormat
from blu_export.results.csv import CsvFormat
from blu_export.results.cutout import CutoutFormat
from blu_export.results.json import JsonFormat
from blu_export.results.labelme import LabelmeFormat
from blu_export.results.mask import MaskFormat
from blu_export.results.npz import NpzFormat
from blu_export.results.overlay import OverlayFormat
from blu_export.results.polygons import PolygonsFormat
from blu_export.results.voc import VocFormat
from blu_export.results.yolo import YoloFormat

FORMATS: dict[str, type[Format]] = {
    "overlay": OverlayFormat,
    "json": JsonFormat,
    "coco": CocoFormat,
    "npz": NpzFormat,
    "csv": CsvFormat,
    "mask": MaskFormat,
    "crop": CropFormat,
    "cutout": CutoutFormat,
    "polygons": PolygonsFormat,
    "yolo": YoloFormat,
    "labelme": LabelmeFormat,
    "voc": VocFormat,
}
"""By the name that ``--format`` takes."""

_BY_SUFFIX: dict[str, Callable[[], Format]] = {
    ".jpg": OverlayFormat,
    ".jpeg": OverlayFormat,
    ".png": lambda: OverlayFormat("PNG"),
    ".json": JsonFormat,
    ".coco.json": CocoFormat,
    ".labelme.json": LabelmeFormat,
    ".npz": NpzFormat,
    ".csv": CsvFormat,
    ".mask.png": MaskFormat,
    ".crop.jpg": CropFormat,
    ".cutout.png": CutoutFormat,
    ".geojson": PolygonsFormat,
    ".txt": YoloFormat,
    ".xml": VocFormat,
}
SUFFIXES = tuple(_BY_SUFFIX)
"""How names of files end that ``save`` writes."""


def save(result: Result, path: str | os.PathLike[str], name: str | None = None) -> list[Path]:
    """Write one photo's detections.

    Args:
        path: of the file. Where the format has several files, further ones stand beside it: their names begin with
            what comes before the suffix.
        name: of the format; None: by the suffix of the path, the longest that fits.

    Returns:
        The files, the first at ``path`` unless the format has a file for each instance alone.

    Raises:
        UsageError: the suffix or the name is unknown, or the format needs the photo and no one has it.
        OSError: it cannot be written.
    """
    target = Path(path)
    ending = max((each for each in SUFFIXES if target.name.lower().endswith(each)), key=len, default=target.suffix)
    form = _named(name)() if name is not None else _of(target, ending)
    if isinstance(form, SetFormat):
        contents = form.start() + form.add(result) + form.end(result.found.class_names)
        files = {target: contents.encode()}
    else:
        assert isinstance(form, PhotoFormat)
        stem = target.name[: len(target.name) - len(ending)]
        files = {
            target if suffix == form.suffix else target.with_name(stem + suffix): content
            for suffix, content in form.files(result)
        }
    for file, content in files.items():
        with atomic_write(file) as temporary:
            temporary.write_bytes(content)
    return list(files)


def _named(name: str) -> type[Format]:
    if name not in FORMATS:
        raise UsageError(f"There is no format '{name}'.", f"Formats are {', '.join(FORMATS)}.")
    return FORMATS[name]


def _of(path: Path, ending: str) -> Format:
    if ending not in _BY_SUFFIX:
        raise UsageError(
            f"{path.name} does not say by its suffix which format it should have.",
            f"Suffixes are {', '.join(SUFFIXES)}.",
        )
    return _BY_SUFFIX[ending]()
