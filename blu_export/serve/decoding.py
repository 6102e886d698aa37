"""Decoders: the pool of processes that parse and decode what clients send, and the limits that they are held to."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError
from blu_export.image import Molded
from blu_export.serve.budget import Budget, Holding
from blu_export.serve.decoder_process import DecoderProcess, LargePhotoError, Upload
from blu_export.serve.errors import BusyError, UnreadableImageError
from blu_export.serve.metrics import Metrics
from blu_export.serve.oip_request import Wanted
from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker_process import ModelInfo
from blu_export.workers.channel import ClosedError

log = logging.getLogger(__name__)

DECODE_SHARE = 1 / 3
"""Of the time of a request, that its decoding may take."""
ATTEMPTS = 2
"""Crashes of decoders after which the photo is to blame: the first may have been killed from outside."""
MAX_BACKOFF = 30.0
MAX_WARNING_KINDS = 100


@dataclass(frozen=True)
class Decoded:
    """A photo on its canvas."""

    molded: Molded
    wanted: Wanted | None
    """What an infer request wants in its answer."""
    seconds: float
    """That its decoder took."""


class Decoders:
    """A pool of decoder processes.

    A photo that takes too long is killed with its decoder, and another one takes that one's place.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings = settings
        self.timeout = settings.timeout * DECODE_SHARE
        self._metrics = metrics
        self._all: set[DecoderProcess] = set()
        self._idle: deque[DecoderProcess] = deque()
        self._waiting: deque[asyncio.Future[DecoderProcess]] = deque()
        self._large = Budget(settings.max_pixels)
        self._last_free = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told: set[str] = set()

    async def start(self) -> None:
        """Start all decoders.

        Raises:
            BluError: one does not start.
        """
        for decoder in await asyncio.gather(*(self._start() for _ in range(self.settings.workers))):
            self._release(decoder)

    @property
    def ready(self) -> bool:
        """False when there has been no free decoder for as long as a request may take."""
        return bool(self._idle) or asyncio.get_running_loop().time() - self._last_free < self.settings.timeout

    async def decode(self, upload: Upload, info: ModelInfo) -> Decoded:
        """Have a photo decoded and put on its canvas.

        Raises:
            RequestError: any of its kinds that a request or its photo may be the reason of.
            BusyError: there was no decoder for it in ``max_wait`` seconds.
        """
        said, canvas = await self._run(upload, info)
        window = np.array(said["window"], np.float32)
        molded = Molded(canvas, window, said["scale"], (said["image_size"][0], said["image_size"][1]))
        wanted = None if said["wanted"] is None else Wanted(**said["wanted"])
        self._metrics.stages.labels("decode").observe(said["seconds"])
        return Decoded(molded, wanted, said["seconds"])

    @asynccontextmanager
    async def pixels(self, upload: Upload, info: ModelInfo) -> AsyncIterator[NDArray[np.uint8]]:
        """The photo itself, uint8 [H, W, 3]: counted among the pixels that are decoded until the end of the block.

        Raises:
            RequestError: see decode.
        """
        held = Holding(self._large)
        try:
            yield (await self._run(upload, info, held))[1]
        finally:
            held.give()

    async def close(self) -> None:
        """End all decoders now, idle or not."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(decoder.child.kill() for decoder in self._all))
        self._idle.clear()

    async def _run(
        self, upload: Upload, info: ModelInfo, held: Holding | None = None
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """What a decoder says of an upload, and the image that it made; the photo itself where ``held`` is given."""
        own = held or Holding(self._large)
        deaths = 0
        try:
            while True:
                decoder = await self._acquire()
                # A task of its own: when the caller gives up, the decoder still has to come to an end with this photo.
                use = self._spawn(self._use(decoder, upload, info, own, held is not None))
                try:
                    return await asyncio.shield(use)
                except asyncio.CancelledError:
                    own.give_after(use)
                    raise
                except LargePhotoError as large:  # it waits for its turn without keeping a decoder from others
                    if not await own.take(large.pixels, self.settings.max_wait):
                        raise _busy("There are too many large photos.") from None
                except ClosedError:
                    deaths += 1
                    if deaths == ATTEMPTS:
                        what = "This photo crashes its decoder."
                        raise UnreadableImageError(what, "Save it again, as JPEG or PNG.") from None
        finally:
            if held is None:
                own.give()

    async def _use(
        self, decoder: DecoderProcess, upload: Upload, info: ModelInfo, own: Holding, pixels: bool
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """One photo's time in a decoder, which is free or replaced afterwards.

        Raises:
            LargePhotoError: the photo must wait for others.
            ClosedError: the decoder has died.
        """
        try:
            async with asyncio.timeout(self.timeout):
                said = await decoder.run(upload, info, pixels, own)
                found = said, await decoder.image(said["shape"])
        except (BluError, LargePhotoError):  # answers, too
            self._release(decoder)
            raise
        except TimeoutError:
            await self._replace(decoder, "hang")
            raise UnreadableImageError(
                f"Decoding this photo took more than {self.timeout:.3g} s.", "Save it again, or send a smaller one."
            ) from None
        except Exception:
            await self._replace(decoder, "crash")
            raise
        self._release(decoder)
        self._tell(said["warnings"])
        return found

    async def _acquire(self) -> DecoderProcess:
        """A free decoder, for the longest waiting caller first."""
        if self._idle:
            return self._idle.popleft()
        waiting: asyncio.Future[DecoderProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(self.settings.max_wait):
                return await waiting
        except TimeoutError:
            self._give_up(waiting)
            raise _busy("All decoders are busy with other photos.") from None
        except asyncio.CancelledError:
            self._give_up(waiting)
            raise

    def _give_up(self, waiting: asyncio.Future[DecoderProcess]) -> None:
        """Take a caller out of the line; a decoder that it got just then goes to the next one."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        elif waiting.done() and not waiting.cancelled():
            self._release(waiting.result())

    def _release(self, decoder: DecoderProcess) -> None:
        """A decoder is free."""
        self._last_free = asyncio.get_running_loop().time()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(decoder)
                return
        self._idle.append(decoder)

    async def _replace(self, decoder: DecoderProcess, reason: str) -> None:
        """Kill a decoder; another one comes in its place."""
        self._all.discard(decoder)
        code = await decoder.child.kill()
        log.warning("decoder killed" if reason == "hang" else "decoder lost", extra={"reason": reason, "code": code})
        self._metrics.restarts.labels(f"decoder {reason}").inc()
        self._spawn(self._start_until_one_lives())

    async def _start_until_one_lives(self) -> None:
        pause = 1.0
        while True:
            try:
                self._release(await self._start())
                return
            except (BluError, OSError) as error:
                log.error("decoder does not start", extra={"why": str(error), "next_try_s": pause})
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_BACKOFF)

    async def _start(self) -> DecoderProcess:
        decoder = await DecoderProcess.start(self.settings)
        self._all.add(decoder)
        self._spawn(self._watch(decoder))
        return decoder

    async def _watch(self, decoder: DecoderProcess) -> None:
        """Replace a decoder that ends while it is idle: it was killed from outside."""
        await decoder.child.ended()
        if decoder in self._idle:
            self._idle.remove(decoder)
            await self._replace(decoder, "crash")

    def _tell(self, warnings: list[str]) -> None:
        """Log what libraries had to say of a photo, once a kind."""
        for each in warnings:
            if each not in self._told and len(self._told) < MAX_WARNING_KINDS:
                self._told.add(each)
                log.warning("photo", extra={"warning": each})

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone, and then no one else asks


def _busy(what: str) -> BusyError:
    return BusyError(what, "Try again after the time in Retry-After.")
