"""Batcher: canvases of many requests, in batches, to one device; deadlines, crashes and bad canvases included."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError
from blu_export.serve.errors import BusyError, TooLargeError, UnavailableError, WorkerFailedError
from blu_export.serve.metrics import Metrics
from blu_export.serve.settings import ServeSettings
from blu_export.serve.snapshot import ModelSnapshot
from blu_export.serve.worker_process import ModelInfo, RawBatch, WorkerProcess
from blu_export.workers.owner import WorkerLostError

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often a canvas goes to the device when the worker dies under it: the second time alone, so that a
canvas that kills workers fails by itself and a worker that was killed from outside costs no request."""
ALWAYS_IN = 2
"""Photos that are always admitted, however slow the device: one on it, and one to follow without a pause."""
MAX_BACKOFF = 30.0
"""Seconds between two attempts to start a worker, at most."""
RETIRE_POLL = 0.05


@dataclass(eq=False)
class Work:
    """One canvas that waits for its turn."""

    canvas: NDArray[np.uint8]
    window: NDArray[np.float32]
    arrived: float
    """Loop time."""
    result: asyncio.Future[RawResult]
    alone: bool = False
    """Not in a batch with others: a batch with it failed."""
    attempts: int = 0


@dataclass(frozen=True)
class RawResult:
    """What the network made of one canvas."""

    detections: NDArray[np.float32]
    """float32 [N, 6]"""
    masks: NDArray[np.float32]
    """float32 [N, h, w]"""
    queued: float
    """Seconds from its arrival to the start of its batch."""
    seconds: float
    """Of the network on its batch."""
    batch: int
    """Canvases in that batch."""


@dataclass
class Load:
    """How busy a batcher is."""

    inside: int = 0
    """Photos and tiles admitted and not yet answered."""
    in_line: int = 0
    """Of those, that may be before the device at once: a photo's tiles come to it a group at a time."""
    per_photo: float = 0.0
    """Seconds of the device per photo, a running average."""


class Batcher:
    """Owns a device, and the files for its successors, and keeps it busy.

    Args:
        settings: limits.
        device: a warm one; replaced by a new one when its worker dies.
        metrics: counts batches and restarts.
        kept: what the device was loaded from; starts another one with the same model.
    """

    def __init__(
        self,
        settings: ServeSettings,
        device: WorkerProcess,
        metrics: Metrics,
        kept: ModelSnapshot,
    ) -> None:
        self.settings = settings
        self.info: ModelInfo = device.info
        self.load = Load(per_photo=device.info.seconds)
        self._device: WorkerProcess | None = device
        self._kept = kept
        self._metrics = metrics
        self._waiting: list[Work] = []
        self._arrival = asyncio.Event()
        self._failed_starts = 0
        self._task = asyncio.create_task(self._work())
        self._task.add_done_callback(_report)

    @property
    def ready(self) -> bool:
        """Whether a worker with a warm model is there."""
        return self._device is not None

    @property
    def alive(self) -> bool:
        """False when this object itself has failed; only a restart of the server helps."""
        return not self._task.done()

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker; None while there is none."""
        return None if self._device is None else self._device.pid

    @property
    def queued(self) -> int:
        """Canvases that wait for the device."""
        return len(self._waiting)

    @contextmanager
    def admit(self, places: int = 1, at_once: int = 1) -> Iterator[None]:
        """Take places of the server; given back at the end of the block.

        Args:
            places: one for a photo, or one for each of its tiles.
            at_once: how many of them are before the device at a time.

        Raises:
            BusyError: all are taken, or the wait would be longer than ``max_wait``.
            UnavailableError: there is no device, and none could be started.
        """
        ahead = self.load.in_line * self.load.per_photo
        if self._failed_starts:
            raise UnavailableError("The model's worker cannot be started.", "Look at the server's log.", MAX_BACKOFF)
        too_long = ahead > self.settings.max_wait and self.load.in_line >= ALWAYS_IN
        if self.load.inside + places > self.settings.queue or too_long:
            raise BusyError(
                f"There are {self.load.inside} photos ahead, about {ahead:.1f} s of work.",
                "Try again after the time in Retry-After.",
                retry_after=max(1, math.ceil(ahead / 2)),
            )
        self.load.inside += places
        self.load.in_line += at_once
        try:
            yield
        finally:
            self.load.inside -= places
            self.load.in_line -= at_once

    async def run(self, canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> RawResult:
        """Have one canvas (uint8 [H, W, 3], window float32 [4]) run in the next batch.

        A caller that gives up (is canceled) before that takes its canvas out of the queue.

        Raises:
            TooLargeError: the canvas is larger than the device's memory.
            WorkerFailedError: the network refused this canvas, or crashed on it.
        """
        loop = asyncio.get_running_loop()
        if self._device is not None and not self._device.together([canvas.shape[:2]]):
            raise TooLargeError(f"A canvas of {canvas.shape[1]}x{canvas.shape[0]} is too large for this server.")
        work = Work(canvas, window, loop.time(), loop.create_future())
        self._waiting.append(work)
        self._arrival.set()
        try:
            return await work.result
        finally:
            if work in self._waiting:
                self._waiting.remove(work)

    async def retire(self) -> None:
        """Answer what was accepted, then stop."""
        try:
            while self.load.inside:
                await asyncio.sleep(RETIRE_POLL)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop; nothing may be waiting any more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._device is not None:
            await self._device.close()
            self._device = None
        self._kept.close()

    async def _work(self) -> None:
        while True:
            try:
                await self._run(await self._next_batch())
            except WorkerLostError as error:
                await self._restart(str(error))

    async def _next_batch(self) -> list[Work]:
        """The oldest canvas and those that go with it."""
        assert self._device is not None
        while not self._waiting:
            self._arrival.clear()
            await _first_of(self._arrival.wait(), self._device.ended())
        await self._wait_for_more()
        if not self._waiting:  # all callers gave up meanwhile
            return []
        first = self._waiting[0]
        others = [] if first.alone else [work for work in self._waiting[1:] if not work.alone]
        batch = [first, *others]
        # A worker that was restarted may have no room for the first: then it goes, and is refused, by itself.
        batch = [batch[place] for place in self._device.together([work.canvas.shape[:2] for work in batch]) or [0]]
        for work in batch:
            self._waiting.remove(work)
        return batch

    async def _wait_for_more(self) -> None:
        """Give the companions of the first photo ``batch_delay`` seconds to come."""
        assert self._device is not None
        until, most = self._waiting[0].arrived + self.settings.batch_delay, self._device.most
        try:
            async with asyncio.timeout_at(until):
                while 0 < len(self._waiting) < most:
                    self._arrival.clear()
                    await self._arrival.wait()
        except TimeoutError:
            pass

    async def _run(self, batch: list[Work]) -> None:
        if not batch:
            return
        assert self._device is not None
        started = asyncio.get_running_loop().time()
        try:
            raw = await self._device.run(
                [work.canvas for work in batch], [work.window for work in batch], self.settings.timeout
            )
        except WorkerLostError as error:
            for work in batch:
                work.attempts += 1
            self._again([work for work in batch if work.attempts < ATTEMPTS])
            _fail([work for work in batch if work.attempts >= ATTEMPTS], f"The network died on this photo: {error}.")
            raise
        except BluError as error:
            if len(batch) == 1:
                _fail(batch, str(error))
            else:
                self._again(batch)
            return
        except asyncio.CancelledError:
            _fail(batch, "The server stops.")
            raise
        self._metrics.batches.observe(len(batch))
        self.load.per_photo += 0.2 * (raw.seconds / len(batch) - self.load.per_photo)
        _deliver(batch, raw, started)

    def _again(self, batch: list[Work]) -> None:
        """Back to the head of the queue, each by itself."""
        alive = [work for work in batch if not work.result.done()]
        for work in alive:
            work.alone = True
        self._waiting[:0] = alive

    async def _restart(self, why: str) -> None:
        """Start workers until one lives."""
        log.error("worker lost", extra={"why": why})
        self._device = None
        self._metrics.restarts.labels(why.partition(":")[0]).inc()
        while self._device is None:
            try:
                self._device = await self._kept.start()
            except (WorkerLostError, BluError, OSError) as error:
                self._failed_starts += 1
                pause = min(2.0 ** (self._failed_starts - 1), MAX_BACKOFF)
                log.error("worker does not start", extra={"why": str(error), "next_try_s": pause})
                await asyncio.sleep(pause)
        self._failed_starts = 0
        log.warning("worker restarted", extra={"worker": self._device.pid})


def _deliver(batch: list[Work], raw: RawBatch, started: float) -> None:
    for work, detections, masks in zip(batch, raw.detections, raw.masks, strict=True):
        if not work.result.done():
            work.result.set_result(RawResult(detections, masks, started - work.arrived, raw.seconds, len(batch)))


def _fail(batch: list[Work], why: str) -> None:
    for work in batch:
        if not work.result.done():
            work.result.set_exception(WorkerFailedError(why, "Send it again; if it fails again, report the photo."))


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of them is over; raise its error where it has one."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("batcher failed", exc_info=error)
