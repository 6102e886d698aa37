"""Service: a photo's way through the server, and the models that come and go under it."""

from __future__ import annotations

import asyncio
import ctypes
import enum
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import time_ns
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.errors import BluError
from blu_export.image import unmold
from blu_export.serve.batching import Batcher
from blu_export.serve.decoder_process import Upload
from blu_export.serve.decoding import Decoders
from blu_export.serve.errors import DeadlineError, UnavailableError
from blu_export.serve.limits import ApiKeys, Memory
from blu_export.serve.metrics import Metrics
from blu_export.serve.oip_request import Wanted
from blu_export.serve.settings import ServeSettings
from blu_export.serve.snapshot import ModelSnapshot
from blu_export.serve.tiled import Tiles, merge, run_windows, windows_of
from blu_export.serve.tracing import Traces
from blu_export.serve.worker_process import ModelInfo, WorkerProcess
from blu_export.tiles import Tiling
from blu_export.workers.owner import WorkerLostError

log = logging.getLogger(__name__)

T = TypeVar("T")
ANSWER_PIECE = 2**16
"""Bytes of an answer that are given to a connection at a time. Only larger answers are counted: a smaller one costs
an unread connection no more than a piece of a large one."""
KEEP_ALIVE = 15
"""Seconds that a connection may be idle between two requests."""
WATCH_SECONDS = 1.0
"""Between two looks at the model file."""
TRIM_SECONDS = 30.0
"""Between two times that freed memory goes back to the system."""


class State(enum.Enum):
    """State of the server."""

    SERVING = "serving"
    LEAVING = "leaving"
    """Stopping soon: ``ready`` says no, work is still accepted."""
    CLOSING = "closing"
    """No new work; what was accepted is finished."""


@dataclass(frozen=True)
class Found:
    """What was found on one photo, with all that an answer may be made of."""

    detections: Detections
    photo: NDArray[np.uint8] | None
    """uint8 [H, W, 3], where the answer asked for it."""
    wanted: Wanted | None
    """What an infer request wants in its answer."""
    info: ModelInfo
    seconds: dict[str, float]
    """Per stage: decode, queue, run."""
    batch: int
    """Photos that went through the network together."""
    tiles: Tiles | None = None
    """Where it was looked at in tiles."""


class Service:
    """Takes photos, returns answers, and keeps to its limits.

    Use ``start`` and ``close``, or ``async with``.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.traces = Traces.from_environment()
        self.uploads = Memory("uploads", settings.upload_memory)
        self.answers = Memory("unread answers", settings.answer_memory)
        self.keys = ApiKeys(settings.api_keys)
        self.state = State.SERVING
        self.inside = 0
        """Photos that are being worked on, whichever model has them."""
        self._model: Batcher | None = None
        self.decoders = Decoders(settings, self.metrics)
        self._finishers = ThreadPoolExecutor(settings.workers, "blu-finish")
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def model(self) -> Batcher:
        """The model that takes new work."""
        assert self._model is not None, "the service was not started"
        return self._model

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send work."""
        return self.state is State.SERVING and self._model is not None and self._model.ready and self.decoders.ready

    @property
    def alive(self) -> bool:
        """Whether the server can still do its work; if not, only a restart helps."""
        return self._model is None or self._model.alive

    def answering(self, size: int) -> AbstractContextManager[None]:
        """Count an answer of ``size`` bytes until it is sent, the end of the block.

        Raises:
            BusyError: too many wait for their clients to read them.
        """
        return self.answers.hold(size if size > ANSWER_PIECE else 0)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def start(self) -> None:
        """Load the model and warm it up.

        Raises:
            BluError: the model cannot be loaded.
        """
        try:
            await self.decoders.start()
            device, kept = await ModelSnapshot.load(self.settings)
        except WorkerLostError as error:
            raise BluError(
                f"The worker cannot start: {error}.", "Try the model with: blu infer PHOTO -m MODEL"
            ) from error
        self._take(device, kept)
        self.metrics.watch(
            queue=lambda: self.model.queued, inside=lambda: self.model.load.inside, ready=lambda: float(self.ready)
        )
        self._spawn(self._trim_memory())
        if self.settings.reload:
            self._spawn(self._watch_file())

    async def close(self) -> None:
        """Stop; requests must have been answered before."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._model is not None:
            await self._model.close()
        await self.decoders.close()
        self._finishers.shutdown(wait=False, cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(None, self.traces.close)

    async def __aenter__(self) -> Service:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def predict(
        self,
        upload: Upload,
        answer: Callable[[Found], T],
        deadline: float,
        with_photo: bool = False,
        tiling: Tiling | None = None,
    ) -> T:
        """Take one photo through all stages.

        Args:
            upload: what the client sent.
            answer: makes the answer of what was found; called in a finishing thread.
            deadline: loop time.
            with_photo: whether the answer needs the photo itself.
            tiling: look at the photo in tiles too.

        Raises:
            RequestError: any of its kinds.
        """
        if self.state is State.CLOSING:
            raise UnavailableError("The server stops.", "Send it to another one.", retry_after=1)
        model = self.model  # to the end: a reload in between changes nothing for this photo
        with self._counted(), model.admit():
            try:
                async with asyncio.timeout_at(deadline):
                    if tiling is not None:
                        return await self._predict_tiles(upload, answer, model, tiling)
                    start = time_ns()
                    decoded = await self.decoders.decode(upload, model.info)
                    self.traces.stage("decode", start, time_ns())
                    raw = await model.run(decoded.molded.canvas, decoded.molded.window)
                    ran = time_ns()
                    began = ran - int(1e9 * raw.seconds)
                    self.traces.stage("queue", began - int(1e9 * raw.queued), began)
                    self.traces.stage("run", began, ran, **{"blu.batch": raw.batch})
                    seconds = {"decode": decoded.seconds, "queue": raw.queued, "run": raw.seconds}
                    self.metrics.stages.labels("queue").observe(raw.queued)
                    self.metrics.stages.labels("run").observe(raw.seconds)

                    def finish(photo: NDArray[np.uint8] | None) -> T:
                        with self.metrics.stage("unmold"):
                            found = unmold(raw.detections, raw.masks, decoded.molded, model.info.spec)
                            return answer(Found(found, photo, decoded.wanted, model.info, seconds, raw.batch))

                    try:
                        if not with_photo:
                            return await self._in(self._finishers, finish, None)
                        # Decoded a second time: the pixels of every photo in the queue would take far more memory.
                        async with self.decoders.pixels(upload, model.info) as photo:
                            return await self._in(self._finishers, finish, photo)
                    finally:
                        self.traces.stage("unmold", ran, time_ns())
            except TimeoutError:
                raise DeadlineError(
                    f"No result within {self.settings.timeout:g} s, the queue included.",
                    "Try again when the server is less busy.",
                ) from None

    async def _predict_tiles(self, upload: Upload, answer: Callable[[Found], T], model: Batcher, tiling: Tiling) -> T:
        """See predict. The photo's pixels stay, and are counted, to the end: its tiles are cut from them."""
        start = time_ns()
        async with self.decoders.pixels(upload, model.info) as photo:
            decoded = time_ns()
            windows = windows_of(photo, tiling, model)
            group = min(len(windows), self.settings.max_batch)
            with model.admit(len(windows) - 1, group - 1):  # one is in already
                runs = await run_windows(model, photo, windows, group, self._in_finisher)
            ran = time_ns()
            seconds = {
                "decode": (decoded - start) / 1e9,
                "queue": sum(run.raw.queued for run in runs) / len(runs),
                "run": sum(run.raw.seconds / run.raw.batch for run in runs),
            }
            for stage, value in seconds.items():
                self.metrics.stages.labels(stage).observe(value)
            self.traces.stage("decode", start, decoded)
            self.traces.stage("run", decoded, ran, **{"blu.windows": len(windows)})

            def finish() -> T:
                with self.metrics.stage("unmold"):
                    found, dropped = merge(runs, windows, photo.shape[:2], model.info.spec)
                    tiles = Tiles(tiling.side, tiling.overlap, len(windows), dropped)
                    batch = max(run.raw.batch for run in runs)
                    return answer(Found(found, photo, None, model.info, seconds, batch, tiles))

            try:
                return await self._in_finisher(finish)
            finally:
                self.traces.stage("unmold", ran, time_ns())

    async def reload(self) -> bool:
        """Load the model file again beside the running one and swap; returns False where the new one is not usable.

        Requests that came before the swap are answered by the old model, which is then dropped.
        """
        async with self._reloading:
            try:
                device, kept = await ModelSnapshot.load(self.settings)
            except (BluError, WorkerLostError, OSError) as error:
                self.metrics.reloads.labels("refused").inc()
                log.error("reload refused", extra={"why": str(error), "kept": self.model.info.sha256})
                return False
            old = self.model
            self._take(device, kept)
            self.metrics.reloads.labels("done").inc()
            self._spawn(old.retire())
            return True

    def _take(self, device: WorkerProcess, kept: ModelSnapshot) -> None:
        self._model = Batcher(self.settings, device, self.metrics, kept)
        self.metrics.model(device.info)
        info = device.info
        log.info(
            "model ready",
            extra={
                "model": info.name,
                "sha256": info.sha256,
                "runtime": info.runtime,
                "device": info.device,
                "precision": info.precision,
                "seconds_per_photo": round(info.seconds, 4),
                "worker": device.pid,
            },
        )

    async def _watch_file(self) -> None:
        """Reload when the file has changed and then stayed as it is for one look."""
        served = before = self._stat()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = self._stat()
            if now is not None and now == before and now != served:
                served = now
                await self.reload()
            before = now

    async def _trim_memory(self) -> None:
        """The C library keeps what was freed in a heap of each thread, and these grow slowly. It takes 2 ms."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        while trim is not None:
            await asyncio.sleep(TRIM_SECONDS)
            await self._in(self._finishers, trim, 0)

    def _stat(self) -> tuple[int, ...] | None:
        try:
            stat = os.stat(self.settings.model)
        except OSError:  # between two renames
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    async def _in_finisher(self, function: Callable[[], T]) -> T:
        return await self._in(self._finishers, function)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
