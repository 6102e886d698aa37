"""One COCO file as it is read: entries taken in one by one, then ids resolved, classes numbered, objects checked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blu_export.data.dataset import Annotation, Dataset, Record, Segmentation
from blu_export.data.finder import PhotoFinder
from blu_export.data.formats.coco_photos import Listed, finish_photos
from blu_export.data.formats.coco_values import (
    fit_outline,
    is_same,
    parse_area,
    parse_box,
    parse_crowd,
    parse_size,
    parse_text,
)
from blu_export.data.ids import Ids, check_id
from blu_export.data.json_text import WHOLE
from blu_export.data.options import ReadOptions
from blu_export.data.problems import Problem
from blu_export.data.segmentation import Box, normalize, polygons_box, rle_box
from blu_export.errors import DatasetError

BACKGROUND = "BG"
BACKGROUND_NAMES = ("bg", "background", "_background_", "__background__", "__ignore__")
"""Categories of these names, in any case, are not objects."""
FORM = "It needs images, annotations and categories as in COCO's instances_val2017.json."


@dataclass(slots=True)
class Object:
    """An entry of ``annotations``, compact."""

    number: int
    photo: Any
    category: Any
    box: Box | None
    segmentation: Segmentation
    iscrowd: bool
    area: float | None
    trouble: str = ""
    """Why the mask cannot be read."""


@dataclass(slots=True)
class Category:
    """An entry of ``categories``."""

    key: Any
    name: str
    objects: int = 0

    @property
    def is_background(self) -> bool:
        """Whether its name says that it is none."""
        return self.name.casefold() in BACKGROUND_NAMES


class Reading:
    """What is known of a file so far."""

    def __init__(self, source: str, options: ReadOptions) -> None:
        self.source, self.options = source, options
        self.categories: Ids[Category] = Ids()
        self.names: dict[str, Category] = {}
        self.photos: Ids[Listed] = Ids()
        self.listed: list[Listed] = []
        self.objects: list[Object] = []
        self.by_id: dict[Any, Object] = {}
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.sections: set[str] = set()

    def take(self, section: str, number: int, entry: Any) -> None:
        """Take in one entry."""
        adders: dict[str, Callable[[int, Any], None]] = {
            "categories": self._category, "images": self._image, "annotations": self._annotation,
        }  # fmt: skip
        if section not in adders:
            return
        if number == WHOLE and not (section == "annotations" and entry is None):
            raise self._foreign(f"{section} is a {type(entry).__name__}, not a list")
        self.sections.add(section)
        if number < 0:
            return
        if not isinstance(entry, dict):
            self._note("broken record", f"{section}[{number}] is {str(entry)[:60]!r}, not an object")
            return
        try:
            adders[section](number, entry)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"{error} is absent" if isinstance(error, KeyError) else error
            self._note("broken record", f"{section}[{number}]: {reason}")

    def _category(self, number: int, entry: dict[str, Any]) -> None:
        key, name = check_id(entry["id"]), parse_text(entry["name"], "name")
        known = self.categories.exact(key)
        if known is None:
            self.categories.add(key, Category(key, name))
        elif known.name != name:
            raise DatasetError(
                f"Two categories of {self.source} have the id {key!r}: {known.name} and {name}.",
                "Give each its own id, also in the annotations.",
            )
        else:
            self._note("listed twice", f"categories[{number}]: {name}")

    def _image(self, number: int, entry: dict[str, Any]) -> None:
        name = entry.get("file_name") or entry.get("path") or entry.get("coco_url")
        if not isinstance(name, str):
            raise ValueError(f"the file_name is {entry.get('file_name')!r}")
        key = check_id(entry["id"])
        known = self.photos.exact(key)
        if known is not None:
            if known.name != name:
                raise DatasetError(
                    f"Two photos of {self.source} have the id {key!r}: {known.name} and {name}.",
                    "Give each photo its own id, also in the annotations.",
                )
            self._note("listed twice", f"images[{number}]: {name}")
            return
        photo = Listed(key, name, parse_size(entry.get("height"), entry.get("width")), len(self.listed))
        self.photos.add(key, photo)
        self.listed.append(photo)

    def _annotation(self, number: int, entry: dict[str, Any]) -> None:
        photo, category = entry["image_id"], entry.get("category_id")
        limit = self.options.limit
        if limit is not None and "images" in self.sections:
            known = self.photos.find(photo)
            if known is not None and known.number >= limit:  # only counted
                self.objects.append(Object(number, photo, category, None, [], False, None))
                return
        trouble, segmentation = "", entry.get("segmentation")
        try:
            segmentation = normalize(segmentation)
        except (ValueError, RecursionError) as error:
            trouble, segmentation = str(error), []
        if not segmentation and not trouble and entry.get("segmentation"):
            trouble = "a polygon has fewer than three points"
        crowd, area = parse_crowd(entry.get("iscrowd")), parse_area(entry.get("area"))
        found = Object(number, photo, category, parse_box(entry.get("bbox")), segmentation, crowd, area, trouble)
        key = entry.get("id")
        if isinstance(key, int | float | str):
            first = self.by_id.setdefault(key, found)
            if first is not found and is_same(first, found):
                self._note("listed twice", f"annotations[{number}] is annotations[{first.number}]")
                return
        self.objects.append(found)

    def finish(self, finder: PhotoFinder) -> Dataset:
        """Resolve ids, find the photos, number the classes."""
        if missing := {"categories", "images"} - self.sections:
            raise self._foreign(f"'{min(missing)}' is absent")
        self.by_id.clear()
        self._count_classes()
        classes = self._number_classes()
        of_photo = self._objects_by_photo(classes)
        limit = self.options.limit
        listed = self.listed if limit is None else self.listed[:limit]
        outlines = [[found.segmentation for found in of_photo[photo.number]] for photo in listed]
        photos, problems, notes = finish_photos(listed, outlines, finder, self.options.exif)
        self.problems += problems
        records = []
        for photo in photos:
            found = of_photo.pop(photo.number, [])
            annotations = (self._finished(each, photo, classes) for each in found)
            kept = tuple(annotation for annotation in annotations if annotation is not None)
            records.append(Record(photo.key, photo.uri, photo.height, photo.width, kept))
        ordered = sorted(classes.values(), key=lambda pair: pair[0])
        return Dataset(
            (BACKGROUND, *(category.name for _, category in ordered)),
            tuple(records),
            self.source,
            finder.storage.fetch,
            category_ids=(0, *(category.key for _, category in ordered)),
            exif=self.options.exif,
            decoding=self.options.decoding,
            problems=tuple(self.problems),
            notes=(*self.notes, *notes),
        )

    def _find_category(self, key: Any) -> Category | None:
        """By id, or by name as some tools write it."""
        found = self.categories.find(key)
        return self.names.get(key) if found is None and isinstance(key, str) else found

    def _count_classes(self) -> None:
        self.names = {category.name: category for category in self.categories.values()}
        for found in self.objects:
            category = self._find_category(found.category)
            if category is not None:
                category.objects += 1

    def _number_classes(self) -> dict[Any, tuple[int, Category]]:
        """By category id: (index from 1, category); without background and, unless they are kept, empty ones."""
        kept: list[Category] = []
        empty: list[Category] = []
        for category in self.categories.values():
            if category.is_background:
                continue
            (kept if category.objects or self.options.keep_empty_classes else empty).append(category)
        if not kept:
            kept, empty = empty, []
        repeated = [name for name, count in Counter(category.name for category in kept).items() if count > 1]
        # Of two categories of one name, one that is empty is not meant.
        kept = [each for each in kept if each.objects or each.name not in repeated]
        if twice := [name for name, count in Counter(category.name for category in kept).items() if count > 1]:
            ids = [repr(category.key) for category in kept if category.name == twice[0]]
            raise DatasetError(
                f"Two categories of {self.source} have the name '{twice[0]}': ids {' and '.join(ids)}.",
                "Give them names of their own, or make them one category.",
            )
        if empty:
            names = ", ".join(category.name for category in empty[:5]) + (", …" if len(empty) > 5 else "")
            self.notes.append(f"classes without objects are left out: {names} (--keep-empty-classes keeps them)")
        if all(isinstance(category.key, int | float) for category in kept):
            kept.sort(key=lambda category: category.key)
        else:
            kept.sort(key=lambda category: (len(str(category.key)), str(category.key)))
        return {category.key: (index, category) for index, category in enumerate(kept, start=1)}

    def _objects_by_photo(self, classes: dict[Any, Any]) -> defaultdict[int, list[Object]]:
        """Objects by their photo's number; those without photo or category are noted."""
        of_photo: defaultdict[int, list[Object]] = defaultdict(list)
        for found in self.objects:
            photo, category = self.photos.find(found.photo), self._find_category(found.category)
            place = f"annotations[{found.number}]"
            if photo is None:
                self._note("unknown photo", f"{place}: images has no id {found.photo!r}")
            elif category is None:
                self._note("unknown category", f"{place}: categories has no id {found.category!r}")
            elif category.is_background:
                self._note("background object", f"{place} is of {category.name}")
            elif category.key in classes:
                of_photo[photo.number].append(found)
        self.objects.clear()
        return of_photo

    def _finished(self, found: Object, photo: Any, classes: dict[Any, Any]) -> Annotation | None:
        category = self._find_category(found.category)
        assert category is not None
        what = f"annotations[{found.number}], {category.name}"
        segmentation: Segmentation = []
        if found.trouble:
            self._note("broken mask", f"{what}: {found.trouble}", photo.uri)
            return None
        try:
            segmentation = fit_outline(found.segmentation, photo.height, photo.width, found.box)
        except ValueError as error:
            self._note("broken mask", f"{what}: {error}", photo.uri)
            return None
        box = found.box
        if not segmentation:
            self._note("no mask", what, photo.uri)
            if box is None:
                return None
        elif box is None:
            y1, x1, y2, x2 = rle_box(segmentation) if isinstance(segmentation, dict) else polygons_box(segmentation)
            box = max(0.0, y1), max(0.0, x1), min(float(photo.height), y2), min(float(photo.width), x2)
        assert box is not None
        return Annotation(classes[category.key][0], box, segmentation, found.iscrowd, found.area)

    def _note(self, kind: str, detail: str, uri: str = "") -> None:
        self.problems.append(Problem(kind, uri or self.source, detail))

    def _foreign(self, reason: str) -> DatasetError:
        return DatasetError(f"{self.source} is not a COCO instances file: {reason}.", FORM)
