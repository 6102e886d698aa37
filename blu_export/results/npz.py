"""NumPy: the original's dict, whose masks are whole."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from blu_export.instances import Instances
from blu_export.results.base import PhotoFormat, Result

BLOCK_BYTES = 2**24


class NpzFormat(PhotoFormat):
    """NAME.detections.npz, which Detections.load and numpy.load read.

    rois, class_ids, scores and masks [H, W, N] as the original has them; image_size, class_names (JSON) and, where
    there are, track_ids beside them.
    """

    suffix = ".detections.npz"

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        found = result.found
        arrays: dict[str, Any] = {
            "rois": found.rois,
            "class_ids": found.class_ids,
            "scores": found.scores,
            "image_size": np.array(found.image_size),
            "class_names": np.array(json.dumps(found.class_names)),
        }
        if found.track_ids is not None:
            arrays["track_ids"] = found.track_ids
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        with (
            zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("masks.npy", "w", force_zip64=True) as file,
        ):
            _write_masks(found, file)
        yield self.suffix, buffer.getvalue()


def _write_masks(found: Instances, file: IO[bytes]) -> None:
    """``found.masks`` as .npy, some rows at a time: all of a large photo's take gigabytes."""
    height, width = found.image_size
    header = {"descr": "|b1", "fortran_order": False, "shape": (height, width, len(found))}
    np.lib.format.write_array_header_1_0(file, header)
    rows = max(1, BLOCK_BYTES // max(1, width * len(found)))
    for top in range(0, height, rows):
        block = np.zeros((min(rows, height - top), width, len(found)), np.bool_)
        for index, ((y1, x1, y2, x2), crop) in enumerate(zip(found.rois.tolist(), found.crops, strict=True)):
            first, last = max(y1, top), min(y2, top + len(block))
            if first < last:
                block[first - top : last - top, x1:x2, index] = crop[first - y1 : last - y1]
        file.write(block.tobytes())
