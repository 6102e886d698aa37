"""Decoders: the pool of processes that parse and decode what clients send, and the limits that they are held to."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError
from blu_export.image import Molded
from blu_export.serve.errors import BusyError, UnreadableImageError
from blu_export.serve.metrics import Metrics
from blu_export.serve.oip_request import Wanted
from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker import VARIABLE_CANVAS_BYTES
from blu_export.serve.worker_process import ModelInfo
from blu_export.workers.channel import ClosedError
from blu_export.workers.memory import anonymous_memory
from blu_export.workers.owner import AsyncChild

log = logging.getLogger(__name__)

SMALL_PHOTO = 4_000_000
"""Pixels up to which a photo is decoded whatever else is; larger ones together have at most the pixels of one photo."""
BYTES_PER_PIXEL = 32
"""Memory that a decoder may take for the largest photo: a lossless WebP of 50 megapixels takes 20."""
SPARE_MEMORY = 2**28
"""Bytes that it may take beside that."""
DECODE_SHARE = 1 / 3
"""Of the time of a request, that its decoding may take."""
ATTEMPTS = 2
"""Decoders that may die of a photo until it is the photo's fault: the first may have been killed from outside."""
START_TIMEOUT = 60.0
MAX_BACKOFF = 30.0
FREE_BEYOND = 8 * 2**20
"""Bytes of an image in shared memory that go back to the system when it has been copied."""
ENVELOPE_BYTES = 2**17
"""Of a gRPC message beside the photo, amply."""
MAX_WARNING_KINDS = 100
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""A decoder multiplies no matrices: the threads for that would only take address space."""


@dataclass(frozen=True)
class Upload:
    """What a client sent, as it came."""

    body: bytes
    form: str
    """``image``: a photo or a form with one; ``infer``: an infer request; ``tensor``: the input of one."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else decoder._read must know of it: JSON values."""


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
        self._all: set[_Decoder] = set()
        self._idle: deque[_Decoder] = deque()
        self._waiting: deque[asyncio.Future[_Decoder]] = deque()
        self._large = _Budget(settings.max_pixels)
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
        held = _Held(self._large)
        try:
            yield (await self._run(upload, info, held))[1]
        finally:
            held.give()

    async def close(self) -> None:
        """End all decoders now, whatever they do."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(decoder.child.kill() for decoder in self._all))
        self._idle.clear()

    async def _run(
        self, upload: Upload, info: ModelInfo, held: _Held | None = None
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """What a decoder says of an upload, and the image that it made."""
        for _ in range(ATTEMPTS):
            decoder = await self._acquire()
            # A task of its own: when the caller gives up, the decoder still has to come to an end with this photo.
            use = self._spawn(self._use(decoder, upload, info, held))
            try:
                return await asyncio.shield(use)
            except asyncio.CancelledError:
                if held is not None:
                    use.add_done_callback(lambda _: held.give())
                raise
            except ClosedError:
                if held is not None:
                    held.give()
        raise UnreadableImageError("Decoders die of this photo.", "Save it again, as JPEG or PNG.")

    async def _use(
        self, decoder: _Decoder, upload: Upload, info: ModelInfo, held: _Held | None
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        own = held or _Held(self._large)
        try:
            async with asyncio.timeout(self.timeout) as deadline:

                async def ask(pixels: int) -> bool:
                    """Wait for room, which does not count as the photo's time."""
                    deadline.reschedule(None)
                    taken = await own.take(pixels, self.settings.max_wait)
                    deadline.reschedule(asyncio.get_running_loop().time() + self.timeout)
                    return taken

                said = await decoder.run(upload, info, held is not None, ask)
                found = said, await decoder.image(said["shape"])
        except BluError:  # an answer, too
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
        finally:
            if held is None:
                own.give()
        self._release(decoder)
        self._tell(said["warnings"])
        return found

    async def _acquire(self) -> _Decoder:
        """A free decoder, for the longest waiting caller first."""
        if self._idle:
            return self._idle.popleft()
        waiting: asyncio.Future[_Decoder] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(self.settings.max_wait):
                return await waiting
        except TimeoutError:
            self._give_up(waiting)
            raise BusyError(
                "All decoders are busy with other photos.", "Try again after the time in Retry-After.", retry_after=1
            ) from None
        except asyncio.CancelledError:
            self._give_up(waiting)
            raise

    def _give_up(self, waiting: asyncio.Future[_Decoder]) -> None:
        """Take a caller out of the line; a decoder that it got just then goes to the next one."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        elif waiting.done() and not waiting.cancelled():
            self._release(waiting.result())

    def _release(self, decoder: _Decoder) -> None:
        """A decoder is free."""
        self._last_free = asyncio.get_running_loop().time()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(decoder)
                return
        self._idle.append(decoder)

    async def _replace(self, decoder: _Decoder, reason: str) -> None:
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

    async def _start(self) -> _Decoder:
        decoder = await _Decoder.start(self.settings)
        self._all.add(decoder)
        self._spawn(self._watch(decoder))
        return decoder

    async def _watch(self, decoder: _Decoder) -> None:
        """Replace a decoder that ends while it is idle: somebody has killed it."""
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
            task.exception()  # its caller may be gone, and then nobody else asks


class _Decoder:
    """A decoder process, and the memory that it shares with the server."""

    def __init__(self, child: AsyncChild, memory: mmap.mmap, room: int) -> None:
        self.child = child
        self._memory, self._room = memory, room
        self._images = np.frombuffer(memory, np.uint8, offset=room)
        self._info: ModelInfo | None = None

    @classmethod
    async def start(cls, settings: ServeSettings) -> _Decoder:
        """Start one; raises BluError where it does not come up."""
        room = -(-(settings.max_upload + ENVELOPE_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
        size = room + max(VARIABLE_CANVAS_BYTES, 3 * settings.max_pixels)
        handle = anonymous_memory()
        try:
            os.ftruncate(handle, size)
            memory = mmap.mmap(handle, size)
            config = {
                "memory": handle,
                "memory_size": size,
                "room": room,
                "max_memory": BYTES_PER_PIXEL * settings.max_pixels + SPARE_MEMORY,
                "max_pixels": settings.max_pixels,
                "max_json": settings.max_json,
                "small_photo": SMALL_PHOTO,
            }
            child = await AsyncChild.start("blu_export.serve.decoder:main", config, (handle,), ENVIRONMENT)
        finally:
            os.close(handle)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await child.receive()
        except (TimeoutError, ClosedError):
            raise BluError(f"A decoder does not start; exit code {await child.kill()}.", "Look at the log.") from None
        except BaseException:
            await child.kill()
            raise
        return cls(child, memory, room)

    async def run(self, upload: Upload, info: ModelInfo, pixels: bool, ask: Any) -> dict[str, Any]:
        """Have an upload decoded; ``ask`` says whether a photo of so many pixels may be."""
        self._memory[: len(upload.body)] = upload.body
        spec = {} if info is self._info else {"spec": info.spec.to_json()}
        self.child.send(form=upload.form, size=len(upload.body), pixels=pixels, **upload.details, **spec)
        self._info = info
        said = await self.child.receive()
        if "ask" in said:
            self.child.send(go=await ask(said["ask"]))
            said = await self.child.receive()
        return said

    async def image(self, shape: list[int]) -> NDArray[np.uint8]:
        """A copy of the image that the decoder made, uint8 [H, W, 3]."""
        size = int(np.prod(shape))
        shared = self._images[:size].reshape(shape)
        if size <= FREE_BEYOND:
            return shared.copy()
        copy = await asyncio.to_thread(shared.copy)
        if hasattr(mmap, "MADV_REMOVE"):
            self._memory.madvise(mmap.MADV_REMOVE, self._room, size)
        return copy


class _Budget:
    """Pixels of large photos that may be decoded at once; photos wait for them in line."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, pixels: int, patience: float) -> bool:
        """Wait for so many; False where they have not come after ``patience`` seconds."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((pixels, waiting))
        self._serve()
        try:
            async with asyncio.timeout(patience):
                await waiting
        except (TimeoutError, asyncio.CancelledError) as error:
            if (pixels, waiting) in self._line:
                self._line.remove((pixels, waiting))
            elif not waiting.cancelled():
                self._free += pixels
            self._serve()
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        return True

    def give(self, pixels: int) -> None:
        """They are free again."""
        self._free += pixels
        self._serve()

    def _serve(self) -> None:
        while self._line and self._line[0][0] <= self._free:
            pixels, waiting = self._line.popleft()
            if not waiting.done():
                self._free -= pixels
                waiting.set_result(None)


class _Held:
    """What one photo holds of a budget."""

    def __init__(self, budget: _Budget) -> None:
        self._budget, self._pixels = budget, 0

    async def take(self, pixels: int, patience: float) -> bool:
        """See _Budget; it may be given back."""
        if not await self._budget.take(pixels, patience):
            return False
        self._pixels += pixels
        return True

    def give(self) -> None:
        """Give all of it back."""
        pixels, self._pixels = self._pixels, 0
        self._budget.give(pixels)
