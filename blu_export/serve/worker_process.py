"""WorkerProcess: the server's side of one worker process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from blu_export.serve.logs import ProcessLines
from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker import SharedArrays
from blu_export.spec import ModelSpec
from blu_export.workers.channel import ClosedError
from blu_export.workers.memory import anonymous_memory
from blu_export.workers.owner import AsyncChild, WorkerLostError

T = TypeVar("T")

COPIED_AT_ONCE = 2**20
"""Bytes that the event loop copies itself: about 0.1 ms."""
LOAD_TIMEOUT = 600.0
"""Seconds until a model must be loaded and warm: ONNX Runtime's TensorRT provider builds an engine first."""


@dataclass(frozen=True)
class ModelInfo:
    """What a worker said about the model that it loaded."""

    name: str
    spec: ModelSpec
    runtime: str
    device: str
    precision: str
    lanes: int
    """Canvases that go best at once, each on cores of its own; 1: as a batch."""
    sha256: str
    seconds: float
    """Of one canvas, when warm."""


@dataclass(frozen=True)
class RawBatch:
    """What the network made of a batch."""

    detections: NDArray[np.float32]
    """float32 [B, N, 6]"""
    masks: NDArray[np.float32]
    """float32 [B, N, h, w]"""
    seconds: float
    """That the network took."""


class WorkerProcess:
    """A loaded model in a worker process. Runs one batch at a time.

    Use ``await WorkerProcess.start(settings)``.
    """

    def __init__(self, child: AsyncChild, info: ModelInfo, arrays: SharedArrays) -> None:
        self._child = child
        self.info = info
        self._arrays = arrays

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._child.pid

    @classmethod
    async def start(cls, settings: ServeSettings) -> WorkerProcess:
        """Start a worker and wait until its model is warm.

        Raises:
            BluError: the model cannot be loaded; the worker's own error.
            WorkerLostError: the worker died, or did not finish within LOAD_TIMEOUT.
        """
        memory = anonymous_memory()
        config = {
            "memory": memory,
            "max_batch": settings.max_batch,
            "model": os.fspath(settings.model),
            "loader": settings.loader,
            "options": asdict(settings.options),
        }
        try:
            lines = ProcessLines("worker")
            child = await AsyncChild.start("blu_export.serve.worker:main", config, (memory,), lines=lines)
            try:
                async with asyncio.timeout(LOAD_TIMEOUT):
                    said = await child.receive()
                info = ModelInfo(
                    name=settings.model.stem,
                    spec=ModelSpec.from_json(said.pop("spec"), os.fspath(settings.model)),
                    **said,
                )
                return cls(child, info, SharedArrays(memory, info.spec, settings.max_batch))
            except BaseException as error:
                code = await child.kill()
                if isinstance(error, TimeoutError):
                    raise WorkerLostError(f"the model was not loaded within {LOAD_TIMEOUT:.0f} s") from None
                if isinstance(error, ClosedError):
                    raise WorkerLostError(f"the worker ended with code {code}") from None
                raise
        finally:
            os.close(memory)  # the mapping stays

    async def run(
        self, canvases: Sequence[NDArray[np.uint8]], windows: Sequence[NDArray[np.float32]], timeout: float
    ) -> RawBatch:
        """Run the network on canvases that go ``together``: uint8 [H, W, 3] each, windows float32 [4].

        Raises:
            BluError: the runtime refused; the worker lives on.
            WorkerLostError: the worker crashed, or took longer than ``timeout`` seconds and was killed.
        """
        count = len(canvases)
        shapes = [canvas.shape[:2] for canvas in canvases]

        def copy_in() -> None:
            for room, canvas in zip(self._arrays.canvases(shapes), canvases, strict=True):
                room[:] = canvas
            np.stack(windows, out=self._arrays.windows[:count])

        def copy_out() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return self._arrays.detections[:count].copy(), self._arrays.masks[:count].copy()

        try:
            async with asyncio.timeout(timeout):
                await copying(copy_in, sum(canvas.nbytes for canvas in canvases))
                self._child.send(shapes=shapes)
                said = await self._child.receive()
                detections, masks = await copying(copy_out, self._arrays.masks[:count].nbytes)
        except TimeoutError:
            await self.kill()
            raise WorkerLostError(f"hang: a batch of {count} took more than {timeout:.0f} s") from None
        except ClosedError:
            code = await self.kill()
            raise WorkerLostError(f"crash: the worker ended with code {code}") from None
        except asyncio.CancelledError:
            await self.kill()  # the next answer would be this batch's
            raise
        return RawBatch(detections, masks, said["seconds"])

    @property
    def most(self) -> int:
        """Canvases that go at once, at most."""
        return self.info.lanes if self.info.lanes > 1 else len(self._arrays.windows)

    def together(self, shapes: Sequence[Sequence[int]]) -> list[int]:
        """Places of those canvases, given by height and width, that go at once: the first one and others.

        A batch's are of one size, those in lanes need not be. None at all: the first one is too large.
        """
        places = [place for place, shape in enumerate(shapes) if self.info.lanes > 1 or shape == shapes[0]]
        places = places[: self.most]
        return places[: self._arrays.fit([shapes[place] for place in places])]

    async def ended(self) -> None:
        """Wait for the worker's end; it always raises WorkerLostError then."""
        code = await self._child.ended()
        raise WorkerLostError(f"crash: the idle worker ended with code {code}")

    async def kill(self) -> int:
        """End the worker now; returns its exit code."""
        return await self._child.kill()

    async def close(self) -> None:
        """Let the worker end by itself; it is idle."""
        await self._child.close()


async def copying(copy: Callable[[], T], size: int) -> T:
    """Copy ``size`` bytes: at once where that takes less time than a thread takes to wake up."""
    return copy() if size <= COPIED_AT_ONCE else await asyncio.to_thread(copy)
