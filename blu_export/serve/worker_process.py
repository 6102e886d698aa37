"""WorkerProcess: the server's side of one worker process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker import SharedArrays, error_from_json
from blu_export.spec import ModelSpec

log = logging.getLogger(__name__)

LOAD_TIMEOUT = 600.0
"""Seconds until a model must be loaded and warm: ONNX Runtime's TensorRT provider builds an engine first."""
MAX_LINE = 2**24
"""Bytes of a line from the worker: a spec may name 10,000 classes."""


class WorkerLostError(Exception):
    """The worker process crashed or hung; it is gone now."""


@dataclass(frozen=True)
class ModelInfo:
    """What a worker said about the model that it loaded."""

    name: str
    spec: ModelSpec
    runtime: str
    device: str
    precision: str
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

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        info: ModelInfo,
        arrays: SharedArrays,
    ) -> None:
        self._process = process
        # One for all who wait: the process would keep a future of each wait() that was cancelled.
        self._exit = asyncio.ensure_future(process.wait())
        self._reader, self._writer = streams
        self.info = info
        self._arrays = arrays

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @classmethod
    async def start(cls, settings: ServeSettings) -> WorkerProcess:
        """Start a worker and wait until its model is warm.

        Raises:
            BluError: the model cannot be loaded; the worker's own error.
            WorkerLostError: the worker died, or did not finish within LOAD_TIMEOUT.
        """
        memory = _anonymous_memory()
        ours, theirs = socket.socketpair()
        try:
            config = {
                "parent": os.getpid(),
                "socket": theirs.fileno(),
                "memory": memory,
                "max_batch": settings.max_batch,
                "model": os.fspath(settings.model),
                "loader": settings.loader,
                "options": {
                    "runtime": settings.runtime,
                    "precision": settings.precision,
                    "device": settings.device,
                    "threads": settings.threads,
                },
            }
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "blu_export.serve.worker",
                json.dumps(config),
                pass_fds=(memory, theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # what a runtime prints is no result of ours
            )
            theirs.close()
            streams = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
            try:
                async with asyncio.timeout(LOAD_TIMEOUT):
                    said = await _read(streams[0])
                info = ModelInfo(
                    name=settings.model.stem,
                    spec=ModelSpec.from_json(said.pop("spec"), os.fspath(settings.model)),
                    **said,
                )
                return cls(process, streams, info, SharedArrays(memory, info.spec, settings.max_batch))
            except BaseException as error:
                streams[1].close()
                await _kill(process)
                if isinstance(error, TimeoutError):
                    raise WorkerLostError(f"the model was not loaded within {LOAD_TIMEOUT:.0f} s") from None
                raise
        finally:
            theirs.close()
            os.close(memory)  # the mapping stays

    async def run(
        self, canvases: Sequence[NDArray[np.uint8]], windows: Sequence[NDArray[np.float32]], timeout: float
    ) -> RawBatch:
        """Run the network on canvases of one size: uint8 [H, W, 3] each, windows float32 [4].

        Raises:
            BluError: the runtime refused; the worker lives on.
            WorkerLostError: the worker crashed, or took longer than ``timeout`` seconds and was killed.
        """
        count, (height, width) = len(canvases), canvases[0].shape[:2]

        def copy_in() -> None:
            np.stack(canvases, out=self._arrays.canvases(count, height, width))
            np.stack(windows, out=self._arrays.windows[:count])

        def copy_out() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return self._arrays.detections[:count].copy(), self._arrays.masks[:count].copy()

        try:
            async with asyncio.timeout(timeout):
                await asyncio.to_thread(copy_in)
                self._writer.write(json.dumps({"shape": [count, height, width]}).encode() + b"\n")
                await self._writer.drain()
                said = await _read(self._reader)
                detections, masks = await asyncio.to_thread(copy_out)
        except TimeoutError:
            await self.kill()
            raise WorkerLostError(f"hang: a batch of {count} took more than {timeout:.0f} s") from None
        except (WorkerLostError, ConnectionError):
            code = await self.kill()
            raise WorkerLostError(f"crash: the worker ended with code {code}") from None
        except asyncio.CancelledError:
            await self.kill()  # the next answer would be this batch's
            raise
        return RawBatch(detections, masks, said["seconds"])

    def fit(self, height: int, width: int) -> int:
        """How many canvases of this size make a batch; 0: not even one fits."""
        return self._arrays.fit(height, width)

    async def ended(self) -> None:
        """Wait for the worker's end; it always raises WorkerLostError then."""
        await asyncio.wait((self._exit,))
        code = self._exit.result()
        raise WorkerLostError(f"crash: the idle worker ended with code {code}")

    async def kill(self) -> int:
        """End the worker now; returns its exit code."""
        self._writer.close()
        return await _kill(self._process)

    async def close(self) -> None:
        """Let the worker end by itself; it is idle."""
        self._writer.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            await _kill(self._process)


def _anonymous_memory() -> int:
    """File descriptor of memory without a name: gone with its last user, and not limited by the size of /dev/shm."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("blu-serve")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise WorkerLostError("the worker ended")
    said: dict[str, Any] = json.loads(line)
    if "error" in said:
        raise error_from_json(*said["error"])
    return said


async def _kill(process: asyncio.subprocess.Process) -> int:
    if process.returncode is None:
        with suppress(ProcessLookupError):  # it has just ended by itself
            process.kill()
    return await process.wait()
