"""DeepFashion2 in its own layout: one JSON file beside each photo, 191,000 of them (Ge et al. 2019).

The files are read once, by all cores, into an index in the user's cache; a later start reads that.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import signal
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blu_export.cache import cache_folder
from blu_export.data.dataset import Annotation, Dataset, Record, decode_photo
from blu_export.data.options import ReadOptions
from blu_export.data.problems import Problem, summarize
from blu_export.data.segmentation import check_outline, normalize
from blu_export.data.storage import File, Storage, join, open_storage
from blu_export.errors import BluError, DatasetError
from blu_export.files import atomic_write

CLASS_NAMES = (
    "BG",
    "short sleeve top",
    "long sleeve top",
    "short sleeve outwear",
    "long sleeve outwear",
    "vest",
    "sling",
    "shorts",
    "trousers",
    "skirt",
    "short sleeve dress",
    "long sleeve dress",
    "vest dress",
    "sling dress",
)
"""By category id."""
FOLDERS = {"train": ("train",), "val": ("validation", "val")}
"""Parts of the data set, and what their folders are called."""
ANNOTATIONS = "annos"
IMAGES = ("image", "images")

FORMAT = 2
"""Of the index; one of another format is rebuilt."""
PART = 256
"""Files that a process reads at a time."""
FEW = 4 * PART
"""So many files are not worth starting processes for."""
HEAD_BYTES = 4096
"""Enough of a photo to know its size, as a rule."""
Problems = list[tuple[str, str, str]]
"""(kind, file, detail): what ``Problem`` holds, as an index can keep it."""
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Passes items on and shows how far they have come: (items, total, unit)."""
Arrays = dict[str, NDArray[Any]]
"""The annotations of some photos, flat.

``photo`` int64 [P] numbers, ``size`` int32 [P, 2] (height, width), ``items`` int32 [P] per photo;
``category`` uint8 [I], ``box`` float32 [I, 4] (y1, x1, y2, x2), ``polygons`` int32 [I] per item;
``values`` int32 [Q] per polygon; ``points`` float32 [V] (x, y, x, y, …); ``problems`` text [R, 3].
"""

log = logging.getLogger(__name__)


def no_progress(items: Iterable[Any], total: int, unit: str) -> Iterable[Any]:
    """Pass items on and show nothing."""
    return items


def load_deepfashion2(
    folder: str | os.PathLike[str],
    *,
    limit: int | None = None,
    cached: bool | None = None,
    progress: Progress = no_progress,
    storage: Storage | None = None,
    options: ReadOptions | None = None,
) -> Dataset:
    """Read one part of DeepFashion2, by its index where there is one.

    Args:
        folder: path or URL of the folder that holds ``annos`` and ``image``.
        limit: number of photos to take, from the first on; None: all. Without an index that can be used, only their
            files are read and no index is made, unless ``cached`` is False.
        cached: None: use the index if ``annos`` still lists the same files, sizes and dates (or
            ETags) as when it was made; True: use it without looking; False: read all files again.
        progress: shows how far reading has come.
        storage: reads it; by default what the path or URL asks for.
        options: how to read it; its ``limit`` stands where ``limit`` is None.

    Raises:
        DatasetError: the folder is missing, or all of its files are broken; or some, and the options are strict.
    """
    source, options = os.fspath(folder), options or ReadOptions()
    limit = options.limit if limit is None else limit
    storage = storage or open_storage(source)
    images = next((name for name in IMAGES if storage.is_folder(join(source, name))), IMAGES[0])
    index = index_path(source)
    arrays = _load_index(index) if index and cached is not False else None
    if arrays is None or not cached:
        files = [file for file in storage.files(join(source, ANNOTATIONS)) if _is_annotation(file.name)]
        if not files:
            raise DatasetError(f"There are no annotations in {join(source, ANNOTATIONS)}.", "Check the path.")
        key = _fingerprint(files)
        if arrays is None or str(arrays["key"]) != key:
            wanted = files if cached is False else files[:limit]
            arrays = read_annotations(source, [file.name for file in wanted], storage, progress, images)
            if index and len(wanted) == len(files):
                arrays["key"] = np.array(key)
                _save_index(index, arrays)
    problems = tuple(Problem(*values) for values in arrays["problems"].tolist())
    if problems and (options.strict or not len(arrays["photo"])):
        raise DatasetError(
            f"{len(problems)} entries of {source} are broken: {'; '.join(summarize(problems))}.",
            "Repair or remove these files." if not options.strict else "Repair them, or leave out --strict.",
        )
    records = _records(arrays, join(source, images))
    dataset = Dataset(
        CLASS_NAMES,
        records,
        name=source,
        read=storage.fetch,
        exif=options.exif,
        problems=problems,
        decoding=options.decoding,
    )
    return dataset.limited(limit)


def part_folder(source: str, split: str, storage: Storage) -> str | None:
    """The folder of one part, also where it was unpacked into one of its own name; None: there is none."""
    for name in FOLDERS[split]:
        for folder in (join(source, name), join(source, f"{name}/{name}")):
            if storage.is_folder(join(folder, ANNOTATIONS)):
                return folder
    return None


def _is_annotation(name: str) -> bool:
    """Whether it is a file of annotations, and not what macOS leaves beside each file (``._000001.json``)."""
    return name.endswith(".json") and not name.startswith("._")


def index_path(source: str) -> Path | None:
    """Where the index of a folder is kept; None where nothing is cached."""
    place = source.rstrip("/") if "://" in source else os.path.realpath(source)
    folder = cache_folder("annotations")
    return folder and folder / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.npz"


def read_annotations(
    source: str, names: Sequence[str], storage: Storage, progress: Progress = no_progress, images: str = IMAGES[0]
) -> Arrays:
    """Read the annotation files ``names`` of a folder, and the sizes of the photos in its folder ``images``."""
    parts = [names[start : start + PART] for start in range(0, len(names), PART)]
    read: list[Arrays] = []

    def count(results: Iterable[Arrays]) -> Iterator[None]:
        for part, arrays in zip(parts, results, strict=True):
            read.append(arrays)
            yield from (None for _ in part)

    if len(names) <= FEW:
        results: Iterable[Arrays] = (_read_part(source, part, images, storage) for part in parts)
        list(progress(count(results), len(names), "files"))
    else:
        # Not forked: TensorFlow and fsspec may have threads here already.
        pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), initializer=_ignore_interrupt)
        try:
            results = pool.map(_read_part, [source] * len(parts), parts, [images] * len(parts))
            list(progress(count(results), len(names), "files"))
        finally:
            pool.shutdown(cancel_futures=True)
    return {name: np.concatenate([arrays[name] for arrays in read]) for name in read[0]}


def parse_annotation(content: bytes) -> tuple[list[Annotation], list[str]]:
    """The items of one annotation file, by number, and a sentence on each that is invalid.

    Polygons of an item overlap (an outline, then its parts); what is meant is their union.

    Raises:
        ValueError: this is not an annotation file of DeepFashion2.
    """
    try:
        items = {key: item for key, item in json.loads(content).items() if re.fullmatch("item[0-9]+", key)}
    except (AttributeError, RecursionError) as error:
        raise ValueError(f"not an annotation of DeepFashion2 ({error!r})") from error
    annotations, broken = [], []
    for key in sorted(items, key=lambda key: int(key[4:])):
        try:
            annotations.append(_annotation(items[key]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            broken.append(f"{key}: {error!r}" if isinstance(error, KeyError) else f"{key}: {error}")
    return annotations, broken


def _annotation(item: dict[str, Any]) -> Annotation:
    category = int(item["category_id"])
    if not 0 < category < len(CLASS_NAMES):
        raise ValueError(f"category {category} is not 1 to {len(CLASS_NAMES) - 1}")
    x1, y1, x2, y2 = map(float, item["bounding_box"])
    return Annotation(category, (y1, x1, y2, x2), normalize(item["segmentation"]))


def _ignore_interrupt() -> None:
    """Ctrl-C is for the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_part(source: str, names: Sequence[str], images: str, storage: Storage | None = None) -> Arrays:
    """Arrays of the files that can be read, and what is wrong with the others."""
    storage = storage or open_storage(source)
    problems: Problems = []

    def read(name: str) -> Record | None:
        stem, photo = name.removesuffix(".json"), join(source, f"{images}/{name.removesuffix('.json')}.jpg")
        file = join(source, f"{ANNOTATIONS}/{name}")
        try:
            if not stem.isdecimal() or f"{int(stem):06}" != stem:
                raise ValueError("its name is not a number of six digits")
            annotations, broken = parse_annotation(storage.read(file))
        except (BluError, ValueError) as error:
            problems.append(("broken record", file, f"{name}: {error.what if isinstance(error, BluError) else error}"))
            return None
        problems.extend(("broken record", file, f"{name}: {reason}") for reason in broken)
        try:
            height, width = _photo_size(photo, storage)
        except BluError as error:
            kind = "broken photo" if storage.file(photo) else "missing photo"
            problems.append((kind, photo, error.what))
            return None
        kept = []
        for number, annotation in enumerate(annotations, start=1):
            try:
                check_outline(annotation.segmentation, height, width)
                kept.append(annotation)
            except ValueError as error:
                problems.append(("broken mask", photo, f"{name}: object {number}: {error}"))
            if not annotation.segmentation:
                problems.append(("no mask", photo, f"{name}: object {number}"))
        return Record(int(stem), photo, height, width, tuple(kept))

    if storage.parallel > 1:
        with ThreadPoolExecutor(storage.parallel) as threads:
            records = list(threads.map(read, names))
    else:
        records = list(map(read, names))
    arrays = _flatten([record for record in records if record is not None])
    return arrays | {"problems": np.array(sorted(problems), np.str_).reshape(-1, 3)}


def _photo_size(path: str, storage: Storage) -> tuple[int, int]:
    """(height, width) of a photo as it is shown, from its first bytes where they suffice."""
    try:
        with Image.open(io.BytesIO(storage.read(path, HEAD_BYTES)), formats=["JPEG"]) as image:
            if "exif" not in image.info:  # which may turn it
                return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass  # a long header, or a damaged file
    height, width, _ = decode_photo(storage.read(path), path).shape
    return height, width


def _flatten(records: Sequence[Record]) -> Arrays:
    annotations = [annotation for record in records for annotation in record.annotations]
    polygons: list[Any] = [polygon for annotation in annotations for polygon in annotation.segmentation]
    return {
        "photo": np.array([record.image_id for record in records], np.int64),
        "size": np.array([(record.height, record.width) for record in records], np.int32).reshape(-1, 2),
        "items": np.array([len(record.annotations) for record in records], np.int32),
        "category": np.array([annotation.category for annotation in annotations], np.uint8),
        "box": np.array([annotation.box for annotation in annotations], np.float32).reshape(-1, 4),
        "polygons": np.array([len(annotation.segmentation) for annotation in annotations], np.int32),
        "values": np.array([len(polygon) for polygon in polygons], np.int32),
        "points": np.fromiter(chain.from_iterable(polygons), np.float32),
    }


def _records(arrays: Arrays, images: str) -> tuple[Record, ...]:
    """The inverse of ``_flatten``: polygons are views of ``points``."""
    points: Any = arrays["points"]
    polygons = [points[start:end] for start, end in _spans(arrays["values"])]
    items = [
        Annotation(category, (y1, x1, y2, x2), polygons[start:end])
        for category, (y1, x1, y2, x2), (start, end) in zip(
            arrays["category"].tolist(), arrays["box"].tolist(), _spans(arrays["polygons"]), strict=True
        )
    ]
    return tuple(
        Record(number, join(images, f"{number:06}.jpg"), height, width, tuple(items[start:end]))
        for number, (height, width), (start, end) in zip(
            arrays["photo"].tolist(), arrays["size"].tolist(), _spans(arrays["items"]), strict=True
        )
    )


def _spans(counts: NDArray[Any]) -> list[tuple[int, int]]:
    """Where runs of these lengths start and end."""
    ends = np.cumsum(counts).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def _fingerprint(files: Iterable[File]) -> str:
    """What was read: names, sizes and dates or ETags of all files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\t{file.size}\t{file.version}\n".encode())
    return digest.hexdigest()


def _save_index(path: Path, arrays: Arrays) -> None:
    try:
        values: dict[str, Any] = arrays | {"format": np.array(FORMAT)}
        with atomic_write(path) as temporary:
            np.savez(temporary, **values)
    except OSError as error:
        log.warning("The index %s cannot be written (%s): the next start reads all files again.", path, error)


def _load_index(path: Path) -> Arrays | None:
    """The index, if there is one of this format that is whole (zip files carry checksums)."""
    try:
        # Opened here: np.load leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return dict(file) if file["format"] == FORMAT else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("The index %s is damaged (%s): all files are read again.", path, error)
        return None
