"""The photos that training reads: decoded, shrunk and cached. Those that cannot be read are left out."""

from __future__ import annotations

import logging
import threading

import cv2
import numpy as np
from numpy.typing import NDArray

from blu_export.data.augment import Photo, mask_box
from blu_export.data.dataset import Dataset, encode_masks
from blu_export.data.problems import LEFT_OUT
from blu_export.errors import BluError, DatasetError
from blu_export.rle import Rle, decode_crop

MAX_UNREADABLE = 0.01
"""Share of unreadable photos above which a data set is not to be trusted."""

log = logging.getLogger(__name__)


class Unreadable:
    """The photos of a data set that could not be read so far. Thread-safe.

    Each is logged once. ``reasons`` has the reason by the photo's path or URL.

    Args:
        dataset: the photos.
        share: of them that may be unreadable.
    """

    def __init__(self, dataset: Dataset, share: float = MAX_UNREADABLE) -> None:
        self._dataset, self._share = dataset, share
        self.reasons: dict[str, str] = {}
        self._indices: set[int] = set()
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(path or URL, reason) of what is not used: entries of the annotations that could not be read, and photos."""
        entries = [(p.uri, f"{p.kind}: {p.detail}") for p in self._dataset.problems if p.kind in LEFT_OUT]
        return [*entries, *self.reasons.items()]

    def add(self, index: int, error: BluError | OSError) -> None:
        """Photo ``index`` cannot be read.

        Raises:
            DatasetError: these are too many by now.
        """
        uri = self._dataset.records[index].uri
        with self._lock:
            if index not in self._indices:
                self._indices.add(index)
                self.reasons[uri] = error.what if isinstance(error, BluError) else str(error)
                log.warning("left out: %s", self.reasons[uri])
            count, total = len(self._indices), len(self._dataset)
        if count > self._share * total:
            raise DatasetError(
                f"{count} of the {total} photos of {self._dataset.name} cannot be read, more than "
                f"{100 * self._share:g} %. {self.reasons[uri]}",
                f"Repair them or remove them from the data set ('blu data check' names all), or allow more: "
                f"--set train.unreadable={min(1.0, 5 * count / total):.2g}",
            ) from error


class PhotoStore:
    """Decoded photos of a data set, cached in memory up to a limit. Thread-safe.

    Photos with a side above ``max_side`` are shrunk to it: no canvas shows more.

    Args:
        dataset: the photos.
        max_side: pixels.
        cache_bytes: memory for decoded photos; beyond it they are decoded each time.
        unreadable: share of the photos that may be unreadable.
    """

    def __init__(self, dataset: Dataset, max_side: int, cache_bytes: int, unreadable: float = MAX_UNREADABLE) -> None:
        self._dataset, self._max_side, self._room = dataset, max_side, cache_bytes
        self.unreadable = Unreadable(dataset, unreadable)
        self._photos: dict[int, Photo] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Photo:
        """Photo ``index``; where it cannot be read, the next one that can.

        Raises:
            DatasetError: too many photos cannot be read.
        """
        for position in range(index, index + len(self)):
            position %= len(self)
            if position in self.unreadable:
                continue
            try:
                return self._read(position)
            except (BluError, OSError) as error:
                self.unreadable.add(position, error)
        raise DatasetError(f"No photo of {self._dataset.name} can be read.", "Run 'blu data check' on it.")

    def _read(self, index: int) -> Photo:
        photo = self._photos.get(index)
        if photo is None:
            photo = load_photo(self._dataset, index, self._max_side)
            with self._lock:
                if index not in self._photos and photo.nbytes <= self._room:
                    self._room -= photo.nbytes
                    self._photos[index] = photo
        return photo


def load_photo(dataset: Dataset, index: int, max_side: int) -> Photo:
    """Photo ``index`` and its masks, with no side above ``max_side``.

    Masks are decoded one by one, inside their boxes: hundreds of whole ones of a large photo take gigabytes.

    Raises:
        DatasetError: the photo or one of its masks cannot be read.
    """
    record = dataset.records[index]
    image, masks = dataset.load_image(index), encode_masks(record)
    shape = image.shape[:2]
    shrink = min(1.0, max_side / max(shape))
    size = (max(1, round(shape[0] * shrink)), max(1, round(shape[1] * shrink)))
    if size != shape:
        image = _shrink(image, size)
    kept, corners, crops = [], [], []
    for number, rle in enumerate(masks):
        crop, corner = shrink_mask(rle, (shape[0], shape[1]), size)
        if crop.size:
            kept.append(number)
            corners.append(corner)
            crops.append(crop.view(np.uint8) * 255)
    class_ids = np.array([annotation.category for annotation in record.annotations], np.int32)
    iscrowd = np.array([annotation.iscrowd for annotation in record.annotations], bool)
    return Photo(image, class_ids[kept], iscrowd[kept], tuple(corners), tuple(crops))


def _shrink(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A photo, uint8 [h, w, C], at another size (height, width); OpenCV takes four channels at a time."""
    parts = [image[..., first : first + 4] for first in range(0, image.shape[2], 4)]
    resized = [cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, -1) for part in parts]
    return np.asarray(resized[0] if len(parts) == 1 else np.concatenate(resized, axis=2), np.uint8)


def shrink_mask(rle: Rle, shape: tuple[int, int], size: tuple[int, int]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """A mask of a photo of ``shape`` (height, width), on that photo shrunk to ``size``.

    Returns:
        The mask inside its box, bool [h, w], and the box's corner (y, x); [0, 0] for a mask without pixels.
    """
    crop, (top, left) = decode_crop(rle, shape)
    if size == shape or not crop.size:
        return crop, (top, left)
    first_row, row, below = _taps(top, crop.shape[0], shape[0], size[0])
    first_column, column, beside = _taps(left, crop.shape[1], shape[1], size[1])
    padded = np.pad(crop, 2).astype(np.float32)
    tall = padded[row] * (1 - below[:, None]) + padded[row + 1] * below[:, None]
    small = tall[:, column] * (1 - beside) + tall[:, column + 1] * beside >= 0.5
    box = mask_box(small)
    if box is None:
        return np.zeros((0, 0), bool), (0, 0)
    y1, x1, y2, x2 = box
    return np.ascontiguousarray(small[y1:y2, x1:x2]), (first_row + y1, first_column + x1)


def _taps(start: int, length: int, side: int, small: int) -> tuple[int, NDArray[np.intp], NDArray[np.float32]]:
    """Bilinear interpolation of pixels ``start`` and on, ``length`` of them, of ``side`` that become ``small``.

    Returns:
        The first of the small pixels that sees them; for each small pixel, where the first of its two neighbors lies
        among the pixels after two zeros are put before and behind them; and the share of the second, float32.
    """
    scale = side / small
    first = max(0, int(np.floor((start - 0.5) / scale - 0.5)))
    last = min(small, int(np.ceil((start + length + 0.5) / scale + 0.5)))
    place = (np.arange(first, last) + 0.5) * scale - 0.5 - start + 2
    lower = np.clip(np.floor(place), 0, length + 2)
    return first, lower.astype(np.intp), np.clip(place - lower, 0, 1).astype(np.float32)
