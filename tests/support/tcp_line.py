"""A TCP proxy that fails on demand."""

from __future__ import annotations

import contextlib
import socket
import threading


class Line:
    """A TCP line to the S3 server that can be made to fail.

    ``cut`` connections to come are closed after ``bytes_through`` bytes of the answer; while ``silent``
    is set, none is answered at all.
    """

    def __init__(self, target: int) -> None:
        self.target, self.cut, self.bytes_through, self.silent, self.connections = target, 0, 0, False, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in (self._server, *self._open):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(client)
            if not self.silent:
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        left = None
        if self.cut:
            self.cut, left = self.cut - 1, self.bytes_through
        server = socket.create_connection(("127.0.0.1", self.target))
        self._open.append(server)
        threading.Thread(target=_copy, args=(client, server, None), daemon=True).start()
        _copy(server, client, left)


def _copy(source: socket.socket, target: socket.socket, left: int | None) -> None:
    """Pass bytes on until the end, or until that many have passed; then hang up on both sides."""
    try:
        while left is None or left > 0:
            data = source.recv(65536 if left is None else left)
            if not data:
                break
            target.sendall(data)
            left = None if left is None else left - len(data)
    except OSError:
        pass
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
