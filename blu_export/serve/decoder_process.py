"""DecoderProcess: the server's side of one decoder."""

from __future__ import annotations

import asyncio
import mmap
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError
from blu_export.serve.budget import Holding
from blu_export.serve.logs import ProcessLines
from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker import VARIABLE_CANVAS_BYTES
from blu_export.serve.worker_process import ModelInfo, copying
from blu_export.workers.channel import ClosedError
from blu_export.workers.memory import anonymous_memory
from blu_export.workers.owner import AsyncChild

SMALL_PHOTO = 4_000_000
"""Pixels up to which a photo is always decoded; larger ones together have at most the pixels of one photo."""
BYTES_PER_PIXEL = 32
"""Memory that a decoder may take for a photo: a lossless WebP of 50 megapixels takes 20."""
SPARE_MEMORY = 2**28
"""Bytes that it may take beside those."""
START_TIMEOUT = 60.0
FREE_BEYOND = 8 * 2**20
"""Bytes of an image in shared memory that go back to the system when it has been copied."""
FREED = 2**22
"""Bytes of it that go back at a time."""
ENVELOPE_BYTES = 2**17
"""Of a gRPC message beside the photo, amply."""
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


class LargePhotoError(Exception):
    """A photo for whose pixels there is no room now."""

    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        self.pixels = pixels


class DecoderProcess:
    """A decoder process, and the memory that it shares with the server."""

    def __init__(self, child: AsyncChild, memory: mmap.mmap, room: int) -> None:
        self.child = child
        self._memory, self._room = memory, room
        self._bytes = np.frombuffer(memory, np.uint8)
        self._info: ModelInfo | None = None

    @classmethod
    async def start(cls, settings: ServeSettings) -> DecoderProcess:
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
                "bytes_per_pixel": BYTES_PER_PIXEL,
                "spare_memory": SPARE_MEMORY,
                "max_pixels": settings.max_pixels,
                "max_json": settings.max_json,
                "small_photo": SMALL_PHOTO,
            }
            lines = ProcessLines("decoder")
            child = await AsyncChild.start("blu_export.serve.decoder:main", config, (handle,), ENVIRONMENT, lines)
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

    async def run(self, upload: Upload, info: ModelInfo, pixels: bool, held: Holding) -> dict[str, Any]:
        """Have an upload decoded, to its canvas or its ``pixels``.

        Raises:
            BluError: it cannot be.
            LargePhotoError: there is no room for its pixels now.
            ClosedError: the decoder has died.
        """
        length = len(upload.body)
        await copying(lambda: np.copyto(self._bytes[:length], np.frombuffer(upload.body, np.uint8, length)), length)
        spec = {} if info is self._info else {"spec": info.spec.to_json()}
        self.child.send(form=upload.form, size=length, pixels=pixels, **upload.details, **spec)
        self._info = info
        said = await self.child.receive()
        if "ask" in said:
            size = said["ask"]
            self.child.send(go=held.take_now(size))
            said = await self.child.receive()
            if "later" in said:
                raise LargePhotoError(size)
        return said

    async def image(self, shape: list[int]) -> NDArray[np.uint8]:
        """A copy of the image that the decoder made, uint8 [H, W, 3]."""
        size = int(np.prod(shape))
        shared = self._bytes[self._room : self._room + size].reshape(shape)

        if size <= FREE_BEYOND:
            return shared.copy()
        copy = await asyncio.to_thread(shared.copy)
        if hasattr(mmap, "MADV_REMOVE"):
            await asyncio.to_thread(self._free, self._room + size)
        return copy

    def _free(self, end: int) -> None:
        """Give the memory of an image back, a little at a time: no thread of ours runs while that is done."""
        for start in range(self._room, end, FREED):
            self._memory.madvise(mmap.MADV_REMOVE, start, min(FREED, end - start))
