"""The worker: a process of its own that holds the model, so that a crash or hang of a runtime takes nothing else along.

It talks with the server over the channel of workers; canvases and results lie in memory that both map.

    worker → server   {"spec": …, "runtime": …, "device": …, "precision": …, "lanes": …, "sha256": …, "seconds": …}
    server → worker   {"shapes": [[H, W], …]}
    worker → server   {"seconds": …}, or {"error": …}

A failure to load is one line with ``error`` and the end of the process.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
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

    def batch(self, count: int, height: int, width: int) -> NDArray[np.uint8]:
        """The room for ``count`` canvases of one size: uint8 [count, height, width, channels]."""
        return self._canvases[: count * height * width * self._channels].reshape(count, height, width, self._channels)

    def canvases(self, shapes: Sequence[Sequence[int]]) -> list[NDArray[np.uint8]]:
        """The rooms for canvases of these heights and widths, one after another: uint8 [height, width, channels]."""
        ends = np.cumsum([self._channels * height * width for height, width in shapes])
        parts = np.split(self._canvases[: ends[-1]], ends[:-1])
        return [part.reshape(*shape, self._channels) for part, shape in zip(parts, shapes, strict=True)]

    def fit(self, shapes: Sequence[Sequence[int]]) -> int:
        """How many of these canvases, the first ones, there is room for at once."""
        ends = np.cumsum([self._channels * height * width for height, width in shapes])
        return min(len(self.windows), int(np.searchsorted(ends, self.canvas_bytes, "right")))


def main(channel: Channel, config: dict[str, Any]) -> None:
    """Load the model, report it, and process batches until the server closes its end."""
    try:
        network, arrays = _load(config, channel)
    except BluError as error:
        channel.send(error=error_as_json(error))
        return
    for request in channel:
        _work(network, arrays, channel, request["shapes"])
    network.close()


class Network:
    """A model in the one or two ways that it is loaded: for one canvas, and for several at once.

    A processor does several sooner with a core for each than as a batch that all cores share: threads of one canvas
    wait for each other at every layer. A GPU takes them as a batch.

    Args:
        loader: see ``runtime.load_runner``, whose arguments the others are.
        max_batch: canvases at once, at most.
    """

    def __init__(self, loader: Callable[..., Runner], path: str, options: RunnerOptions, max_batch: int) -> None:
        options = replace(options, shared_arena=True)  # else both keep memory, of which one is always idle
        self.alone = loader(path, options)
        self._each: Runner | None = None
        self.lanes = 1
        """Canvases that go best at once, each by itself; 1: as a batch."""
        if max_batch > 1 and self.alone.throughput_lanes > 1:
            self._each = loader(path, replace(options, throughput=True))
            self.lanes = min(self._each.lanes, max_batch)
        self._pool = ThreadPoolExecutor(self.lanes, "blu-lane")

    def run(self, arrays: SharedArrays, shapes: Sequence[Sequence[int]]) -> float:
        """Detect on the canvases in ``arrays``, of these heights and widths: a batch's are equal. Returns seconds."""
        start = time.perf_counter()
        if self._each is None or len(shapes) == 1:
            count = len(shapes)
            found = self.alone.run(arrays.batch(count, *shapes[0]), arrays.windows[:count])
            arrays.detections[:count], arrays.masks[:count] = found
        else:
            canvases = enumerate(arrays.canvases(shapes))
            running = [self._pool.submit(self._run_one, arrays, place, canvas) for place, canvas in canvases]
            wait(running)  # none may be under way when an error is told
            for one in running:
                one.result()
        return time.perf_counter() - start

    def _run_one(self, arrays: SharedArrays, place: int, canvas: NDArray[np.uint8]) -> None:
        assert self._each is not None
        part = slice(place, place + 1)
        arrays.detections[part], arrays.masks[part] = self._each.run(canvas[None], arrays.windows[part])

    def close(self) -> None:
        """Give back the memory of both."""
        self._pool.shutdown()
        self.alone.close()
        if self._each is not None:
            self._each.close()


def _load(config: dict[str, Any], channel: Channel) -> tuple[Network, SharedArrays]:
    path, max_batch = config["model"], config["max_batch"]
    sha256 = _digest(path)
    network = Network(load_function(config["loader"]), path, RunnerOptions(**config["options"]), max_batch)
    if _digest(path) != sha256:
        raise ModelFileError(f"{path} changed while it was being loaded.", "Write it elsewhere, then rename it.")
    runner = network.alone
    arrays = SharedArrays(config["memory"], runner.spec, max_batch)
    seconds = _warm_up(network, arrays)
    channel.send(
        spec=runner.spec.to_json(),
        runtime=runner.runtime,
        device=runner.device,
        precision=runner.precision,
        lanes=network.lanes,
        sha256=sha256,
        seconds=seconds,
    )
    return network, arrays


def _digest(path: str) -> str:
    if not os.path.isfile(path):
        raise ModelFileError(f"There is no model file {path}.", "Check the path.")
    try:
        return sha256_of(path)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its mode.") from error


def _warm_up(network: Network, arrays: SharedArrays) -> float:
    """Run what comes first and slowest: the first calls, and on a GPU the largest batch. Seconds of a canvas then."""
    spec = network.alone.spec
    height, width = spec.largest_canvas or (64, 64)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, spec.image_channel_count), np.uint8)
    largest = arrays.fit([(height, width)] * len(arrays.windows))
    counts = [network.lanes, 1, 1] if network.alone.device == "CPU" else [largest, 1]
    seconds = 0.0
    for count in counts:
        arrays.batch(count, height, width)[:] = noise
        arrays.windows[:count] = 0, 0, height, width
        seconds = network.run(arrays, [(height, width)] * count)
    return seconds


def _work(network: Network, arrays: SharedArrays, channel: Channel, shapes: list[list[int]]) -> None:
    try:
        channel.send(seconds=network.run(arrays, shapes))
    except BluError as error:
        if error.lost:  # the server gives the batch to another worker
            log.error("%s", error)
            sys.exit(1)
        channel.send(error=error_as_json(error))
