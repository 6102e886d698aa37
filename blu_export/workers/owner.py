"""The owner's side of a worker process: start it, talk with it, end it; in threads or in an event loop."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from blu_export.workers.channel import MAX_LINE, Channel, ClosedError, from_line, to_line

STDERR = 2
CLOSE_PATIENCE = 5.0
"""Seconds that an idle worker has to end by itself."""
MAX_STDERR_LINE = 1000
"""Bytes of a line that a worker writes to stderr; the rest of it is a line of its own."""
LAST_LINES = 0.5
"""Seconds after a worker's end in which its last lines are read."""
_starter = ThreadPoolExecutor(1, "blu-start")
"""Starts all workers: Linux ends them with the thread that started them, and this one lives as long as the process."""


class WorkerLostError(Exception):
    """The worker process ended or hung; it is gone now."""


class Child:
    """A worker process and our end of its channel.

    Args:
        entry: ``module:function`` that it runs; it is called with a Channel and the configuration.
        config: JSON values.
        handles: file descriptors that it inherits under the same numbers.
        environment: variables that it has beside ours.
        lines: called, in a thread, with each line that it writes to stdout or stderr, which are read whatever it
            does; None: they go to our stderr, and the worker blocks while no one reads them.
    """

    def __init__(
        self,
        entry: str,
        config: Mapping[str, Any],
        handles: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        lines: Callable[[bytes], None] | None = None,
    ) -> None:
        self._reader: threading.Thread | None = None
        self.socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "blu_export.workers.entry"]
        arguments = [str(os.getpid()), str(theirs.fileno()), entry, json.dumps(config)]
        try:
            with theirs, nullcontext(STDERR) if lines is None else self._read(lines) as output:
                self._process = _starter.submit(
                    subprocess.Popen,
                    [*command, *arguments],
                    pass_fds=(theirs.fileno(), *handles),
                    stdin=subprocess.DEVNULL,
                    stdout=output,  # what a runtime prints is not a result of ours
                    stderr=output,
                    env={**os.environ, **(environment or {})},
                ).result()
        except BaseException:
            self.socket.close()
            raise
        self.channel = Channel(self.socket)

    @contextmanager
    def _read(self, lines: Callable[[bytes], None]) -> Iterator[int]:
        """A pipe that a thread reads; its other end is the worker's alone after the block."""
        reads, writes = os.pipe()
        self._reader = threading.Thread(target=_pass_on, args=(reads, lines), name="blu-lines", daemon=True)
        self._reader.start()
        try:
            yield writes
        finally:
            os.close(writes)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait(self, patience: float | None = None) -> int | None:
        """Wait for the process's end; its exit code, None where it has not come after ``patience`` seconds."""
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        if self._reader is not None:
            self._reader.join(LAST_LINES)  # it goes on for as long as a process of the worker's own lives
        return code

    def kill(self) -> None:
        """End the process now; readers of its messages get ClosedError."""
        self._process.kill()

    def close(self) -> None:
        """End the process now, and wait until it has ended."""
        self.kill()
        self._process.wait()
        self.channel.close()


class AsyncChild:
    """A worker process for an event loop. It answers every message with one.

    Use ``await AsyncChild.start(…)``, with the arguments of Child.
    """

    def __init__(self, child: Child, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self._child = child
        self._reader, self._writer = streams
        self._exit = asyncio.ensure_future(_exit_code(child))
        """One for all who wait."""

    @classmethod
    async def start(cls, *arguments: Any, **named: Any) -> AsyncChild:
        """Start one; it may not have come to its function yet."""
        child = Child(*arguments, **named)
        try:
            return cls(child, await asyncio.open_connection(sock=child.socket, limit=MAX_LINE))
        except BaseException:
            child.close()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def send(self, **message: Any) -> None:
        """Send a message, which must be a short one."""
        self._writer.write(to_line(message))

    async def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            BluError: it is an error.
            ClosedError: the worker has ended.
        """
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError) as error:  # ValueError: longer than MAX_LINE
            raise ClosedError from error
        if not line.endswith(b"\n"):
            raise ClosedError
        return from_line(line)

    async def ended(self) -> int:
        """Wait for the process's end; its exit code. A caller that is canceled leaves no trace."""
        await asyncio.wait((self._exit,))
        return self._exit.result()

    async def kill(self) -> int:
        """End the worker now; returns its exit code."""
        self._writer.close()
        self._child.kill()
        return await self.ended()

    async def close(self) -> None:
        """Let an idle worker end by itself; it is killed when it does not."""
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):
                await self.ended()
        except TimeoutError:
            await self.kill()


def _pass_on(descriptor: int, lines: Callable[[bytes], None]) -> None:
    """Give what comes out of a pipe to a function, line by line, until all who write into it have ended."""
    with open(descriptor, "rb") as pipe:
        while line := pipe.readline(MAX_STDERR_LINE):
            lines(line.rstrip(b"\r\n"))


async def _exit_code(child: Child) -> int:
    """Wait for a process in a thread of its own: a pool's threads would be used up by workers that live on."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[int] = loop.create_future()

    def wait() -> None:
        code = child.wait()
        assert code is not None
        with suppress(RuntimeError):  # the loop is closed: no one waits any more
            loop.call_soon_threadsafe(_settle, found, code)

    threading.Thread(target=wait, name="blu-wait", daemon=True).start()
    return await found


def _settle(found: asyncio.Future[int], code: int) -> None:
    if not found.done():
        found.set_result(code)
