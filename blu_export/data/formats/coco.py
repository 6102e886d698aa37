"""COCO annotation files (``instances_*.json``), as COCO itself and as labeling tools write them.

An entry that cannot be meant costs that entry, not the file; what would be ambiguous stops. Readers of other tools'
files hand their content to ``read_content``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from blu_export.data.dataset import Dataset
from blu_export.data.finder import PhotoFinder, usual_folder
from blu_export.data.formats.coco_reading import Reading
from blu_export.data.json_text import decode_text, iterate
from blu_export.data.options import ReadOptions
from blu_export.data.problems import LEFT_OUT, summarize
from blu_export.data.storage import Storage, open_storage
from blu_export.errors import DatasetError

Content = Iterable[tuple[str, int, Any]]
"""(``images``, ``annotations`` or ``categories``; number; entry), in any order; as ``json_text.iterate`` gives them."""


def load_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    storage: Storage | None = None,
    options: ReadOptions | None = None,
    part: str = "",
) -> Dataset:
    """Read a COCO instances file.

    Args:
        annotations: path or URL of the JSON file.
        images: folder or URL of the photos; None: ``options.images``, or where they usually are, or anywhere below
            the file's folder.
        storage: reads it; by default what the path or URL asks for.
        options: how to read it.
        part: which part of a data set it is, to tell photos of one name in several folders apart.

    Raises:
        DatasetError: the file is missing, not COCO or ambiguous: two photos of one id, two categories of one name.
    """
    source, options = os.fspath(annotations), options or ReadOptions()
    storage = storage or open_storage(source)
    found = storage.file(source)
    raw = storage.fetch(source, found.version) if found else storage.read(source)
    finder = make_finder(source, storage, os.fspath(images) if images is not None else options.images, part)
    try:
        text, guessed = decode_text(raw)
        del raw
        return read_content(iterate(text), source, finder, options, guessed)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source} cannot be read as JSON: {error}.", "Give a COCO instances file.") from error


def make_finder(source: str, storage: Storage, images: str | None, part: str) -> PhotoFinder:
    """Finds the photos of an annotation file: in ``images``, or in the usual places."""
    if images is None:
        return PhotoFinder(storage, *usual_folder(source, storage), part)
    photos = storage if ("://" in images) == ("://" in source) else open_storage(images)
    return PhotoFinder(photos, images, images, part)


def read_content(
    content: Content, source: str, finder: PhotoFinder, options: ReadOptions, guessed: str = ""
) -> Dataset:
    """The data set of decoded COCO sections.

    Category ids may have gaps (COCO's have); they are numbered 1, 2, … in ascending order, as the original does.
    Photos keep the file's order, photos without annotations included.

    Args:
        content: the sections.
        source: path or URL, for messages.
        finder: finds the photos.
        options: how to read it.
        guessed: the encoding of the file, where it is not told.

    Raises:
        DatasetError: it is not such a file, or it is ambiguous.
    """
    reading = Reading(source, options)
    if guessed:
        reading.notes.append(f"{source} is not UTF-8: read as {guessed}, which is a guess; look at the class names")
    for section, number, entry in content:
        reading.take(section, number, entry)
    dataset = reading.finish(finder)
    if options.strict and (lost := [problem for problem in dataset.problems if problem.kind in LEFT_OUT]):
        raise DatasetError(
            f"{len(lost)} entries of {source} would be left out: {'; '.join(summarize(lost))}.",
            "Correct them, or leave out --strict.",
        )
    return dataset
