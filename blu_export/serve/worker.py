"""The worker: a process of its own that holds the model, so that a crash or hang of a runtime takes nothing else along.

It talks with the server over the channel of workers; canvases and results lie in memory that both map.

    worker → server   {"spec": …, "runtime": …, "device": …, "precision": …, "sha256": …, "seconds": …}
    server → worker   {"shape": [B, H, W]}
    worker → server   {"seconds": …}, or {"error": …}

A failure to load is one line with ``error`` and the end of the process.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import time
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError, ModelFileError
from blu_export.files import sha256_of
from blu_export.runtime.options import RunnerOptions
from blu_export.spec import ModelSpec
from blu_export.workers.channel import Channel, error_as_json
from blu_export.workers.entry import load_function

if TYPE_CHECKING:
    from blu_export.runtime.base import Runner

log = logging.getLogger(__name__)

VARIABLE_CANVAS_BYTES = 3 * 8192 * 8192
"""Room for the canvases of a batch where they follow the photo. Pages that are never touched cost nothing."""


class SharedArrays:
    """The arrays of one batch, in memory that the server and the worker share.

    Args:
        handle: file descriptor of the memory; grown to the size needed.
        spec: the model, which decides the sizes.
        max_batch: canvases per batch, at most.
    """

    def __init__(self, handle: int, spec: ModelSpec, max_batch: int) -> None:
        rows, self._channels = spec.detection_max_instances, spec.image_channel_count
        self.canvas_bytes = VARIABLE_CANVAS_BYTES
        if spec.largest_canvas is not None:
            self.canvas_bytes = spec.image_channel_count * prod(spec.largest_canvas) * max_batch
        shapes = ((max_batch, 4), (max_batch, rows, 6), (max_batch, rows, *spec.mask_shape))
        ends = np.cumsum([4 * prod(shape) for shape in shapes])
        size = int(ends[-1]) + self.canvas_bytes
        if os.fstat(handle).st_size < size:
            os.ftruncate(handle, size)
        memory = mmap.mmap(handle, size)
        floats = np.frombuffer(memory, np.float32, int(ends[-1]) // 4)
        self.windows, self.detections, self.masks = (
            part.reshape(shape) for part, shape in zip(np.split(floats, ends[:-1] // 4), shapes, strict=True)
        )
        self._canvases = np.frombuffer(memory, np.uint8, self.canvas_bytes, int(ends[-1]))

    def canvases(self, count: int, height: int, width: int) -> NDArray[np.uint8]:
        """The room for ``count`` canvases: uint8 [count, height, width, channels]."""
        return self._canvases[: count * height * width * self._channels].reshape(count, height, width, self._channels)

    def fit(self, height: int, width: int) -> int:
        """How many canvases of this size there is room for."""
        return min(len(self.windows), self.canvas_bytes // (self._channels * height * width))


def main(channel: Channel, config: dict[str, Any]) -> None:
    """Load the model, report it, and process batches until the server closes its end."""
    try:
        runner, arrays = _load(config, channel)
    except BluError as error:
        channel.send(error=error_as_json(error))
        return
    for request in channel:
        _work(runner, arrays, channel, *request["shape"])
    runner.close()


def _load(config: dict[str, Any], channel: Channel) -> tuple[Runner, SharedArrays]:
    path = config["model"]
    sha256 = _digest(path)
    runner: Runner = load_function(config["loader"])(path, RunnerOptions(**config["options"]))
    if _digest(path) != sha256:
        raise ModelFileError(f"{path} changed while it was being loaded.", "Write it elsewhere, then rename it.")
    arrays = SharedArrays(config["memory"], runner.spec, config["max_batch"])
    seconds = _warm_up(runner, arrays)
    channel.send(
        spec=runner.spec.to_json(),
        runtime=runner.runtime,
        device=runner.device,
        precision=runner.precision,
        sha256=sha256,
        seconds=seconds,
    )
    return runner, arrays


def _digest(path: str) -> str:
    if not os.path.isfile(path):
        raise ModelFileError(f"There is no model file {path}.", "Check the path.")
    try:
        return sha256_of(path)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its mode.") from error


def _warm_up(runner: Runner, arrays: SharedArrays) -> float:
    """Run what comes first and slowest: the first call, and on a GPU the largest batch. Seconds per canvas after it."""
    height, width = runner.spec.largest_canvas or (64, 64)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, runner.spec.image_channel_count), np.uint8)
    counts = [1, 1] if runner.device == "CPU" else [arrays.fit(height, width), 1]
    seconds = 0.0
    for count in counts:
        arrays.canvases(count, height, width)[:] = noise
        arrays.windows[:count] = 0, 0, height, width
        seconds = _run(runner, arrays, count, height, width)
    return seconds


def _work(runner: Runner, arrays: SharedArrays, channel: Channel, count: int, height: int, width: int) -> None:
    try:
        channel.send(seconds=_run(runner, arrays, count, height, width))
    except BluError as error:
        if error.lost:  # the server gives the batch to another worker
            log.error("%s", error)
            sys.exit(1)
        channel.send(error=error_as_json(error))


def _run(runner: Runner, arrays: SharedArrays, count: int, height: int, width: int) -> float:
    start = time.perf_counter()
    detections, masks = runner.run(arrays.canvases(count, height, width), arrays.windows[:count])
    arrays.detections[:count] = detections
    arrays.masks[:count] = masks
    return time.perf_counter() - start
