"""What can be wrong with annotated photos, by kind, and what becomes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

ERRORS = {
    "missing photo": "the file is not there",
    "broken photo": "the file is damaged",
    "wrong size": "the photo is not of the annotated size",
}
"""Kinds that cost a whole photo."""
LEFT_OUT = {
    "unknown photo": "the annotation names a photo that the file does not list",
    "unknown category": "the annotation names a category that the file does not list",
    "background object": "the annotation is of the background",
    "broken record": "a value cannot be what it should be",
    "broken mask": "the polygons or run lengths cannot be decoded",
    "no mask": "the object has only a box",
    "empty mask": "no pixel is inside",
    "listed twice": "the same entry again",
}
"""Kinds that cost one entry: the object is left out. An object without a mask still counts where boxes are judged."""
REPAIRED = {
    "box outside": "the box reaches beyond the photo",
    "box and mask differ": "the mask's own box is used",
    "unturned": "annotated on the photo as it is stored: its EXIF orientation is ignored",
    "turn unknown": "EXIF turns the photo and its size does not tell whether that was annotated: taken as turned",
}
"""Kinds that are repaired or need a look."""
USELESS = {
    "nothing to train on": "there is no object with a mask",
    "class without objects": "no object of the class has a mask",
}
"""Kinds of a whole data set."""
WARNINGS = USELESS | LEFT_OUT | REPAIRED


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a photo, an entry or an object."""

    kind: str
    """A key of ERRORS or WARNINGS."""
    uri: str
    """The photo, or the file with the entry."""
    detail: str


def summarize(problems: Iterable[Problem]) -> list[str]:
    """A line for each kind: how many, what it means, and the first of them."""
    listed = list(problems)
    first = {problem.kind: problem for problem in reversed(listed)}
    counts = Counter(problem.kind for problem in listed)
    meanings = ERRORS | WARNINGS
    return [f"{kind} ×{count} ({meanings[kind]}), first: {first[kind].detail}" for kind, count in counts.items()]
