"""What a model finds on the photos of a data set, under the data set's ids."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from blu_export.data.classes import differing_names, match_names
from blu_export.data.dataset import Dataset
from blu_export.detector import Detector
from blu_export.errors import BluError, UsageError
from blu_export.evaluate.results import Rows
from blu_export.stream import map_ahead

READERS = 4
"""Photos read at a time: enough for a bucket's latency."""

log = logging.getLogger(__name__)


def detect(
    detector: Detector,
    dataset: Dataset,
    batch: int = 1,
    on_error: Callable[[int, BluError], None] | None = None,
) -> Iterator[Rows]:
    """The results of each photo of a data set, in order, under the data set's ids.

    Args:
        detector: finds the objects.
        dataset: the photos.
        batch: photos that go through the network at once.
        on_error: called with the index of a photo that cannot be read or looked at, and why; it has no results then.

    Raises:
        UsageError: the model lacks a class of the data set.
        BluError: a photo cannot be read, and there is no ``on_error``.
    """
    shown = {annotation.category for record in dataset.records for annotation in record.annotations}
    class_ids = map_classes(detector.spec.class_names, dataset.class_names, shown)
    indices: deque[int] = deque()
    failed: dict[int, BluError] = {}

    def load(index: int) -> NDArray[np.uint8] | None:
        try:
            return dataset.load_image(index)
        except BluError as error:
            if on_error is None:
                raise
            failed[index] = error
            return None

    def images(pool: ThreadPoolExecutor) -> Iterator[NDArray[np.uint8]]:
        for index, image in enumerate(map_ahead(pool, load, range(len(dataset)), 2 * READERS)):
            if image is not None:
                indices.append(index)
                yield image

    with ThreadPoolExecutor(READERS, "blu-read") as pool:
        for photo in detector.stream(images(pool), batch=batch):
            index = indices.popleft()
            try:
                found = photo.result()
            except BluError as error:
                if on_error is None:
                    raise
                failed[index] = error
                continue
            ids = class_ids[found.class_ids]
            known = replace(found, class_ids=np.maximum(ids, 1), class_names=dataset.class_names)[ids > 0]
            yield known.to_coco(dataset.records[index].image_id)
    for index in sorted(failed):
        assert on_error is not None
        on_error(index, failed[index])


def map_classes(
    model: Sequence[str], dataset: Sequence[str], shown: Collection[int] | None = None
) -> NDArray[np.int32]:
    """The data set's class id for each of the model's, by name; 0 for one that the data set lacks.

    Names are the same but for case and surrounding spaces. Weights of other programs have no names; theirs are
    ``class_1``, ``class_2``, …, which stand for the data set's classes in order.

    Args:
        model: the model's class names.
        dataset: the data set's.
        shown: the data set's classes that have objects; None: all.

    Raises:
        UsageError: the model lacks a class of the data set that has objects.
    """
    nameless = all(name == f"class_{index}" for index, name in enumerate(model) if index)
    if nameless and len(model) == len(dataset):
        return np.arange(len(model), dtype=np.int32)
    found = match_names(dataset[1:], model[1:])
    wanted = [index for index in range(1, len(dataset)) if shown is None or index in shown]
    if missing := [dataset[index] for index in wanted if found[index - 1] is None]:
        raise UsageError(
            f"The data set has classes that the model does not: {', '.join(missing)}. The model's are "
            f"{', '.join(model[1:])}.",
            "Evaluate on data annotated with the model's class names.",
        )
    if pairs := differing_names(dataset[1:], model[1:]):
        log.info("classes of data and model are matched without case and surrounding spaces: %s", ", ".join(pairs))
    ids = np.zeros(len(model), np.int32)
    for index, place in enumerate(found, start=1):
        if place is not None:
            ids[place + 1] = index
    return ids
