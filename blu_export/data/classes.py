"""Classes of two sets, or of a set and a model, matched by name; and whether there is anything to learn of each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from blu_export.data.dataset import Dataset
from blu_export.data.problems import Problem
from blu_export.errors import DatasetError

log = logging.getLogger(__name__)


def match_names(wanted: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """The index in ``known`` of each wanted name: exactly, else without case and surrounding spaces; None: not there.

    A name that only fits two of them without case is not matched.
    """
    exact = {name: index for index, name in enumerate(known)}
    loose: dict[str, int | None] = {}
    for index, name in enumerate(known):
        key = _loosely(name)
        loose[key] = None if key in loose else index
    return [exact[name] if name in exact else loose.get(_loosely(name)) for name in wanted]


def differing_names(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """Pairs ``a = b`` of names that ``match_names`` matches though they are not written alike."""
    pairs = zip(wanted, match_names(wanted, known), strict=True)
    return [f"{name!r} = {known[index]!r}" for name, index in pairs if index is not None and known[index] != name]


def match_classes(dataset: Dataset, class_names: tuple[str, ...]) -> Dataset:
    """The data set with other class names in their order: the training set's for the validation set.

    It may lack some of them, and have them in another order and with other ids.

    Raises:
        DatasetError: it has objects of a class that is not among them.
    """
    if dataset.class_names == class_names:
        return dataset
    found = match_names(dataset.class_names[1:], class_names[1:])
    new = [0, *(0 if index is None else index + 1 for index in found)]
    shown = Counter(annotation.category for record in dataset.records for annotation in record.annotations)
    if missing := [dataset.class_names[index] for index, count in shown.items() if count and not new[index]]:
        raise DatasetError(
            f"{dataset.name} has other classes ({', '.join(missing)}) than the training set "
            f"({', '.join(class_names[1:])}).",
            "Give sets with the same categories.",
        )
    if len({index for index in new if index}) < sum(map(bool, new)):
        raise DatasetError(
            f"Classes of {dataset.name} cannot be told apart without case: {', '.join(dataset.class_names[1:])}.",
            "Write them as in the training set.",
        )
    if pairs := differing_names(dataset.class_names[1:], class_names[1:]):
        log.info("classes of %s are matched without case and surrounding spaces: %s", dataset.name, ", ".join(pairs))
    old_ids = dataset.category_ids or tuple(range(len(dataset.class_names)))
    ids = {new[index]: key for index, key in enumerate(old_ids)}
    records = tuple(
        replace(record, annotations=tuple(replace(each, category=new[each.category]) for each in record.annotations))
        for record in dataset.records
    )
    # A class that the source lacks has no id there; its name cannot be another's id.
    category_ids = tuple(ids.get(index, name) for index, name in enumerate(class_names))
    return replace(dataset, class_names=class_names, records=records, category_ids=(0, *category_ids[1:]))


def find_untrainable(dataset: Dataset) -> list[Problem]:
    """What cannot be learned from it: all of it, or a class, because no object has a mask and is not a crowd."""
    objects: Counter[int] = Counter()
    without, crowds = 0, 0
    for record in dataset.records:
        for annotation in record.annotations:
            crowds += annotation.iscrowd
            without += not annotation.iscrowd and not len(annotation.segmentation)
            if not annotation.iscrowd and len(annotation.segmentation):
                objects[annotation.category] += 1
    if not objects:
        why = f"{len(dataset)} photos, {crowds} crowds, {without} objects with only a box"
        return [Problem("nothing to train on", dataset.name, why)]
    names = dataset.class_names
    return [
        Problem("class without objects", dataset.name, names[index])
        for index in range(1, len(names))
        if not objects[index]
    ]


def require_trainable(dataset: Dataset, keep_empty_classes: bool = False) -> None:
    """Raise where there is nothing to learn; warn of classes of which there is nothing, unless they are meant.

    Raises:
        DatasetError: no photo is there, or no object has a mask and is not a crowd.
    """
    missing = [problem for problem in dataset.problems if problem.kind == "missing photo"]
    if missing and len(missing) >= len(dataset.records):
        raise DatasetError(
            f"None of the photos of {dataset.name} is there: {missing[0].detail}.", "Name their folder with --images."
        )
    for problem in find_untrainable(dataset):
        if problem.kind == "nothing to train on":
            raise DatasetError(
                f"There is nothing to train on in {dataset.name}: no object has a mask and is not a crowd "
                f"({problem.detail}).",
                "Export polygons or masks, with iscrowd 0; 'blu data check' lists what there is.",
            )
        if keep_empty_classes:
            log.info("there is nothing to learn of the class %s: it has no object with a mask", problem.detail)
        else:
            log.warning(
                "WARNING: there is nothing to learn of the class %s: it has no object with a mask that is not a crowd. "
                "Annotate some, or say that it is meant: --keep-empty-classes",
                problem.detail,
            )


def _loosely(name: str) -> str:
    return " ".join(name.casefold().split())
