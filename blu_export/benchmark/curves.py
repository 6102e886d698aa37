"""What a photo costs as one quantity grows: canvas, batch, instances, megapixels.

The network's part comes from the exported file itself: its subnetworks are taken out and composed
again for other canvases, and its mask head is run on as many ROIs as there are instances.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.benchmark.recompose import recompose
from blu_export.benchmark.timing import median_seconds, take_turns
from blu_export.image import Molded, decode, mold, unmold
from blu_export.runtime.base import Runner
from blu_export.spec import SIZE_MULTIPLE, ModelSpec

BATCHES = (1, 2, 4, 8)
MEGAPIXELS = (0.3, 3, 6, 12, 24)
LARGE_PHOTO = (3000, 4000)
"""(height, width) of the 12-megapixel photo."""
SMALL_PHOTO = (480, 640)
_JPEG_QUALITY = 92

Curve = dict[str, Any]
"""``{"x": […], "unit": …, "seconds": {line: […]}}``."""


def random_photo(height: int, width: int) -> NDArray[np.uint8]:
    """A photo with the detail of a real one, the same every time: uint8 [height, width, 3] RGB."""
    import cv2

    coarse = np.random.default_rng(0).integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), np.uint8)
    photo: NDArray[np.uint8] = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return photo


def encode(photo: NDArray[np.uint8]) -> bytes:
    """As a JPEG file."""
    import cv2

    _, encoded = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(encoded)


def random_detections(molded: Molded, spec: ModelSpec, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Raw detections as a Runner gives them, ``count`` of them in use, on the photo's part of the canvas.

    Boxes measure from a fiftieth to a third of the photo's sides; masks have smooth outlines.
    """
    import cv2

    random = np.random.default_rng(0)
    corners, sizes = random.uniform(0, 0.65, (count, 2)), random.uniform(0.02, 0.35, (count, 2))
    y1, x1, y2, x2 = molded.window / np.array([*molded.canvas.shape[:2]] * 2)
    boxes = np.concatenate([corners, corners + sizes], axis=1) * np.array([y2 - y1, x2 - x1] * 2) + [y1, x1, y1, x1]
    rows = np.column_stack([boxes, np.ones(count), np.sort(random.uniform(0.7, 1, count))[::-1]]).astype(np.float32)
    noise = random.random((count, *spec.mask_shape)).astype(np.float32)
    blobs = [cv2.normalize(cv2.GaussianBlur(each, (0, 0), 4), None, 0, 1, cv2.NORM_MINMAX) for each in noise]
    return rows, np.stack(blobs) if blobs else noise


def around_the_network(spec: ModelSpec, size: tuple[int, int], instances: int, repeats: int = 9) -> dict[str, float]:
    """Median seconds of decode, mold and unmold for one JPEG photo of ``size`` with that many instances."""
    encoded = encode(random_photo(*size))
    image = decode(encoded)
    molded = mold(image, spec)
    rows, masks = random_detections(molded, spec, instances)
    actions: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(encoded),
        "mold": lambda: mold(image, spec),
        "unmold": lambda: unmold(rows, masks, molded, spec),
    }
    rounds = take_turns(actions, repeats, 1)
    return {name: float(np.median(times)) for name, times in rounds.seconds.items()}


def measure_curves(
    path: Path,
    runner: Runner,
    threads: int,
    repeats: int,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Curve]:
    """The four curves of a float32 file.

    Args:
        path: the portable file.
        runner: the same, loaded.
    """
    spec = runner.spec
    return {
        "canvas": _canvas_curve(path, spec, threads, repeats, say),
        "batch": _batch_curve(runner, repeats, say),
        "instances": _instance_curve(path, spec, threads, repeats, say),
        "megapixels": _megapixel_curve(spec, repeats, say),
    }


def _canvas_curve(path: Path, spec: ModelSpec, threads: int, repeats: int, say: Callable[[str], None]) -> Curve:
    """The same subnetworks on square canvases from half the model's to its own."""
    from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

    top = spec.image_max_dim
    sides = sorted({max(SIZE_MULTIPLE, round(top * f / SIZE_MULTIPLE) * SIZE_MULTIPLE) for f in (0.5, 0.625, 0.75, 1)})
    seconds = []
    for side in sides:  # one at a time: each holds a copy of the weights
        say(f"canvas {side}×{side}")
        small = recompose(path, image_max_dim=side, image_min_dim=min(spec.image_min_dim, side))
        with OnnxRuntimeRunner(small, "cpu", threads) as runner:
            molded = mold(random_photo(*SMALL_PHOTO), runner.spec)
            seconds.append(median_seconds(partial(runner.run, molded.canvas[None], molded.window[None]), repeats))
    return {"x": sides, "unit": "canvas side, px", "seconds": {"network": seconds}}


def _batch_curve(runner: Runner, repeats: int, say: Callable[[str], None]) -> Curve:
    molded = mold(random_photo(*SMALL_PHOTO), runner.spec)
    seconds = []
    for batch in BATCHES:
        say(f"batch {batch}")
        canvas, window = np.stack([molded.canvas] * batch), np.stack([molded.window] * batch)
        seconds.append(median_seconds(partial(runner.run, canvas, window), repeats) / batch)
    return {"x": list(BATCHES), "unit": "photos in a batch", "seconds": {"network, per photo": seconds}}


def _instance_curve(path: Path, spec: ModelSpec, threads: int, repeats: int, say: Callable[[str], None]) -> Curve:
    """The mask head on that many ROIs, and un-molding them on 12 megapixels; nothing else depends on their number."""
    import onnx
    import onnxruntime as ort

    from blu_export.graph.split import split

    say("instances")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    head = split(onnx.load(path), spec)["mask_head"]
    session = ort.InferenceSession(head.SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts = [n for n in (1, 10, 25, 50, 100) if n <= spec.detection_max_instances]
    rois = np.zeros((max(counts), spec.top_down_pyramid_size, spec.mask_pool_size, spec.mask_pool_size), np.float32)
    molded = mold(random_photo(*LARGE_PHOTO), spec)
    heads, unmolds = [], []
    for count in counts:
        feed = {head.graph.input[0].name: rois[:count]}
        heads.append(median_seconds(partial(session.run, None, feed), repeats))
        rows, masks = random_detections(molded, spec, count)
        unmolds.append(median_seconds(partial(unmold, rows, masks, molded, spec), repeats))
    return {"x": counts, "unit": "instances", "seconds": {"mask head": heads, "unmold, 12 MP": unmolds}}


def _megapixel_curve(spec: ModelSpec, repeats: int, say: Callable[[str], None]) -> Curve:
    say("megapixels")
    found: dict[str, list[float]] = {"decode": [], "mold": [], "unmold, 100 instances": []}
    for size in MEGAPIXELS:
        side = (size * 1e6 / 12) ** 0.5
        times = around_the_network(spec, (int(3 * side), int(4 * side)), 100, repeats)
        for line, stage in zip(found, ("decode", "mold", "unmold"), strict=True):
            found[line].append(times[stage])
    return {"x": list(MEGAPIXELS), "unit": "megapixels", "seconds": found}
