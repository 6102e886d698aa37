"""SIGTERM, SIGINT and SIGHUP: an orderly end, and a new model."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blu_export.serve.hangups import Hangups
from blu_export.serve.service import Service, State

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

POLL = 0.05


class Ending:
    """What SIGTERM, SIGINT and SIGHUP do.

    SIGTERM: ``ready`` turns 503 while the server goes on for ``notice`` seconds, so that load balancers stop
    sending; then new work is refused, what is inside is finished (at most ``drain`` seconds), the sockets
    close. SIGINT is the same without notice. A second signal does not wait for anything.
    """

    def __init__(self, service: Service, server: uvicorn.Server) -> None:
        self.service = service
        self.server = server
        self.interrupted = False
        self._asked = self._reloading = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def watch(self, hangups: Hangups) -> None:
        """Take over the signals; a SIGHUP that came before is done now."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.begin, number)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        if hangups.came:
            self.reload()

    def begin(self, number: int) -> None:
        """The handler of SIGTERM and SIGINT."""
        if self.service.state is not State.SERVING:
            log.warning("second signal: stopping now")
            self.server.force_exit = self.server.should_exit = True
            return
        self.interrupted = number == signal.SIGINT
        self.service.state = State.LEAVING
        self._spawn(self._drain(0.0 if self.interrupted else self.service.settings.notice))

    def reload(self) -> None:
        """The handler of SIGHUP."""
        self._asked = True
        if not self._reloading:
            self._reloading = True
            self._spawn(self._reload())

    async def _reload(self) -> None:
        """Reload once for all that came before, and again only where the file has changed since."""
        try:
            while self._asked:
                self._asked = False
                before = _state_of(self.service.settings.model)
                await self.service.reload()
                self._asked &= _state_of(self.service.settings.model) != before
        finally:
            self._reloading = False

    async def _drain(self, notice: float) -> None:
        log.info("stopping", extra={"inside": self.service.inside, "notice_s": notice})
        loop = asyncio.get_running_loop()
        end = loop.time() + self.service.settings.drain
        await asyncio.sleep(notice)
        self.service.state = State.CLOSING
        while self.service.inside and loop.time() < end:
            await asyncio.sleep(POLL)
        # A client that still sends its body gets no answer to wait for.
        self.server.config.timeout_graceful_shutdown = max(1, round(min(end - loop.time(), 5)))
        self.server.should_exit = True

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _state_of(path: Path) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
