"""An open-loop load generator, and what one needs to drive a server: processes, memory, percentiles.

Open loop: requests leave at their scheduled times, whether or not earlier ones were answered, and every latency
counts from the scheduled time. A closed loop would slow down together with the server and hide the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEGABYTE = 2**20
PATIENCE = 90.0
"""Seconds until a request counts as lost."""
LOST, REFUSED = 0, -1
"""Statuses of a request without an answer: the connection broke or stalled; no one listened."""


@dataclass(frozen=True)
class Reply:
    """What became of one request."""

    status: int
    seconds: float
    """From the scheduled time to the last byte."""
    at: float = 0.0
    """Scheduled time, from the start of the load."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    """Of a lost one: why."""

    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


def request(
    body: bytes, path: str = "/v1/predict", headers: dict[str, str] | None = None, method: str = "POST"
) -> bytes:
    """The bytes of a request on a connection of its own."""
    lines = {"Host": "blu", "Content-Length": str(len(body)), "Connection": "close"} | (headers or {})
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    return head.encode() + b"\r\n" + body


async def exchange(port: int, data: bytes, scheduled: float | None = None, start: float = 0.0) -> Reply:
    """Send bytes on a new connection and read to its end; times are ``time.perf_counter``'s."""
    scheduled = time.perf_counter() if scheduled is None else scheduled

    def done(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Reply:
        return Reply(status, time.perf_counter() - scheduled, scheduled - start, headers or {}, body)

    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                with contextlib.suppress(ConnectionError):  # an early answer may be there all the same
                    await writer.drain()
                answer = await reader.read()
            finally:
                writer.close()
    except ConnectionRefusedError:
        return done(REFUSED)
    except (OSError, TimeoutError) as error:
        return done(LOST, body=repr(error).encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1.1 "):
        return done(LOST, body=b"no answer: " + answer[:100])
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in rest)}
    if len(body) < int(headers.get("content-length", 0)):
        return done(LOST, body=b"cut short: " + answer[:1000])
    return done(int(first.split(" ")[1]), headers, body)


async def open_loop(port: int, rate: float, seconds: float, next_request: Callable[[int], bytes]) -> list[Reply]:
    """``rate`` requests per second for ``seconds``, evenly spaced; waits for all replies."""
    start = time.perf_counter()
    tasks: list[asyncio.Task[Reply]] = []
    for index in range(round(rate * seconds)):
        scheduled = start + index / rate
        await asyncio.sleep(max(0.0, scheduled - time.perf_counter()))
        tasks.append(asyncio.create_task(exchange(port, next_request(index), scheduled, start)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(port: int, clients: int, seconds: float, next_request: Callable[[int], bytes]) -> list[Reply]:
    """``clients`` clients that send the next request as soon as they have their answer: for throughput only."""
    start, replies, numbers = time.perf_counter(), [], iter(range(10**9))

    async def client() -> None:
        while time.perf_counter() - start < seconds:
            replies.append(await exchange(port, next_request(next(numbers)), start=start))

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


def summary(replies: Sequence[Reply]) -> dict[str, Any]:
    """Counts by status, and percentiles of the latency of those that were answered 200."""
    times = sorted(reply.seconds for reply in replies if reply.status == 200)
    return {
        "requests": len(replies),
        "statuses": {str(status): count for status, count in sorted(Counter(r.status for r in replies).items())},
        "p50_s": percentile(times, 50),
        "p99_s": percentile(times, 99),
        "max_s": percentile(times, 100),
    }


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Nearest rank; None of nothing."""
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 4) if ordered else None


class ServerProcess:
    """A server under test: its log, its workers, its memory."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.log_bytes = 0
        self.port = 0
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, command: Sequence[str | Path], env: dict[str, str] | None = None, open_files: int | None = None
    ) -> ServerProcess:
        """Start a command that logs to stderr as ``blu serve`` does, and wait until it listens.

        Args:
            command: program and arguments.
            env: variables added to the environment.
            open_files: limit of open files, soft and hard.
        """
        if open_files is not None:
            command = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *command]
        process = await asyncio.create_subprocess_exec(
            *command, stderr=asyncio.subprocess.PIPE, limit=2**20, env={**os.environ, **(env or {})}
        )
        server = cls(process)
        server.port = (await server.wait_for("listening"))["port"]
        return server

    async def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The ``count``-th line of the log with this event."""
        async with asyncio.timeout(PATIENCE), self._news:
            while len(found := [line for line in self.lines if line["event"] == event]) < count:
                if self._reading.done():
                    raise RuntimeError(f"the server ended: {self.lines[-5:]}")
                await self._news.wait()
        return found[count - 1]

    @property
    def worker(self) -> int:
        """Process id of the current worker."""
        found = [line for line in self.lines if line["event"] in ("model ready", "worker restarted")]
        return int(found[-1]["worker"])

    def memory(self) -> dict[str, int]:
        """Bytes that server, worker and decoders have in memory for themselves (proportional set size)."""
        decoders = [pid for pid in _children(self.process.pid) if pid != self.worker]
        return {
            "server": _pss(self.process.pid),
            "worker": _pss(self.worker),
            "decoders": sum(map(_pss, decoders)),
        }

    def total_memory(self) -> int:
        """Bytes that all its processes have in memory for themselves, while decoders come and go."""
        found = 0
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                found += _pss(pid)
        return found

    async def stop(self, number: int) -> int:
        """Send a signal and wait; the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        code = await self.process.wait()
        await self._reading
        return code

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            self.log_bytes += len(raw)
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": "text", "text": raw.decode(errors="replace").rstrip()}
            async with self._news:
                self.lines.append(line)
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, but for those that have gone meanwhile."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            found += _children(each)
    return found


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


async def until(condition: Callable[[], Awaitable[bool]], limit: float, pause: float = 0.05) -> float | None:
    """Seconds until a condition holds; None if not within ``limit`` seconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < limit:
        if await condition():
            return time.perf_counter() - start
        await asyncio.sleep(pause)
    return None
