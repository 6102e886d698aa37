"""What is in a data set, and what is wrong with it: ``blu data check``.

Errors are what training stops at: photos that cannot be read or are not of the annotated size, masks
that cannot be decoded. Warnings are what it leaves out or repairs: empty masks, boxes outside their
photo, boxes that their mask does not fill.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blu_export.boxes import iou
from blu_export.data.augment import mask_box
from blu_export.data.dataset import Dataset, decode_photo
from blu_export.detections import Detections
from blu_export.draw import contact_sheet, overlay
from blu_export.errors import BluError

SMALL, LARGE = 32**2, 96**2
"""COCO's bounds, in pixels of the mask, between small, medium and large objects."""
BOX_TOLERANCE = 2.0
"""Pixels by which a box may pass the photo's edge: annotation tools round."""
BOX_IOU = 0.5
"""A box that overlaps its mask's own box by less was meant otherwise: sides mixed up, another object's."""
SHEET_PHOTOS = 16
SHEET_TILE = 360

ERRORS = {
    "broken photo": "the file is missing or damaged",
    "wrong size": "the photo is not of the annotated size",
    "broken mask": "the polygons or run lengths cannot be decoded",
}
"""Kinds of problems that training stops at."""
WARNINGS = {
    "empty mask": "no pixel is inside: the object is left out",
    "box outside": "the box reaches beyond the photo",
    "box and mask differ": "the mask's own box is used",
}
"""Kinds that it leaves out or repairs."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with one photo or object."""

    kind: str
    """A key of ERRORS or WARNINGS."""
    uri: str
    """The photo."""
    detail: str


@dataclass(frozen=True)
class Finding:
    """What was found on one photo."""

    classes: tuple[int, ...]
    """Class of each object that is no crowd."""
    areas: tuple[int, ...]
    """Pixels of each of them."""
    crowds: int
    size: tuple[int, int]
    problems: tuple[Problem, ...]


@dataclass
class Report:
    """What is known of a data set; ``add`` takes in a photo."""

    name: str
    class_names: tuple[str, ...]
    photos: int = 0
    without_objects: int = 0
    crowds: int = 0
    objects: Counter[int] = field(default_factory=Counter)
    """By class."""
    shown_on: Counter[int] = field(default_factory=Counter)
    """Photos by class."""
    areas: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Pixels of the masks, by class."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Photos by (height, width)."""
    problems: list[Problem] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Count a photo."""
        self.photos += 1
        self.without_objects += not finding.classes
        self.crowds += finding.crowds
        self.objects.update(finding.classes)
        self.shown_on.update(set(finding.classes))
        for category, area in zip(finding.classes, finding.areas, strict=True):
            self.areas[category].append(area)
        self.sizes[finding.size] += 1
        self.problems += finding.problems

    @property
    def errors(self) -> int:
        """Problems that training stops at."""
        return sum(problem.kind in ERRORS for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        everything = [area for areas in self.areas.values() for area in areas]
        heights, widths = (np.array([size[side] for size in self.sizes.elements()] or [0]) for side in (0, 1))
        return {
            "name": self.name,
            "photos": self.photos,
            "photos_without_objects": self.without_objects,
            "objects": self.objects.total(),
            "crowds": self.crowds,
            "photo_height": _range(heights),
            "photo_width": _range(widths),
            "object_sizes": _size_counts(everything),
            "classes": [
                {
                    "name": name,
                    "objects": self.objects[index],
                    "photos": self.shown_on[index],
                    "median_area": float(np.median(self.areas[index])) if self.objects[index] else None,
                    **_size_counts(self.areas[index] if self.objects[index] else []),
                }
                for index, name in enumerate(self.class_names)
                if index
            ],
            "errors": self.errors,
            "warnings": len(self.problems) - self.errors,
            "problems": [vars(problem) for problem in self.problems],
        }


def check(
    dataset: Dataset, parallel: int = 2, progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items
) -> Report:
    """Read every photo and every mask of a data set.

    Args:
        dataset: the photos.
        parallel: photos read at a time.
        progress: passes items on and shows how far they have come.
    """
    report = Report(dataset.name, dataset.class_names)
    for finding in progress(_in_order(lambda index: look_at(dataset, index), len(dataset), parallel)):
        report.add(finding)
    return report


def look_at(dataset: Dataset, index: int) -> Finding:
    """Read photo ``index`` and its masks."""
    record, problems = dataset.records[index], []

    def note(kind: str, detail: str) -> None:
        problems.append(Problem(kind, record.uri, detail))

    try:
        shape = decode_photo(dataset.read(record.uri), record.uri).shape[:2]
        if shape != (record.height, record.width):
            note("wrong size", f"{shape[1]}x{shape[0]}, annotated {record.width}x{record.height}")
    except BluError as error:
        note("broken photo", error.what)
    except OSError as error:
        note("broken photo", error.strerror or str(error))
    try:
        masks = dataset.load_masks(index)
    except BluError as error:
        note("broken mask", error.what)
        return Finding((), (), 0, (record.height, record.width), tuple(problems))
    for number, (annotation, mask) in enumerate(zip(record.annotations, masks, strict=True), start=1):
        what = f"object {number}, {dataset.class_names[annotation.category]}"
        y1, x1, y2, x2 = annotation.box
        beyond = max(-y1, -x1, y2 - record.height, x2 - record.width)
        if beyond > BOX_TOLERANCE or y2 < y1 or x2 < x1:
            note("box outside", f"{what}: {x1:g},{y1:g} to {x2:g},{y2:g} on {record.width}x{record.height}")
        filled = mask_box(mask)
        if filled is None:
            note("empty mask", what)
        elif (overlap := float(iou([filled], [annotation.box])[0, 0])) < BOX_IOU:
            note("box and mask differ", f"{what}: IoU {overlap:.2f}")
    single = [not annotation.iscrowd for annotation in record.annotations]
    areas = masks.sum(axis=(1, 2))[single].tolist()
    classes = [annotation.category for annotation in record.annotations if not annotation.iscrowd]
    crowds = len(single) - len(classes)
    return Finding(tuple(classes), tuple(areas), crowds, (record.height, record.width), tuple(problems))


def sheet(dataset: Dataset, count: int = SHEET_PHOTOS) -> NDArray[np.uint8] | None:
    """A picture of ``count`` annotated photos that show as many classes as they can; None without any.

    Photos that cannot be read are passed over.
    """
    images, titles = [], []
    for index in choose(dataset, count):
        try:
            images.append(_annotated(dataset, index))
        except BluError:
            continue
        titles.append(dataset.records[index].uri.rpartition("/")[2])
    return contact_sheet(images, titles, tile=SHEET_TILE) if images else None


def choose(dataset: Dataset, count: int) -> list[int]:
    """Photos to show: in turn for each class, the rarest first, one that is not chosen yet."""
    of_class: defaultdict[int, list[int]] = defaultdict(list)
    for index, record in enumerate(dataset.records):
        for category in {annotation.category for annotation in record.annotations}:
            of_class[category].append(index)
    # Spread over the data set, which may be sorted.
    queues = [
        iter([indices[i] for i in np.random.default_rng(0).permutation(len(indices))])
        for indices in sorted(of_class.values(), key=len)
    ]
    chosen: dict[int, None] = {}
    while queues and len(chosen) < count:
        for queue in list(queues):
            fresh = next((index for index in queue if index not in chosen), None)
            if fresh is None:
                queues.remove(queue)
            elif len(chosen) < count:
                chosen[fresh] = None
    return sorted(chosen)


def _annotated(dataset: Dataset, index: int) -> NDArray[np.uint8]:
    """A photo at the size of a tile, with its objects drawn."""
    image, masks, record = dataset.load_image(index), dataset.load_masks(index), dataset.records[index]
    shrink = min(1.0, SHEET_TILE / max(image.shape[:2]))
    width, height = (max(1, round(side * shrink)) for side in image.shape[1::-1])
    image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    rois, crops, classes = [], [], []
    for annotation, mask in zip(record.annotations, masks, strict=True):
        small = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) > 127
        box = mask_box(small)
        if box is not None:
            rois.append(box)
            crops.append(small[box[0] : box[2], box[1] : box[3]])
            classes.append(annotation.category)
    found = Detections(
        np.array(rois, np.int32),
        np.array(classes, np.int32),
        np.ones(len(rois), np.float32),
        tuple(crops),
        (height, width),
        dataset.class_names,
    )
    return overlay(image, found, scores=False)


def _in_order(work: Callable[[int], Finding], count: int, parallel: int) -> Iterator[Finding]:
    """``work(0)``, ``work(1)``, …, some at a time; never far ahead of who takes them."""
    with ThreadPoolExecutor(parallel) as pool:
        numbers = iter(range(count))
        running = [pool.submit(work, number) for number in islice(numbers, 2 * parallel)]
        while running:
            yield running.pop(0).result()
            running += [pool.submit(work, number) for number in islice(numbers, 1)]


def _size_counts(areas: list[int]) -> dict[str, int]:
    small, large = (np.array(areas, np.int64) < SMALL), (np.array(areas, np.int64) > LARGE)
    return {"small": int(small.sum()), "medium": int((~small & ~large).sum()), "large": int(large.sum())}


def _range(values: NDArray[Any]) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
