"""The process: sockets that are not waited for forever, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from typing import Any

import uvicorn

from blu_export.errors import UsageError
from blu_export.serve.app import create_app
from blu_export.serve.logs import flush
from blu_export.serve.protocol import guarded_protocol
from blu_export.serve.service import KEEP_ALIVE, Service, State
from blu_export.serve.settings import ServeSettings

log = logging.getLogger(__name__)

ACCEPTED = 16
"""Connections taken in a round of the event loop: those beyond the limit are closed in the next ones, before the spare
files are used up."""
BACKLOG = 1024
"""Connections that wait in the system."""
SPARE_FILES = 64
"""Kept in hand for everything that is not a connection."""
POLL = 0.05
GRPC_GRACE = 1.0
"""Seconds for answers to leave, after all work is done."""


class Server(uvicorn.Server):
    """uvicorn without its handling of signals (see Ending); it says when it listens."""

    def __init__(self, config: uvicorn.Config, address: dict[str, Any]) -> None:
        super().__init__(config)
        self.address = address
        """What is told of the address."""

    def capture_signals(self) -> Any:
        """Leave signals alone."""
        return nullcontext()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, and only then say so: who waits for the line may connect at once."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(BACKLOG)
        log.info("listening", extra=self.address)


def run(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is inside.

    Raises:
        BluError: the model cannot be loaded, or the address cannot be listened on.
        KeyboardInterrupt: it was SIGINT.
    """
    interrupted = asyncio.run(_serve(_within_open_files(settings)))
    flush()
    if interrupted:
        raise KeyboardInterrupt


async def _serve(settings: ServeSettings) -> bool:
    sockets = [_listen(settings)]  # first: a taken port is known before a model is loaded
    try:
        async with Service(settings) as service:
            return await _serve_on(sockets, service)
    finally:
        for each in sockets:
            each.close()


async def _serve_on(sockets: list[Any], service: Service) -> bool:
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        http=guarded_protocol(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        backlog=ACCEPTED,
    )
    async with AsyncExitStack() as stack:
        address = _address(settings.host, sockets[0].getsockname()[1])
        if settings.grpc_port is not None:
            from blu_export.serve import rpc

            rpc_server, address["grpc_port"] = await rpc.start(service)
            stack.push_async_callback(rpc_server.stop, GRPC_GRACE)
        server = Server(config, address)
        ending = Ending(service, server)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.begin, number)
        loop.add_signal_handler(signal.SIGHUP, ending.reload)
        await server.serve(sockets)
    log.info("stopped")
    return ending.interrupted


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
        self._tasks: set[asyncio.Task[Any]] = set()

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
        self._spawn(self.service.reload())

    async def _drain(self, notice: float) -> None:
        log.info("stopping", extra={"inside": self.service.inside, "notice_s": notice})
        loop = asyncio.get_running_loop()
        end = loop.time() + self.service.settings.drain
        await asyncio.sleep(notice)
        self.service.state = State.CLOSING
        while self.service.inside and loop.time() < end:
            await asyncio.sleep(POLL)
        # Whoever still sends its body gets no answer to wait for.
        self.server.config.timeout_graceful_shutdown = max(1, round(min(end - loop.time(), 5)))
        self.server.should_exit = True

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _listen(settings: ServeSettings) -> Any:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.socket(*found[0][:3])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[0][4])
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.", "Choose another with --port."
        ) from error
    return listener


def _address(host: str, port: int) -> dict[str, Any]:
    return {"url": f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", "port": port}


def _within_open_files(settings: ServeSettings) -> ServeSettings:
    """Raise the limit of open files, 1,024 on many systems, to what the connections need; or have fewer of them.

    Raises:
        UsageError: there is no room for connections at all.
    """
    protocols = 1 if settings.grpc_port is None else 2
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = SPARE_FILES + len(os.listdir("/dev/fd"))
    limit = settings.max_connections * protocols + spare
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft == resource.RLIM_INFINITY or limit <= soft:
        limit = soft if soft != resource.RLIM_INFINITY else limit
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    connections = min(settings.max_connections, (limit - spare) // protocols)
    if connections < 1:
        raise UsageError(f"The limit of open files, {limit}, leaves none for connections.", "Raise it: ulimit -n 4096")
    if connections < settings.max_connections:
        log.warning("fewer connections", extra={"open_files": limit, "connections": connections})
    return replace(settings, max_connections=connections)
