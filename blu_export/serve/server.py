"""The process: its sockets, its open files, and HTTP and gRPC side by side."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from typing import Any

import uvicorn

from blu_export.errors import UsageError
from blu_export.serve.app import create_app
from blu_export.serve.hangups import Hangups
from blu_export.serve.logs import flush
from blu_export.serve.protocol import guarded_protocol
from blu_export.serve.service import KEEP_ALIVE, Service
from blu_export.serve.settings import ServeSettings
from blu_export.serve.signals import Ending

log = logging.getLogger(__name__)

ACCEPTED = 16
"""Connections taken in a round of the event loop: those beyond the limit are closed in the next ones, before the spare
files are used up."""
BACKLOG = 1024
"""Connections that wait in the system."""
SPARE_FILES = 64
"""Kept in hand for everything that is not a connection."""
SWITCH_INTERVAL = 0.001
"""Seconds that a thread which finishes an answer computes on while the event loop wants to. Python's own 0.005 is paid
several times for each small request, and more often where other programs want the cores."""
GRPC_GRACE = 1.0
"""Seconds for answers to leave, after all work is done."""


class Server(uvicorn.Server):
    """uvicorn without its handling of signals (see signals); it says when it listens."""

    def __init__(self, config: uvicorn.Config, address: dict[str, Any]) -> None:
        super().__init__(config)
        self.address = address
        """What is logged of the address."""

    def capture_signals(self) -> Any:
        """Leave signals alone."""
        return nullcontext()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, and only then say so: who waits for the line may connect at once."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(BACKLOG)
        log.info("listening", extra=self.address)
        if sys.stderr.isatty() and "url" in self.address:
            log.info(f"Open {self.address['url']}, Ctrl-C stops")


def run(settings: ServeSettings, hangups: Hangups | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is inside.

    Args:
        settings: of the server.
        hangups: from before; None: they count from now on.

    Raises:
        BluError: the model cannot be loaded, or the address cannot be listened on.
        KeyboardInterrupt: it was SIGINT.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    interrupted = asyncio.run(_serve(_within_open_files(settings), hangups or Hangups()))
    flush()
    if interrupted:
        raise KeyboardInterrupt


async def _serve(settings: ServeSettings, hangups: Hangups) -> bool:
    sockets = [_listen(settings)]  # first: a taken port is known before a model is loaded
    try:
        async with Service(settings) as service:
            return await _serve_on(sockets, service, hangups)
    finally:
        for each in sockets:
            each.close()


async def _serve_on(sockets: list[Any], service: Service, hangups: Hangups) -> bool:
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
        ending.watch(hangups)
        await server.serve(sockets)
    log.info("stopped")
    return ending.interrupted


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
