"""Large photos in tiles: each tile goes through the network by itself, and what several tiles saw becomes one again.

Small things on a large photo vanish when it is scaled down to the canvas; in a tile they are as large as they can be.
The whole photo goes through as well, for what is larger than a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blu_export.boxes import ScoredBoxes, iou
from blu_export.detections import Detections
from blu_export.errors import UsageError
from blu_export.rle import crop_mask

Window = tuple[int, int, int, int]
"""(y1, x1, y2, x2), pixels of the photo."""

SAME = 0.5
"""IoU of two masks, where both windows see, from which they are of one thing."""
INSIDE = 0.7
"""Share of a cut-off piece that lies in a whole instance of its class, from which it is a part of that."""


PIECE = -1
"""In place of a window: an instance that the edges of tiles cut wherever it was seen."""


@dataclass(frozen=True)
class Tiling:
    """How photos are cut into tiles."""

    side: int
    """Of a tile, pixels of the photo."""
    overlap: float = 0.2
    """Share of a tile that its neighbor sees too, 0 up to 0.9. What is smaller than that lies whole in one of them."""

    def __post_init__(self) -> None:
        if self.side < 32:
            raise UsageError(
                f"Tiles of {self.side} pixels are too small.", "Use 32 or more; the canvas's side is usual."
            )
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"An overlap of {self.overlap} is not between 0 and 0.9.")

    def windows(self, image_size: tuple[int, int]) -> list[Window]:
        """The whole photo, then its tiles; only the photo where it is not larger than a tile."""
        height, width = image_size
        whole = (0, 0, height, width)
        tiles = [
            (top, left, min(top + self.side, height), min(left + self.side, width))
            for top in self._starts(height)
            for left in self._starts(width)
        ]
        return [whole] if tiles == [whole] else [whole, *tiles]

    def count(self, image_size: tuple[int, int]) -> int:
        """How many windows there are, without making them."""
        height, width = image_size
        tiles = len(self._starts(height)) * len(self._starts(width))
        return 1 if max(height, width) <= self.side else 1 + tiles

    def _starts(self, length: int) -> list[int]:
        """Where tiles begin along a side: as few as have the overlap, evenly spread."""
        if length <= self.side:
            return [0]
        count = int(np.ceil((length - self.side) / (self.side * (1 - self.overlap)))) + 1
        starts: list[int] = np.rint(np.linspace(0, length - self.side, count)).astype(int).tolist()
        return starts


def affordable(windows: Sequence[Window], parts: Sequence[ScoredBoxes], most: int, work: int) -> list[NDArray[np.int_]]:
    """What of each window is merged where time is short: the best by score, in their order.

    Args:
        windows: as Tiling.windows has them.
        parts: boxes in each, in pixels of the window.
        most: instances of all windows together.
        work: pixels that ``merge_tiles`` may compare. It compares instances of a class whose boxes overlap, where both
            lie and where both of their windows see; one that would need more than is left is skipped.
    """
    seen_in = np.concatenate([np.full(len(part.scores), number) for number, part in enumerate(parts)]).astype(int)
    within = np.concatenate([np.arange(len(part.scores)) for part in parts]).astype(int)
    sides = np.array(windows, np.int64).reshape(-1, 4)
    offsets = sides[seen_in][:, [0, 1, 0, 1]]
    rois = np.concatenate([part.rois for part in parts]).astype(np.int64) + offsets
    class_ids = np.concatenate([part.class_ids for part in parts])
    chosen: list[int] = []
    for index in np.argsort(-np.concatenate([part.scores for part in parts]), kind="stable").tolist():
        others = np.array(chosen, int)
        others = others[class_ids[others] == class_ids[index]]
        overlap = _area(_inner(rois[others], rois[index]))
        others, overlap = others[overlap > 0], overlap[overlap > 0]
        around = _outer(rois[others], rois[index])
        both = _area(_inner(_inner(around, sides[seen_in[others]]), sides[seen_in[index]]))
        cost = _area(rois[index]) + overlap.sum() + both[seen_in[others] != seen_in[index]].sum()
        if cost <= work:
            work -= int(cost)
            chosen.append(index)
        if len(chosen) == most:
            break
    kept = np.sort(np.array(chosen, int))
    return [within[kept[seen_in[kept] == number]] for number in range(len(parts))]


def _inner(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Intersections of boxes int64 [N, 4]; sides in the wrong order where there is none."""
    return np.concatenate([np.maximum(a, b)[..., :2], np.minimum(a, b)[..., 2:]], axis=-1)


def _outer(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest boxes around two, int64 [N, 4]."""
    return np.concatenate([np.minimum(a, b)[..., :2], np.maximum(a, b)[..., 2:]], axis=-1)


def _area(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    areas: NDArray[np.int64] = np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1)
    return areas


def merge_tiles(windows: Sequence[Window], parts: Sequence[Detections], image_size: tuple[int, int]) -> Detections:
    """What was found in windows of a photo, as Detections of the photo: each thing once, best score first.

    Two instances of a class are the same where, in the part of the photo that both of their windows see, their masks
    agree. Of one thing's instances the best that no edge of its tile cuts is taken; where all are cut, their union.
    Cut-off pieces that lie inside of a whole instance of their class are dropped.

    Args:
        windows: as Tiling.windows has them.
        parts: what was found in each, in pixels of the window.
        image_size: (height, width) of the photo.
    """
    placed = [_place(part, window, image_size) for window, part in zip(windows, parts, strict=True)]
    together = Detections.merge(placed)
    source = np.concatenate([np.full(len(part), number) for number, part in enumerate(placed)]).astype(int)
    order = np.argsort(-np.concatenate([part.scores for part in placed]), kind="stable")
    seen_in = source[order]
    cut = np.array(
        [
            _is_cut(roi, windows[number], image_size)
            for roi, number in zip(together.rois.tolist(), seen_in, strict=True)
        ],
        bool,
    )
    merged = [_one_of(together, group, cut, seen_in) for group in _groups(together, seen_in, windows)]
    if not merged:
        return together
    scores = np.concatenate([instance.scores for instance, _ in merged])
    origin = np.array([window for _, window in merged])[np.argsort(-scores, kind="stable")]
    return _without_doubles(Detections.merge([instance for instance, _ in merged]), origin)


def _place(found: Detections, window: Window, image_size: tuple[int, int]) -> Detections:
    y1, x1, _, _ = window
    return replace(found, rois=found.rois + np.array([y1, x1, y1, x1], np.int32), image_size=image_size)


def _is_cut(roi: list[int], window: Window, image_size: tuple[int, int]) -> bool:
    """Whether a box touches an edge of its window that is not one of the photo's."""
    edges = zip(roi, window, (0, 0, *image_size), strict=True)
    return any(side == edge != end for side, edge, end in edges)


def _groups(found: Detections, seen_in: NDArray[np.int_], windows: Sequence[Window]) -> list[list[int]]:
    """Indices of instances that are of one thing; of each window at most one is in a group."""
    pairs = sorted(_same(found, seen_in, windows), reverse=True)
    group = {index: [index] for index in range(len(found))}
    for _, first, second in pairs:
        one, other = group[first], group[second]
        if one is other or set(seen_in[one]) & set(seen_in[other]):
            continue
        one += other
        for index in other:
            group[index] = one
    return [members for index, members in group.items() if members[0] == index]


def _same(found: Detections, seen_in: NDArray[np.int_], windows: Sequence[Window]) -> Iterator[tuple[float, int, int]]:
    """(IoU, index, index) of pairs from two windows whose masks agree where both windows see."""
    possible = np.triu(iou(found.rois, found.rois) > 0, 1)
    possible &= (found.class_ids[:, None] == found.class_ids) & (seen_in[:, None] != seen_in)
    for first, second in np.argwhere(possible).tolist():
        both = _intersection(windows[seen_in[first]], windows[seen_in[second]])
        both = both and _intersection(both, _around(found.rois[[first, second]]))  # both masks are empty elsewhere
        if both is None:
            continue
        one, other = (_in_window(found, index, both) for index in (first, second))
        shared = np.count_nonzero(one & other)
        agreement = float(shared) / max(1, int(np.count_nonzero(one | other)))
        if agreement >= SAME:
            yield agreement, first, second


def _around(rois: NDArray[np.int32]) -> Window:
    """The smallest window with all of some boxes."""
    (y1, x1), (y2, x2) = rois[:, :2].min(axis=0).tolist(), rois[:, 2:].max(axis=0).tolist()
    return y1, x1, y2, x2


def _intersection(a: Window, b: Window) -> Window | None:
    window = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return window if window[0] < window[2] and window[1] < window[3] else None


def _in_window(found: Detections, index: int, window: Window) -> NDArray[np.bool_]:
    """An instance's mask as far as a window sees it: bool of the window's size."""
    y1, x1, y2, x2 = window
    mask = np.zeros((y2 - y1, x2 - x1), np.bool_)
    overlap = _intersection(window, tuple(found.rois[index].tolist()))
    if overlap is not None:
        top, left, bottom, right = overlap
        own_y, own_x = found.rois[index, :2].tolist()
        crop = crop_mask(found.crops[index], [top - own_y, left - own_x, bottom - own_y, right - own_x])
        mask[top - y1 : bottom - y1, left - x1 : right - x1] = crop
    return mask


def _one_of(
    found: Detections, group: list[int], cut: NDArray[np.bool_], seen_in: NDArray[np.int_]
) -> tuple[Detections, int]:
    """The instance that stands for a group, and the window that saw it; PIECE where it was cut off wherever seen."""
    members = sorted(group)  # best score first
    uncut = [index for index in members if not cut[index]]
    if uncut:
        # A tile's mask is finer than the whole photo's, which is window 0.
        chosen = next((index for index in uncut if seen_in[index]), uncut[0])
        return found[[chosen]], int(seen_in[chosen])
    y1, x1, y2, x2 = _around(found.rois[members])
    union = np.zeros((y2 - y1, x2 - x1), np.bool_)
    for index in members:
        union |= _in_window(found, index, (y1, x1, y2, x2))
    return replace(found[[members[0]]], rois=np.array([[y1, x1, y2, x2]]), crops=(union,)), PIECE


def _without_doubles(found: Detections, origin: NDArray[np.int_]) -> Detections:
    """Without cut-off pieces of what was found whole, and without what another window's better instance covers.

    ``origin`` is the window of each instance, PIECE where tiles' edges cut it wherever it was seen. Two of one window
    stay: the model itself holds them apart.
    """
    keep = np.ones(len(found), bool)
    areas = found.areas
    near = (iou(found.rois, found.rois) > 0) & (found.class_ids[:, None] == found.class_ids)
    for index in range(len(found)):
        window: Window = tuple(found.rois[index].tolist())
        for other in np.flatnonzero(near[index] & keep).tolist():
            if other == index:
                continue
            both = _intersection(window, tuple(found.rois[other].tolist()))
            assert both is not None  # of boxes that are near
            shared = int(np.count_nonzero(_in_window(found, index, both) & _in_window(found, other, both)))
            inside = origin[index] == PIECE != origin[other] and shared >= INSIDE * areas[index]
            covered = shared >= SAME * (areas[index] + areas[other] - shared)
            if inside or (covered and other < index and origin[index] != origin[other]):
                keep[index] = False
                break
    return found[keep]
