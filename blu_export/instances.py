"""Instances: what was found on one photo, with each mask kept inside its box."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blu_export.boxes import suppress
from blu_export.errors import UsageError
from blu_export.rle import Rle, crop_mask, encode_rle

ROUNDING = 1e-3
"""A score may pass 1 by this: a softmax in half precision does."""
SHOWN = 3
"""Instances that a printed Detections names."""


@dataclass(frozen=True, eq=False)
class Detection:
    """One instance."""

    roi: NDArray[np.int32]
    """int32 [4], (y1, x1, y2, x2), pixels; the far edges lie outside."""
    class_id: int
    class_name: str
    score: float
    crop: NDArray[np.bool_]
    """bool [h, w], the mask inside the box."""
    track_id: int | None = None
    """The same for one thing on all frames of a video; None where it is not tracked."""

    def __repr__(self) -> str:
        """``Detection(coat 0.981 at (120, 80, 700, 420))``."""
        return f"Detection({self.class_name} {self.score:.3f} at {tuple(self.roi.tolist())})"


class Row(NamedTuple):
    """One instance as JSON can hold it."""

    box: list[int]
    """y1, x1, y2, x2."""
    class_id: int
    score: float
    area: int
    """Pixels of the mask."""
    mask: Rle
    """Of the whole photo."""
    track: int | None
    """None where the instances are not tracked."""


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances found on one photo, best score first.

    A mask is stored inside its box: a hundred masks of a 12-megapixel photo take a few megabytes
    instead of 1.2 GB. ``masks`` makes the full stack when asked for.

    Raises:
        UsageError: the values contradict each other; the message names the instance.
    """

    rois: NDArray[np.int32]
    """int32 [N, 4], (y1, x1, y2, x2), pixels of the photo; the far edges lie outside the box."""
    class_ids: NDArray[np.int32]
    """int32 [N]; 1 is the first class, 0 the background, which is never found."""
    scores: NDArray[np.float32]
    """float32 [N], 0..1."""
    crops: tuple[NDArray[np.bool_], ...]
    """N masks, bool [y2 - y1, x2 - x1] each."""
    image_size: tuple[int, int]
    """(height, width) of the photo."""
    class_names: tuple[str, ...]
    """By class id."""
    track_ids: NDArray[np.int32] | None = None
    """int32 [N], from 1: one thing keeps its number on all frames; -1 where it has none yet. None: not tracked."""
    photo: Callable[[], NDArray[np.uint8]] | None = field(default=None, repr=False)
    """Gives the photo's pixels, uint8 [H, W, 3] RGB; None where the photo is not known."""
    photo_name: str = ""
    """Of the photo's file, where it has one."""

    def __post_init__(self) -> None:
        height, width = (int(side) for side in self.image_size)
        set_field = object.__setattr__  # the dataclass is frozen
        set_field(self, "image_size", (height, width))
        set_field(self, "class_names", tuple(self.class_names))
        set_field(self, "crops", tuple(self.crops))
        set_field(self, "rois", np.asarray(self.rois, np.int32).reshape(-1, 4))
        set_field(self, "class_ids", np.asarray(self.class_ids, np.int32))
        set_field(self, "scores", np.asarray(self.scores, np.float32))
        if self.class_ids.shape != (len(self.rois),) or self.scores.shape != (len(self.rois),):
            shapes = f"class_ids {self.class_ids.shape} and scores {self.scores.shape}"
            raise UsageError(f"Detections of {len(self.rois)} boxes cannot have {shapes}.")
        if self.track_ids is not None:
            set_field(self, "track_ids", np.asarray(self.track_ids, np.int32))
            if self.track_ids.shape != (len(self.rois),):
                raise UsageError(f"Detections of {len(self.rois)} boxes cannot have track_ids {self.track_ids.shape}.")
        if len(self.crops) != len(self.rois):
            raise UsageError(f"Detections of {len(self.rois)} boxes cannot have {len(self.crops)} masks.")
        y1, x1, y2, x2 = self.rois.T
        self._require((y1 >= 0) & (y1 < y2) & (y2 <= height), "rois", f"is not a box in {height} rows", self.rois)
        self._require((x1 >= 0) & (x1 < x2) & (x2 <= width), "rois", f"is not a box in {width} columns", self.rois)
        known = (self.class_ids > 0) & (self.class_ids < len(self.class_names))
        self._require(known, "class_ids", f"is not a class of {len(self.class_names) - 1}", self.class_ids)
        self._require(
            (self.scores >= 0) & (self.scores <= 1 + ROUNDING), "scores", "is not between 0 and 1", self.scores
        )
        sides = zip((y2 - y1).tolist(), (x2 - x1).tolist(), strict=True)
        for index, (crop, shape) in enumerate(zip(self.crops, sides, strict=True)):
            if crop.dtype != np.bool_ or crop.shape != shape:
                raise UsageError(f"crops[{index}] is {crop.dtype} {crop.shape}; its box makes it bool {shape}.")

    def _require(self, good: NDArray[np.bool_], name: str, rule: str, values: NDArray[Any]) -> None:
        if not good.all():
            index = int(np.argmin(good))
            raise UsageError(f"{name}[{index}] = {values[index].tolist()} {rule}.")

    @classmethod
    def empty(cls, image_size: tuple[int, int], class_names: Sequence[str]) -> Self:
        """Nothing found on a photo of (height, width)."""
        boxes, ids, scores = np.zeros((0, 4), np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
        return cls(boxes, ids, scores, (), image_size, tuple(class_names))

    def __repr__(self) -> str:
        """``Detections(8 on 832×550: shoes 0.996, shoes 0.991, top 0.953, …)``; the photo's size is width×height."""
        height, width = self.image_size
        pairs = zip(self.class_ids[:SHOWN].tolist(), self.scores[:SHOWN].tolist(), strict=True)
        names = [f"{self.class_names[class_id]} {score:.3f}" for class_id, score in pairs]
        names += ["…"] if len(self) > SHOWN else []
        return f"Detections({len(self)} on {width}×{height}{': ' if names else ''}{', '.join(names)})"

    def __len__(self) -> int:
        return len(self.rois)

    def __iter__(self) -> Iterator[Detection]:
        tracks = [None] * len(self) if self.track_ids is None else self.track_ids.tolist()
        for roi, class_id, score, crop, track in zip(
            self.rois, self.class_ids.tolist(), self.scores.tolist(), self.crops, tracks, strict=True
        ):
            known = None if track is None or track < 1 else track
            yield Detection(roi, class_id, self.class_names[class_id], score, crop, known)

    def __getitem__(self, index: int | slice | ArrayLike) -> Self:
        """Some of the instances: by number, slice, list of numbers or bool [N]; always of this class.

        Raises:
            IndexError: there is no such instance, or the bool array has another length.
        """
        chosen = np.atleast_1d(np.arange(len(self))[_as_index(index)])
        return replace(
            self,
            rois=self.rois[chosen],
            class_ids=self.class_ids[chosen],
            scores=self.scores[chosen],
            crops=tuple(self.crops[i] for i in chosen),
            track_ids=None if self.track_ids is None else self.track_ids[chosen],
        )

    def with_tracks(self, track_ids: ArrayLike) -> Self:
        """The same instances with their tracks, int [N].

        Raises:
            UsageError: there are more or fewer.
        """
        return replace(self, track_ids=np.asarray(track_ids, np.int32))

    def filter(self, min_score: float = 0.0, classes: Iterable[str | int] | None = None) -> Self:
        """The instances of at least ``min_score`` and, where given, of some classes, by name or id.

        Raises:
            UsageError: a class is unknown.
        """
        wanted = self.scores >= min_score
        if classes is not None:
            wanted &= np.isin(self.class_ids, [self._class_id(each) for each in classes])
        return self[wanted]

    def without_overlaps(self, threshold: float) -> Self:
        """The instances whose box has no IoU above ``threshold`` with a better one's, of any class."""
        return self[sorted(suppress(self.rois, self.scores, threshold))]

    def _class_id(self, given: str | int) -> int:
        if isinstance(given, int) and 0 < given < len(self.class_names):
            return given
        if given in self.class_names[1:]:
            return self.class_names.index(str(given), 1)
        raise UsageError(f"There is no class '{given}'.", f"Classes are {', '.join(self.class_names[1:])}.")

    @property
    def areas(self) -> NDArray[np.int64]:
        """int64 [N]: pixels of each mask."""
        return np.array([np.count_nonzero(crop) for crop in self.crops], np.int64)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """The full masks, bool [H, W, N]: made anew each time; one byte for each pixel and instance."""
        # Each mask in one piece of memory: pasting into the last axis would touch every cache line of the stack.
        stack = np.zeros((len(self), *self.image_size), np.bool_)
        for mask, (y1, x1, y2, x2), crop in zip(stack, self.rois, self.crops, strict=True):
            mask[y1:y2, x1:x2] = crop
        return np.moveaxis(stack, 0, -1)

    def to_dict(self) -> dict[str, NDArray[Any]]:
        """The original's result: rois int32, class_ids int32, scores float32, masks bool [H, W, N]."""
        return {"rois": self.rois, "class_ids": self.class_ids, "scores": self.scores, "masks": self.masks}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], class_names: Sequence[str]) -> Self:
        """The inverse of ``to_dict``; mask pixels outside their box are lost, as they have no place here.

        Raises:
            UsageError: the values are not such a dict.
        """
        try:
            masks, rois = np.asarray(values["masks"], np.bool_), np.asarray(values["rois"])
            height, width, _ = masks.shape
            crops = [crop_mask(mask, roi) for mask, roi in zip(np.moveaxis(masks, -1, 0), rois, strict=True)]
            return cls(rois, values["class_ids"], values["scores"], tuple(crops), (height, width), tuple(class_names))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"This is not a dict of detections: {error}.") from error

    def rows(self) -> Iterator[Row]:
        """Each instance as plain values, masks as COCO RLE, for files."""
        tracks = [None] * len(self) if self.track_ids is None else self.track_ids.tolist()
        columns = (self.rois, self.class_ids, self.scores, self.areas)
        for values in zip(*(column.tolist() for column in columns), self.rles(), tracks, strict=True):
            yield Row(*values)

    def rles(self) -> list[Rle]:
        """Masks as COCO RLE of the whole photo, made of the crops."""
        return [encode_rle(crop, roi, self.image_size) for crop, roi in zip(self.crops, self.rois, strict=True)]

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        """What several say of one photo as one, best score first; nothing is left out.

        Raises:
            UsageError: they are of photos of several sizes or have other classes, or there are none.
        """
        parts = list(parts)
        if len({(part.image_size, part.class_names) for part in parts}) != 1:
            raise UsageError("Only detections of one photo, with the same classes, can be merged.")
        tracks = [part.track_ids for part in parts if part.track_ids is not None]
        together = replace(
            parts[0],
            rois=np.concatenate([part.rois for part in parts]),
            class_ids=np.concatenate([part.class_ids for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            crops=tuple(crop for part in parts for crop in part.crops),
            track_ids=np.concatenate(tracks) if len(tracks) == len(parts) else None,
        )
        return together[np.argsort(-together.scores, kind="stable")]


def _as_index(index: Any) -> Any:
    """A list becomes an array; an empty one selects nothing (NumPy would treat it as floats)."""
    if isinstance(index, int | slice | np.integer):
        return index
    array = np.asarray(index)
    return array if array.size or array.dtype == np.bool_ else array.astype(np.intp)
