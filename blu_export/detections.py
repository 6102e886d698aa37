"""Detections: what was found on one photo, with each mask kept inside its box."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blu_export.errors import UsageError
from blu_export.files import atomic_write
from blu_export.rle import Rle, crop_mask, decode_rle, encode_rle

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

    def __repr__(self) -> str:
        """``Detection(coat 0.981 at (120, 80, 700, 420))``."""
        return f"Detection({self.class_name} {self.score:.3f} at {tuple(self.roi.tolist())})"


@dataclass(frozen=True, eq=False)
class Detections:
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
        if len(self.crops) != len(self.rois):
            raise UsageError(f"Detections of {len(self.rois)} boxes cannot have {len(self.crops)} masks.")
        y1, x1, y2, x2 = self.rois.T
        self._require((y1 >= 0) & (y1 < y2) & (y2 <= height), "rois", f"is no box in {height} rows", self.rois)
        self._require((x1 >= 0) & (x1 < x2) & (x2 <= width), "rois", f"is no box in {width} columns", self.rois)
        known = (self.class_ids > 0) & (self.class_ids < len(self.class_names))
        self._require(known, "class_ids", f"is no class of {len(self.class_names) - 1}", self.class_ids)
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
    def empty(cls, image_size: tuple[int, int], class_names: Sequence[str]) -> Detections:
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
        for roi, class_id, score, crop in zip(self.rois, self.class_ids.tolist(), self.scores, self.crops, strict=True):
            yield Detection(roi, class_id, self.class_names[class_id], float(score), crop)

    def __getitem__(self, index: int | slice | ArrayLike) -> Detections:
        """Some of the instances: by number, slice, list of numbers or bool [N]; always Detections.

        Raises:
            IndexError: there is no such instance, or the bool array has another length.
        """
        chosen = np.atleast_1d(np.arange(len(self))[_as_index(index)])
        return Detections(
            self.rois[chosen],
            self.class_ids[chosen],
            self.scores[chosen],
            tuple(self.crops[i] for i in chosen),
            self.image_size,
            self.class_names,
        )

    def filter(self, min_score: float = 0.0, classes: Iterable[str | int] | None = None) -> Detections:
        """The instances of at least ``min_score`` and, where given, of some classes, by name or id.

        Raises:
            UsageError: a class is unknown.
        """
        wanted = self.scores >= min_score
        if classes is not None:
            wanted &= np.isin(self.class_ids, [self._class_id(each) for each in classes])
        return self[wanted]

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
    def from_dict(cls, values: Mapping[str, Any], class_names: Sequence[str]) -> Detections:
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

    def rles(self) -> list[Rle]:
        """Masks as COCO RLE of the whole photo, made of the crops."""
        return [encode_rle(crop, roi, self.image_size) for crop, roi in zip(self.crops, self.rois, strict=True)]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results: image_id, category_id, bbox [x, y, width, height], area, score, segmentation."""
        return [
            {
                "image_id": image_id,
                "category_id": class_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "score": score,
                "segmentation": rle,
            }
            for (y1, x1, y2, x2), class_id, score, area, rle in zip(
                self.rois.tolist(),
                self.class_ids.tolist(),
                self.scores.tolist(),
                self.areas.tolist(),
                self.rles(),
                strict=True,
            )
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON values: ``image_size``, ``class_names`` and one object per instance, its mask as COCO RLE."""
        objects = [
            {
                "class": self.class_names[class_id],
                "class_id": class_id,
                "score": score,
                "box": box,
                "area": area,
                "mask": rle,
            }
            for box, class_id, score, area, rle in zip(
                self.rois.tolist(),
                self.class_ids.tolist(),
                self.scores.tolist(),
                self.areas.tolist(),
                self.rles(),
                strict=True,
            )
        ]
        return {"image_size": list(self.image_size), "class_names": list(self.class_names), "detections": objects}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Detections:
        """The inverse of ``to_json``; other keys are ignored.

        Raises:
            UsageError: the values are not such JSON.
        """
        try:
            height, width = (int(side) for side in values["image_size"])
            objects = list(values["detections"])
            rois = np.array([each["box"] for each in objects], np.int32).reshape(-1, 4)
            return cls(
                rois,
                np.array([each["class_id"] for each in objects], np.int32),
                np.array([each["score"] for each in objects], np.float32),
                tuple(
                    crop_mask(decode_rle(each["mask"], (height, width)), roi)
                    for each, roi in zip(objects, rois, strict=True)
                ),
                (height, width),
                tuple(str(name) for name in values["class_names"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"This is not the JSON of detections: {error!r}.") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file that ``load`` reads; masks are packed bits of the crops."""
        bits = np.concatenate([np.zeros(0, np.bool_), *(crop.ravel() for crop in self.crops)])
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                rois=self.rois,
                class_ids=self.class_ids,
                scores=self.scores,
                mask_bits=np.packbits(bits),
                image_size=np.array(self.image_size),
                class_names=np.array(json.dumps(self.class_names)),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Detections:
        """Read what ``save`` wrote; nothing in the file is executed.

        Raises:
            UsageError: it is not such a file.
            OSError: it cannot be read.
        """
        from zipfile import BadZipFile

        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                rois, bits = file["rois"], np.unpackbits(file["mask_bits"]).astype(np.bool_)
                shapes = (rois[:, 2:] - rois[:, :2]).astype(np.int64)
                ends = shapes.prod(axis=1).cumsum()
                pieces = np.split(bits, ends)[:-1]
                return cls(
                    rois,
                    file["class_ids"],
                    file["scores"],
                    tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)),
                    tuple(file["image_size"].tolist()),
                    tuple(json.loads(str(file["class_names"]))),
                )
        except (KeyError, TypeError, ValueError, IndexError, EOFError, BadZipFile) as error:
            raise UsageError(f"{os.fspath(path)} holds no saved detections: {error!r}.") from error


def _as_index(index: Any) -> Any:
    """A list becomes an array; an empty one selects nothing (NumPy would take it for floats)."""
    if isinstance(index, int | slice | np.integer):
        return index
    array = np.asarray(index)
    return array if array.size or array.dtype == np.bool_ else array.astype(np.intp)
