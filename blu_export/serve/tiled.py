"""Photos that are looked at in tiles: windows through the batcher, a group at a time, and what they see merged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.errors import BluError, UsageError
from blu_export.image import Molded, mold
from blu_export.image.results import unmold_boxes
from blu_export.serve.batching import Batcher, RawResult
from blu_export.serve.errors import BadRequestError, of_image_error
from blu_export.spec import ModelSpec
from blu_export.tiles import Tiling, Window, affordable, merge_tiles

T = TypeVar("T")

MAX_WINDOWS = 32
"""Of a photo, itself included; never more than the server has places for."""
MAX_TILE = 65_535
"""Pixels of a tile's side."""
MAX_INSTANCES = 300
"""Of all windows together, the best by score, that are merged."""
MAX_MERGE_WORK = 500_000_000
"""Pixels of masks that are compared while a photo's instances are merged: about a second. 40 things as large as their
12-megapixel photo are within it."""


@dataclass(frozen=True)
class Tiles:
    """How a photo was looked at; part of the answer."""

    side: int
    overlap: float
    windows: int
    """That went through the network, the whole photo included."""
    dropped: int
    """Instances that were not merged, because they were too many."""


@dataclass(frozen=True)
class WindowRun:
    """What the network made of one window."""

    molded: Molded
    """Without the canvas itself, of which only the size is kept: there are many."""
    raw: RawResult


class InFinisher(Protocol):
    """Calls a function in one of the service's threads."""

    def __call__(self, function: Callable[[], T]) -> Awaitable[T]:
        """Its value."""


def tiling_of(tile: int | None, overlap: float | None) -> Tiling | None:
    """What a request asks for; None where it asks for no tiles.

    Raises:
        BadRequestError: it makes no sense.
    """
    if tile is None:
        if overlap is not None:
            raise BadRequestError("There is an overlap, but no tile.", "Add the side of tiles: tile=1024.")
        return None
    try:
        return Tiling(tile) if overlap is None else Tiling(tile, overlap)
    except UsageError as error:
        raise BadRequestError(error.what, error.fix) from error


def windows_of(photo: NDArray[np.uint8], tiling: Tiling, model: Batcher) -> list[Window]:
    """The windows of a photo uint8 [H, W, C].

    Raises:
        BadRequestError: they are more than a request may have, or take longer.
    """
    size = photo.shape[0], photo.shape[1]
    count, most = tiling.count(size), min(MAX_WINDOWS, model.settings.queue)
    if count > most:
        raise BadRequestError(
            f"A photo of {size[1]}x{size[0]} in tiles of {tiling.side} with an overlap of {tiling.overlap:g} is "
            f"{count} windows, and this server takes at most {most}.",
            "Ask for larger tiles, or use blu infer --tile, which has no such limit.",
        )
    seconds = count * model.load.per_photo
    if count > 1 and seconds > model.settings.timeout:
        raise BadRequestError(
            f"{count} windows take about {seconds:.0f} s, and a request has {model.settings.timeout:g} s.",
            "Ask for larger tiles, or use blu infer --tile.",
        )
    return tiling.windows(size)


async def run_windows(
    model: Batcher, photo: NDArray[np.uint8], windows: Sequence[Window], group: int, in_finisher: InFinisher
) -> list[WindowRun]:
    """What the network makes of each window; ``group`` of them wait for it at a time, so that others get their turn.

    Raises:
        RequestError: one of them fails.
    """
    runs: list[WindowRun] = []
    for start in range(0, len(windows), group):
        some = windows[start : start + group]

        def on_canvas(some: Sequence[Window] = some) -> list[Molded]:
            pieces = [np.ascontiguousarray(photo[y1:y2, x1:x2]) for y1, x1, y2, x2 in some]
            return [mold(piece, model.info.spec) for piece in pieces]

        try:
            molded = await in_finisher(on_canvas)
        except BluError as error:
            raise of_image_error(error) from error
        tasks = [asyncio.create_task(model.run(each.canvas, each.window)) for each in molded]
        try:
            raws = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one has failed, or the caller gave up
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        runs += [
            WindowRun(replace(each, canvas=np.broadcast_to(np.uint8(0), each.canvas.shape)), raw)
            for each, raw in zip(molded, raws, strict=True)
        ]
    return runs


def merge(
    runs: Sequence[WindowRun], windows: Sequence[Window], image_size: tuple[int, int], spec: ModelSpec
) -> tuple[Detections, int]:
    """What is on the photo, each thing once, and how many instances were too many to be merged."""
    small = [unmold_boxes(run.raw.detections, run.raw.masks, run.molded, spec) for run in runs]
    kept = affordable(windows, small, MAX_INSTANCES, MAX_MERGE_WORK)
    parts = [
        each[index].full_size(run.molded.image_size, spec) for each, index, run in zip(small, kept, runs, strict=True)
    ]
    dropped = sum(len(each.scores) for each in small) - sum(map(len, kept))
    return merge_tiles(windows, parts, image_size), dropped
