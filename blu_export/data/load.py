"""Opening a data set by its path or URL: which layout it has, and which of its parts is asked for."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace

from blu_export.data.dataset import Dataset
from blu_export.data.formats import deepfashion2
from blu_export.data.formats.coco import load_coco
from blu_export.data.formats.deepfashion2 import Progress, load_deepfashion2, no_progress
from blu_export.data.formats.others import find_other, load_other
from blu_export.data.layout import SPLITS, coco_file, whole_coco_file
from blu_export.data.options import ReadOptions
from blu_export.data.problems import summarize
from blu_export.data.storage import Storage, join, open_storage
from blu_export.errors import DatasetError
from blu_export.rle import Rle, run_lengths

__all__ = ["SPLITS", "has_split", "load_dataset"]

FILE_SUFFIXES = (".json", ".csv", ".xml", ".yaml", ".yml")
"""Of data sets that are named by a file."""

log = logging.getLogger(__name__)


def load_dataset(
    source: str | os.PathLike[str],
    split: str,
    images: str | None = None,
    *,
    limit: int | None = None,
    cached: bool | None = None,
    progress: Progress = no_progress,
    storage: Storage | None = None,
    options: ReadOptions | None = None,
) -> Dataset:
    """Read annotations; photos are read when they are needed.

    What was left out or supposed is logged, a line for each kind, and kept in ``Dataset.problems``.

    Args:
        source: path or URL of a COCO instances file, of a folder that holds one for each part (COCO's own names, and
            those of labeling tools) or one alone, of a folder in the layout of DeepFashion2, or of what another
            tool of ``formats.others`` wrote.
        split: ``train`` or ``val``: which part of a folder. A folder without parts is taken as a whole.
        images: folder or URL of the photos, where it is not the usual one.
        limit: number of photos to take, from the first on; None: all.
        cached: what to do about DeepFashion2's index, see ``load_deepfashion2``.
        progress: shows how far reading many files has come.
        storage: reads it; by default what the path or URL asks for.
        options: how to read it; ``images`` and ``limit`` stand for those in it.

    Raises:
        DatasetError: there is no such data set, or it is broken.
    """
    source, options = os.fspath(source), options or ReadOptions()
    options = replace(options, images=images or options.images, limit=options.limit if limit is None else limit)
    storage = storage or open_storage(source)
    dataset = _load(source, split, cached, progress, storage, options)
    lost = [problem for problem in dataset.problems if problem.kind != "missing photo"]  # a note counts these
    for line in (*dataset.notes, *(f"left out: {line}" for line in summarize(lost))):
        log.info("%s", line)
    return dataset


def _load(
    source: str, split: str, cached: bool | None, progress: Progress, storage: Storage, options: ReadOptions
) -> Dataset:
    if source.lower().endswith(FILE_SUFFIXES):
        if other_tool := find_other(source, split, storage, True):
            return load_other(*other_tool, source, split, storage, options)
        return load_coco(source, storage=storage, options=options, part=split)
    if file := coco_file(source, split, storage):
        return load_coco(file, storage=storage, options=options, part=split)
    if folder := deepfashion2.part_folder(source, split, storage):
        return load_deepfashion2(folder, cached=cached, progress=progress, storage=storage, options=options)
    if other_tool := find_other(source, split, storage, False):
        return load_other(*other_tool, source, split, storage, options)
    other = next((part for part in SPLITS if part != split and has_split(source, part, storage)), None)
    if other is None:
        if file := whole_coco_file(source, storage):
            return load_coco(file, storage=storage, options=options, part=split)
        if storage.is_folder(join(source, deepfashion2.ANNOTATIONS)):
            return load_deepfashion2(source, cached=cached, progress=progress, storage=storage, options=options)
        if storage.is_folder(source) and (other_tool := find_other(source, split, storage, True)):
            return load_other(*other_tool, source, split, storage, options)
    if not (storage.is_folder(source) or storage.file(source)):
        raise DatasetError(f"There is no {source}.", "Check the path.")
    raise DatasetError(
        f"{source} is not a data set with a part '{split}'{f'; it has {other!r}' if other else ''}.",
        f"Give a COCO file, a folder with instances_{split}.json or a file that a labeling tool exported, or one "
        f"with DeepFashion2's {deepfashion2.FOLDERS[split][0]}/{deepfashion2.ANNOTATIONS}.",
    )


def load_cutouts(source: str | os.PathLike[str]) -> dict[str, Rle]:
    """Cut-outs of persons: a JSON object, file name of a photo to the compressed COCO RLE of the person on it.

    Empty masks are left out.

    Raises:
        DatasetError: the file is missing or not such a file.
    """
    source = os.fspath(source)
    try:
        content = json.loads(open_storage(source).read(source))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"The cut-outs {source} cannot be read: {error}.", "Give a JSON file.") from error
    try:
        return {name: mask for name, mask in content.items() if run_lengths(mask, tuple(mask["size"]))[1::2].any()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{source} does not hold cut-outs: {error!r}.",
            'Write {"photo.jpg": {"size": [height, width], "counts": "…"}, …}.',
        ) from error


def has_split(source: str | os.PathLike[str], split: str, storage: Storage | None = None) -> bool:
    """Whether a folder holds that part; a file, or a folder without parts, is not such a folder."""
    source = os.fspath(source)
    if source.lower().endswith((".json", ".csv", ".xml")):
        return False
    storage = storage or open_storage(source)
    return (
        coco_file(source, split, storage) is not None
        or deepfashion2.part_folder(source, split, storage) is not None
        or find_other(source, split, storage, False) is not None
    )
