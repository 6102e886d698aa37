"""The peers of gRPC calls: shares of what all clients have in common, and a way to cut one off."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address
from urllib.parse import unquote

from blu_export.serve.errors import BusyError

DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


class Places:
    """Places for messages on their way: some for each connection, more for each peer, and not all for one of either.

    Who finds none waits, and a place that becomes free goes to the connection that has the fewest: a client that
    holds places without sending anything keeps no one waiting for longer than one of its places may be held.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.per_peer = max(1, 3 * total // 4)
        self.per_connection = max(1, total // 4)
        self._held: Counter[str] = Counter()
        """Places by connection, by peer, and under the empty string of all."""
        self._waiting: dict[asyncio.Future[None], str] = {}

    @asynccontextmanager
    async def hold(self, connection: str) -> AsyncIterator[None]:
        """Have a place inside the block; waits for it.

        Args:
            connection: as gRPC names it: ``ipv4:127.0.0.1:50000``.
        """
        if self._free(connection):
            self._take(connection, 1)
        else:
            await self._wait(connection)
        try:
            yield
        finally:
            self._give(connection)

    async def _wait(self, connection: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = connection
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the place came, and no one wants it any more
                self._give(connection)
            raise
        finally:
            self._waiting.pop(turn, None)

    def _free(self, connection: str) -> bool:
        return (
            self._held[""] < self.total
            and self._held[peer_of(connection)] < self.per_peer
            and self._held[connection] < self.per_connection
        )

    def _take(self, connection: str, count: int) -> None:
        for name in ("", peer_of(connection), connection):
            self._held[name] += count
            if not self._held[name]:
                del self._held[name]

    def _give(self, connection: str) -> None:
        self._take(connection, -1)
        able = [turn for turn, waiting in self._waiting.items() if not turn.done() and self._free(waiting)]
        if able:  # min: the first of equals, who has waited for longest
            turn = min(able, key=lambda each: self._held[self._waiting[each]])
            self._take(self._waiting[turn], 1)
            turn.set_result(None)


class Calls:
    """Calls at once, of which one peer can have three quarters."""

    def __init__(self, total: int) -> None:
        self.per_peer = max(1, 3 * total // 4)
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, connection: str) -> Iterator[None]:
        """Count a call inside the block; raises BusyError where the peer has too many."""
        peer = peer_of(connection)
        if self._open[peer] >= self.per_peer:
            raise BusyError("Too many calls of one client at once.", "Try again in a second.", retry_after=1)
        self._open[peer] += 1
        try:
            yield
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


def peer_of(connection: str) -> str:
    """The address of a connection without its port."""
    return connection.rpartition(":")[0]


def cut_off(connection: str) -> bool:
    """Close a connection that gRPC holds, with all calls on it; returns False where there is none (any more).

    gRPC gives the memory of an answer that no one reads back only with its connection, and has no call that ends one:
    the connection is found among this process's sockets by the address at its other end.
    """
    wanted = _address(*unquote(connection).partition(":")[2].rpartition(":")[::2])
    for name in os.listdir(DESCRIPTORS):
        with suppress(OSError):  # closed meanwhile, or not connected
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6) and _address(*sock.getpeername()[:2]) == wanted:
                    sock.shutdown(socket.SHUT_RDWR)
                    return True
    return False


def _address(host: str, port: str | int) -> tuple[str, int]:
    """A host and port in one form: an IPv4 address that came through an IPv6 socket is IPv4."""
    ip = ip_address(host.strip("[]").partition("%")[0])
    return str(getattr(ip, "ipv4_mapped", None) or ip), int(port)
