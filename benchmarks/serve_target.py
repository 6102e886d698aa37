"""What ``python -m benchmarks serve`` measures: a server that can be started, photos, and their right answers."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loadgen import MEGABYTE, Reply, ServerProcess, closed_loop, exchange, request

SCORE_TOLERANCE = 0.01
"""Batches of different sizes round differently."""

Start = Callable[..., Awaitable[ServerProcess]]


@dataclass
class Target:
    """What is served, the photos that are sent, and the detections that they must get."""

    start: Start
    """``start(**settings)`` starts a server; ``open_files`` is its limit of open files."""
    photos: Sequence[bytes]
    name: str
    """Of the model."""
    expected: Sequence[Any] = ()
    rate: float = 0.0
    """Photos per second that one server can do."""
    unloaded: float = 0.0
    """Seconds that a photo takes in a quiet server."""

    def request(self, index: int) -> bytes:
        """The ``index``-th request."""
        return request(self.photos[index % len(self.photos)], "/v1/predict?masks=none")

    async def learn(self) -> None:
        """Ask a quiet server for the right answers and its pace."""
        server = await self.start()
        try:
            replies = [await exchange(server.port, self.request(index)) for index in range(len(self.photos))]
            self.expected = [reply.json()["detections"] for reply in replies]
            self.unloaded = float(np.median([reply.seconds for reply in replies]))
            self.rate = await pace(server, self, max(2.0, 8 * self.unloaded))
        finally:
            await server.stop(signal.SIGKILL)

    def wrong(self, replies: Sequence[Reply]) -> int:
        """How many of the answers (in the order of their requests) are not the right ones."""
        return sum(
            not same(reply.json()["detections"], self.expected[index % len(self.photos)])
            for index, reply in enumerate(replies)
            if reply.status == 200
        )


@dataclass(frozen=True)
class Warm:
    """A server that has answered a photo, so that everything it needs for one is in memory."""

    server: ServerProcess
    before: int
    """Bytes of the server's process then."""

    def growth_mb(self) -> float:
        """Megabytes that the server's process has taken since."""
        return round((self.server.memory()["server"] - self.before) / MEGABYTE, 1)


@asynccontextmanager
async def warm_server(target: Target, **settings: Any) -> AsyncIterator[Warm]:
    """A fresh server for one scenario."""
    server = await target.start(**settings)
    try:
        await exchange(server.port, target.request(0))
        yield Warm(server, server.memory()["server"])
    finally:
        await server.stop(signal.SIGKILL)


def same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether two lists of detections are equal but for rounding."""
    return len(found) == len(expected) and all(
        one["class_id"] == other["class_id"]
        and abs(one["score"] - other["score"]) < SCORE_TOLERANCE
        and all(abs(a - b) <= 2 for a, b in zip(one["box"], other["box"], strict=True))
        for one, other in zip(found, expected, strict=True)
    )


async def pace(server: ServerProcess, target: Target, seconds: float, clients: int = 8) -> float:
    """Photos per second with ``clients`` impatient clients."""
    start = time.perf_counter()
    replies = await closed_loop(server.port, clients, seconds, target.request)
    return sum(reply.status == 200 for reply in replies) / (time.perf_counter() - start)


async def ready(server: ServerProcess) -> bool:
    """Whether the server says that it takes work."""
    return (await exchange(server.port, request(b"", "/v2/health/ready", method="GET"))).status == 200


def demo_photos(count: int = 6) -> list[bytes]:
    """Variations of the demo photo that get different detections: crops and mirror images."""
    from PIL import Image, ImageOps

    from blu_export.embedded import DEMO_PHOTO, embedded

    found = []
    with Image.open(embedded(DEMO_PHOTO)) as opened:
        photo = opened.convert("RGB")
    width, height = photo.size
    for index in range(count):
        cut = index * width // 20
        variant = photo.crop((cut, 0, width, height - cut))
        buffer = io.BytesIO()
        (ImageOps.mirror(variant) if index % 2 else variant).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def blu_target(model: Path) -> Target:
    """``blu serve MODEL`` as a user starts it."""
    blu = shutil.which("blu", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    assert blu is not None, "blu is not installed"

    async def start(open_files: int | None = None, **settings: Any) -> ServerProcess:
        options = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return await ServerProcess.start([blu, "serve", model, "--port", "0", *options], open_files=open_files)

    return Target(start, demo_photos(), model.stem)
