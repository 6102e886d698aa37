"""What is in a data set, and what is wrong with it: ``blu data check``.

Errors cost a photo: it cannot be read or is not of the annotated size. Warnings cost an object or are repaired: masks
that are absent, empty or cannot be decoded, boxes outside their photo, boxes that their mask does not fill.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blu_export.boxes import iou
from blu_export.data.augment import mask_box
from blu_export.data.classes import find_untrainable
from blu_export.data.dataset import Dataset, orient_photo
from blu_export.data.heads import is_turn_unknown, read_head
from blu_export.data.problems import ERRORS, Problem
from blu_export.detections import Detections
from blu_export.draw import contact_sheet, overlay
from blu_export.errors import BluError, DatasetError

SMALL, LARGE = 32**2, 96**2
"""COCO's bounds, in pixels of the mask, between small, medium and large objects."""
BOX_TOLERANCE = 2.0
"""Pixels by which a box may pass the photo's edge: annotation tools round."""
BOX_IOU = 0.5
"""A box that overlaps its mask's own box by less was meant otherwise: sides mixed up, another object's."""
SHEET_PHOTOS = 16
SHEET_TILE = 360


@dataclass(frozen=True)
class Finding:
    """What was found on one photo."""

    classes: tuple[int, ...]
    """Class of each object with a mask that is not a crowd."""
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
    notes: tuple[str, ...] = ()
    """What reading the annotations supposed."""

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
        """Problems that cost a photo."""
        return sum(problem.kind in ERRORS for problem in self.problems)

    @property
    def counts(self) -> dict[str, int]:
        """Problems by kind."""
        return dict(Counter(problem.kind for problem in self.problems))

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
            "problem_counts": self.counts,
            "problems": [asdict(problem) for problem in self.problems],
            "notes": list(self.notes),
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
    report = Report(dataset.name, dataset.class_names, notes=dataset.notes)
    for finding in progress(_in_order(lambda index: look_at(dataset, index), len(dataset), parallel)):
        report.add(finding)
    # What reading the annotations noted, but for photos that were looked for once more just now.
    kinds = {(problem.kind, problem.uri) for problem in report.problems}
    noted = [problem for problem in dataset.problems if (problem.kind, problem.uri) not in kinds]
    report.problems = [*find_untrainable(dataset), *noted, *report.problems]
    return report


def look_at(dataset: Dataset, index: int) -> Finding:
    """Read photo ``index`` and its masks."""
    record, problems = dataset.records[index], []

    def note(kind: str, detail: str) -> None:
        problems.append(Problem(kind, record.uri, detail))

    try:
        content = dataset.read(record.uri)
        image, unturned = orient_photo(content, record, dataset.exif, dataset.decoding)
        head = read_head(content)
        shape = image.shape[:2]
        if shape != (record.height, record.width):
            swapped = ": width and height are swapped" * (shape == (record.width, record.height))
            note("wrong size", f"{shape[1]}x{shape[0]}, annotated {record.width}x{record.height}{swapped}")
        elif unturned:
            note("unturned", f"EXIF orientation {head.orientation if head else '?'}")
        elif head is not None and dataset.exif == "auto" and is_turn_unknown(head):
            note("turn unknown", f"EXIF orientation {head.orientation}")
    except DatasetError as error:
        kind = "missing photo" if isinstance(error.__cause__, FileNotFoundError) else "broken photo"
        note(kind, error.what)
    except BluError as error:
        note("broken photo", error.what)
    except OSError as error:
        note("missing photo" if isinstance(error, FileNotFoundError) else "broken photo", error.strerror or str(error))
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
            if len(annotation.segmentation):  # one without is noted by its reader
                note("empty mask", what)
        elif (overlap := float(iou([filled], [annotation.box])[0, 0])) < BOX_IOU:
            note("box and mask differ", f"{what}: IoU {overlap:.2f}")
    areas = masks.sum(axis=(1, 2)).tolist()
    objects = [
        (annotation.category, area)
        for annotation, area in zip(record.annotations, areas, strict=True)
        if area and not annotation.iscrowd
    ]
    crowds = sum(annotation.iscrowd for annotation in record.annotations)
    classes, areas = zip(*objects, strict=True) if objects else ((), ())
    return Finding(classes, areas, crowds, (record.height, record.width), tuple(problems))


def sheet(dataset: Dataset, count: int = SHEET_PHOTOS) -> NDArray[np.uint8] | None:
    """A picture of ``count`` annotated photos that show as many classes as they can; None without any.

    Photos that cannot be read are skipped.
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
