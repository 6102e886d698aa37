"""Photos under way to their detections: order, look-ahead, and groups whose canvases stack."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.errors import BluError
from blu_export.image import Molded

Source = Any
"""What image.decode takes: a path, encoded bytes, a PIL image, or uint8 [H, W, 3] RGB."""
OVERTAKEN = 4
"""Batches of later photos that may be run before one that waits for others of its canvas."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(repr=False)
class Photo:
    """One item of a stream: what was asked for, and what came of it."""

    source: Source
    image: NDArray[np.uint8] | None = None
    """uint8 [H, W, 3] RGB, as decoded; None where decoding failed."""
    detections: Detections | None = None
    error: BluError | None = None
    """Why there are no detections."""
    molded: Molded | None = None
    raw: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def __repr__(self) -> str:
        """``Photo(street.jpg: Detections(…))``; pixels and encoded bytes are named by their type."""
        name = self.source if isinstance(self.source, str | os.PathLike) else type(self.source).__name__
        return f"Photo({name}: {self.error or self.detections})"

    def result(self) -> Detections:
        """The detections; raises the error where there is one."""
        if self.error is not None:
            raise self.error
        assert self.detections is not None
        return self.detections


def map_ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``map`` in a pool: in order, lazy, and never more than ``ahead`` items under way."""
    items = iter(items)
    waiting: deque[Future[R]] = deque(pool.submit(function, item) for item in islice(items, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in islice(items, ahead - len(waiting)))


def group_by_canvas(photos: Iterable[Photo], size: int) -> Iterator[dict[int, Photo]]:
    """Photos whose canvases stack, by their place in ``photos``; at most ``size`` of them.

    A group goes when it is full, or when its first photo has seen OVERTAKEN × size others come. A photo that failed
    has no canvas and goes by itself.
    """
    waiting: dict[tuple[int, ...], dict[int, Photo]] = {}  # the group that was begun first comes first
    for number, photo in enumerate(photos):
        if photo.molded is None:
            yield {number: photo}
        else:
            shape = photo.molded.canvas.shape
            waiting.setdefault(shape, {})[number] = photo
            if len(waiting[shape]) == size:
                yield waiting.pop(shape)
        while waiting and number - next(iter(next(iter(waiting.values())))) >= OVERTAKEN * size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
