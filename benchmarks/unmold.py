"""What a photo costs before and after the network: ours against the original's way, instance by instance.

    python -m benchmarks unmold [--repeats N] [--instances N]

One thread. The original's way is scikit-image's resize where that is installed, else the same
arithmetic in NumPy; the table says which. Results also go to benchmarks/results/unmold.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blu_export.benchmark.curves import random_detections, random_photo
from blu_export.detections import Detections
from blu_export.draw import overlay
from blu_export.image import Molded, mold, unmold
from blu_export.spec import ModelSpec

try:
    from skimage.transform import resize as skimage_resize
except ImportError:
    skimage_resize = None

RESULT = Path(__file__).resolve().parent / "results" / "unmold.json"
SIZES = ((480, 640), (3000, 4000))
SPEC = ModelSpec(("BG", "object"))


def resize(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The original's utils.resize: order 1, zeros outside, float64."""
    if skimage_resize is not None:
        resized: NDArray[Any] = skimage_resize(
            image, (height, width), order=1, mode="constant", preserve_range=True, anti_aliasing=False
        )
        return resized
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1)) + ((0, 0),) * (image.ndim - 2))
    y, x = ((np.arange(n) + 0.5) * (size / n) - 0.5 for n, size in zip((height, width), image.shape[:2], strict=True))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    below, right = ((at - np.floor(at)).reshape(shape) for at, shape in ((y, (-1, 1)), (x, (1, -1))))
    if image.ndim == 3:
        below, right = below[..., None], right[..., None]
    upper, lower = padded[top + 1], padded[top + 2]
    rows = upper + (lower - upper) * below
    return rows[:, left + 1] * (1 - right) + rows[:, left + 2] * right


def mold_originally(image: NDArray[np.uint8], molded: Molded) -> NDArray[np.uint8]:
    """The original's resize_image: all of the photo in float64, then padded, then cast."""
    y1, x1, y2, x2 = molded.window.astype(int).tolist()
    height, width = molded.canvas.shape[:2]
    resized = resize(image, y2 - y1, x2 - x1)
    return np.pad(resized, ((y1, height - y2), (x1, width - x2), (0, 0))).astype(np.uint8)


def unmold_originally(found: Detections, masks: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The original's unmold_detections, from its boxes on: a full mask for every instance, then one stack."""
    full_masks = []
    for (y1, x1, y2, x2), mask in zip(found.rois.tolist(), masks, strict=True):
        full_mask = np.zeros(found.image_size, bool)
        full_mask[y1:y2, x1:x2] = resize(mask, y2 - y1, x2 - x1) >= 0.5
        full_masks.append(full_mask)
    return np.stack(full_masks, axis=-1)


def milliseconds(action: Callable[[], object], repeats: int) -> float:
    """Median time, after one run that does not count."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def measure(height: int, width: int, count: int, repeats: int) -> dict[str, Any]:
    photo = random_photo(height, width)
    molded = mold(photo, SPEC)
    rows, masks = random_detections(molded, SPEC, count)
    found = unmold(rows, masks, molded, SPEC)
    assert len(found) == count
    few = max(1, repeats // 10)  # of what takes seconds
    result: dict[str, Any] = {
        "photo": f"{width}×{height}",
        "instances": count,
        "mold": milliseconds(lambda: mold(photo, SPEC), repeats),
        "mold, original": milliseconds(lambda: mold_originally(photo, molded), few),
        "unmold": milliseconds(lambda: unmold(rows, masks, molded, SPEC), repeats),
        "unmold + full stack": milliseconds(lambda: unmold(rows, masks, molded, SPEC).masks, few),
        "unmold, original": milliseconds(lambda: unmold_originally(found, masks), few),
        "RLE of all": milliseconds(found.rles, few),
        "overlay": milliseconds(lambda: overlay(photo, found), few),
    }
    canvas, stack = mold_originally(photo, molded), unmold_originally(found, masks)
    result["different canvas bytes"] = int(np.count_nonzero(canvas != molded.canvas))
    result["different mask pixels"] = int(np.count_nonzero(stack != found.masks))
    result["crops MB"] = sum(crop.nbytes for crop in found.crops) / 1e6
    result["stack MB"] = stack.nbytes / 1e6
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--instances", type=int, default=100)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    results = [measure(*size, arguments.instances, arguments.repeats) for size in SIZES]
    how = "NumPy stand-in" if skimage_resize is None else "scikit-image"
    print(f"milliseconds, medians, one thread; the original's way by {how}", file=sys.stderr)
    for name in results[0]:
        values = [result[name] for result in results]
        print(f"{name:<24}", *(f"{value:>13.1f}" if isinstance(value, float) else f"{value:>13}" for value in values))
    RESULT.parent.mkdir(exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "original": how}
    RESULT.write_text(json.dumps({"machine": machine, "results": results}, indent=1, ensure_ascii=False) + "\n")
